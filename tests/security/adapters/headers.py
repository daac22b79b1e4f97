"""Tensor files whose headers lie, and whose tensors are not what a linear adapter is made of."""

from __future__ import annotations

import json
import struct
from typing import Any

from tests.security.adapters.model import CONFIG, DATA, HEADER, MODULE, A, B, Collected, weights_bytes

CORRUPT, TRUNCATED, LARGE = "ADAPTER_CORRUPT", "ADAPTER_TRUNCATED", "ADAPTER_TOO_LARGE"
SHAPE, UNSUPPORTED, NAN = "ADAPTER_SHAPE_MISMATCH", "ADAPTER_UNSUPPORTED", "ADAPTER_NOT_FINITE"
_all = Collected()


def changed(name: str = B, **fields: Any) -> dict[str, Any]:
    """Returns the sound header with one tensor described otherwise."""
    return {**HEADER, name: {**HEADER[name], **fields}}


def of_width(dtype: str, width: int) -> bytes:
    """Returns the sound file in another type whose elements have ``width`` bytes."""
    half = 16 * width
    header = {
        A: {"dtype": dtype, "shape": [2, 8], "data_offsets": [0, half]},
        B: {"dtype": dtype, "shape": [8, 2], "data_offsets": [half, 2 * half]},
    }
    return weights_bytes(header, bytes(2 * half))


def more(name: str, shape: list[int], at: int = 128) -> bytes:
    """Returns the sound file with one more tensor."""
    size = 4
    for length in shape:
        size *= length
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
    return weights_bytes({**HEADER, name: entry}, DATA + bytes(size))


def ending(bits: bytes) -> bytes:
    """Returns the data of the sound file with its last element replaced."""
    return DATA[: -len(bits)] + bits


TEXT = json.dumps(HEADER).encode()
LIES: dict[str, tuple[str, bytes]] = {
    "length-2-63": (CORRUPT, weights_bytes(length=2**63)),
    "length-all-ones": (CORRUPT, weights_bytes(length=2**64 - 1)),
    "length-100-million": (CORRUPT, weights_bytes(length=100_000_000)),
    "length-beyond-file": (TRUNCATED, weights_bytes(length=100_000)),
    "length-into-data": (CORRUPT, weights_bytes(length=len(TEXT) + 8)),
    "length-zero": (CORRUPT, weights_bytes(length=0)),
    "length-short": (CORRUPT, weights_bytes(length=len(TEXT) - 1)),
    "megabyte-of-spaces": (CORRUPT, weights_bytes(TEXT + b" " * 1024 * 1024)),
    "metadata-bomb": (CORRUPT, weights_bytes({"__metadata__": {"a": "x" * 1024 * 1024}, **HEADER})),
    "overlap": (CORRUPT, weights_bytes(changed(data_offsets=[0, 64]), DATA[:64])),
    "overlap-in-part": (CORRUPT, weights_bytes(changed(data_offsets=[32, 96]), DATA[:96])),
    "hole": (CORRUPT, weights_bytes(changed(data_offsets=[68, 132]), DATA + bytes(4))),
    "hole-at-start": (
        CORRUPT,
        weights_bytes({A: {**HEADER[A], "data_offsets": [4, 68]}, B: HEADER[B]}, DATA),
    ),
    "offsets-negative": (CORRUPT, weights_bytes(changed(data_offsets=[-64, 0]))),
    "offsets-reversed": (CORRUPT, weights_bytes(changed(data_offsets=[128, 64]))),
    "offsets-beyond-file": (TRUNCATED, weights_bytes(data=DATA[:100])),
    "offsets-2-63": (CORRUPT, weights_bytes(changed(data_offsets=[2**63, 2**63 + 64]))),
    "offsets-fractional": (CORRUPT, weights_bytes(changed(data_offsets=[64.0, 128.0]))),
    "offsets-three": (CORRUPT, weights_bytes(changed(data_offsets=[64, 128, 192]))),
    "shape-overflow": (CORRUPT, weights_bytes(changed(shape=[2**62, 4]))),
    "shape-wraps-to-right-size": (CORRUPT, weights_bytes(changed(shape=[2**61, 2**3 + 2**3]))),
    "shape-of-truths": (CORRUPT, weights_bytes(changed(shape=[True, 16]))),
    "shape-negative": (CORRUPT, weights_bytes(changed(shape=[-8, -2]))),
    "shape-of-many": (CORRUPT, weights_bytes(changed(shape=[1] * 9 + [16]))),
    "shape-a-text": (CORRUPT, weights_bytes(changed(shape="82"))),
    "dtype-unknown": (CORRUPT, weights_bytes(changed(dtype="Q4_0"))),
    "dtype-list": (CORRUPT, weights_bytes(changed(dtype=["F32"]))),
    "entry-more-keys": (CORRUPT, weights_bytes(changed(path="../../x"))),
    "entry-a-number": (CORRUPT, weights_bytes({A: HEADER[A], B: 1})),
    "duplicate-tensors": (CORRUPT, weights_bytes(TEXT[:-1] + b", " + TEXT[1:])),
    "nested-deeply": (CORRUPT, weights_bytes(b'{"a":' + b"[" * 500_000)),
    "metadata-nested": (CORRUPT, weights_bytes({"__metadata__": {"a": {"b": {}}}, **HEADER})),
    "metadata-list": (CORRUPT, weights_bytes({"__metadata__": ["x"], **HEADER})),
    "number-beyond-floats": (CORRUPT, weights_bytes(TEXT[:-1] + b', "x": 1e999}')),
    "digits": (CORRUPT, weights_bytes(TEXT[:-1] + b', "x": ' + b"9" * 100_000 + b"}")),
    "not-utf8": (CORRUPT, weights_bytes(TEXT[:-1] + b', "\xff": 1}')),
    "byte-order-mark": (CORRUPT, weights_bytes(b"\xef\xbb\xbf" + TEXT)),
    "list": (CORRUPT, weights_bytes(b"[" + TEXT + b"]")),
    "no-tensors": (CORRUPT, weights_bytes({}, b"")),
    "bytes-after-the-last": (CORRUPT, weights_bytes(data=DATA + b"\0")),
    "empty": (TRUNCATED, b""),
    "seven-bytes": (TRUNCATED, b"\0" * 7),
    "tensors-many": (
        LARGE,
        weights_bytes(
            {f"t{n}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for n in range(8_193)}, b""
        ),
    ),
}

TENSORS: dict[str, tuple[str, bytes]] = {
    "double": (UNSUPPORTED, of_width("F64", 8)),
    "bytes": (UNSUPPORTED, of_width("I8", 1)),
    "float8": (UNSUPPORTED, of_width("F8_E4M3", 1)),
    "indices": (UNSUPPORTED, of_width("I64", 8)),
    "name-traversal": (UNSUPPORTED, more("../../canary/secret", [1])),
    "name-absolute": (UNSUPPORTED, more("/etc/passwd", [1])),
    "name-nul": (CORRUPT, more("x\x00", [1])),
    "name-surrogate": (CORRUPT, weights_bytes(TEXT[:-1] + b', "\\ud800": 1}')),
    "name-homoglyph": (UNSUPPORTED, more(A.replace("lora_A", "lora_\u0410"), [2, 8])),
    "name-decomposed": (UNSUPPORTED, more(A.replace("q_proj", "q_proje\u0301"), [2, 8])),
    "name-line-end": (UNSUPPORTED, more(A + "\n", [2, 8])),
    "name-regex": (UNSUPPORTED, more("base_model.model.(a+)+.lora_A.weight", [2, 8])),
    "magnitude": (UNSUPPORTED, more(f"base_model.model.{MODULE}.lora_magnitude_vector", [8])),
    "bias": (UNSUPPORTED, more(f"base_model.model.{MODULE}.lora_B.bias", [8])),
    "embedding": (UNSUPPORTED, more("base_model.model.model.embed_tokens.lora_embedding_A", [2, 8])),
    "replaced-module": (UNSUPPORTED, more("base_model.model.lm_head.weight", [8, 8])),
    "one-side": (SHAPE, weights_bytes({A: HEADER[A]}, DATA[:64])),
    "rank-disagrees": (SHAPE, weights_bytes(changed(shape=[4, 4]))),
    "vectors": (SHAPE, weights_bytes(changed(shape=[16]))),
    "wrong-width": (
        SHAPE,
        weights_bytes(
            {
                A: {**HEADER[A], "shape": [2, 4], "data_offsets": [0, 32]},
                B: {**HEADER[B], "data_offsets": [32, 96]},
            },
            DATA[:96],
        ),
    ),
    "nan": (NAN, weights_bytes(data=ending(b"\x00\x00\xc0\x7f"))),
    "nan-signalling": (NAN, weights_bytes(data=ending(b"\x01\x00\x80\x7f"))),
    "infinite": (NAN, weights_bytes(data=ending(b"\x00\x00\x80\x7f"))),
    "infinite-negative": (NAN, weights_bytes(data=ending(b"\x00\x00\x80\xff"))),
    "infinite-half": (NAN, of_width("F16", 2)[:-2] + b"\x00\x7c"),
    "nan-bfloat16": (NAN, of_width("BF16", 2)[:-2] + b"\xc0\x7f"),
}


def collide(name: str) -> tuple[bytes, bytes]:
    """Returns the sound adapter on one more module, whose name differs little from the base's."""
    other = MODULE.replace("q_proj", name)
    header = {
        **HEADER,
        f"base_model.model.{other}.lora_A.weight": {**HEADER[A], "data_offsets": [128, 192]},
        f"base_model.model.{other}.lora_B.weight": {**HEADER[B], "data_offsets": [192, 256]},
    }
    config = json.dumps({**CONFIG, "target_modules": ["q_proj", name]}).encode()
    return config, weights_bytes(header, DATA + DATA)


for _name, (_reason, _weights) in LIES.items():
    _all.files(f"header-{_name}", _reason, None, _weights)
for _name, (_reason, _weights) in TENSORS.items():
    _all.files(f"tensors-{_name}", _reason, None, _weights)
_all.files("tensors-module-in-another-case", SHAPE, *collide("Q_PROJ"))
_all.files("tensors-module-of-another-base", SHAPE, *collide("x_proj"))
_all.files("tensors-module-not-named", "ADAPTER_CONFIG_INVALID", None, collide("x_proj")[1])
_all.files("header-length-in-big-endian", CORRUPT, None, struct.pack(">Q", len(TEXT)) + TEXT + DATA)

HEADERS = tuple(_all.attacks)
