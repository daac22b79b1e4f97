"""Mutations of an adapter's two files: of what the JSON says, of the JSON's text, and of raw bytes."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from lorauter.lora import config as reading

Files = tuple[bytes, bytes]
"""adapter_config.json and adapter_model.safetensors."""

NUMBERS = (-(2**63), -1, 0, 1, 2, 3, 7, 8, 9, 64, 127, 128, 129, 255, 256, 2**16, 2**31 - 1, 2**31, 2**32)
LARGE = (2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, 1e308, -0.0, 0.5)
OTHER: tuple[Any, ...] = (
    None,
    True,
    False,
    "",
    "8",
    "F32",
    "a\x00b",
    "\ud800",
    "../../x",
    "\u202e",
    [],
    [8],
    {},
    {"a": 1},
)
VALUES: tuple[Any, ...] = (*NUMBERS, *LARGE, *OTHER)

RAW = (
    "NaN",
    "Infinity",
    "1e999",
    "-1e999",
    "9" * 5_000,
    "[" * 2_000,
    "[" * 500 + "]" * 500,
    '{"a":' * 1_500,
    "[" + "[]," * 500 + "[]]",
    '{"a":1,"a":2}',
    '"\\ud800"',
    '"\\u0000"',
    "01",
    "",
    "'a'",
    "/**/1",
)
"""Texts that json.dumps does not write."""

DTYPES = ("F32", "F16", "BF16", "F64", "I8", "BOOL", "F8_E4M3", "F8_E8M0", "F4", "U64", "f32", "", "Q4_0")
KEYS = (*reading._READ, *reading.DROPPED, *reading.REFUSED, "x", "__metadata__", "dtype", "shape")
NAMES = (
    "lora_A",
    "lora_B",
    "base_model.model.x.lora_A.weight",
    "__metadata__",
    "../x",
    "q_proj",
    "",
    "\u0430",
)
_MARK = "\u2603"


def _value(random: Random) -> Any:
    return _MARK if random.random() < 0.2 else random.choice(VALUES)


def _text(value: Any, random: Random) -> bytes:
    """Returns JSON in which the mark stands for a text that json.dumps does not write."""
    text = json.dumps(value, ensure_ascii=random.random() < 0.9)
    for mark in (f'"{_MARK}"', json.dumps(_MARK)):
        text = text.replace(mark, random.choice(RAW))
    return text.encode("utf-8", "surrogatepass")


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Returns (container, key) of everything inside ``value``."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [place for key in keys for place in [(value, key), *_places(value[key])]]


def _change_json(value: Any, random: Random) -> None:
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        places = _places(value)
        if not places:
            return
        container, key = random.choice(places)
        kind = random.randrange(6)
        if kind == 0:
            del container[key]
        elif kind == 1 and isinstance(container, dict):
            container[random.choice((*NAMES, *KEYS))] = container.pop(key)
        elif kind == 2 and isinstance(container, dict):
            container[random.choice(KEYS)] = _value(random)
        elif kind == 3 and isinstance(container[key], int):
            container[key] += random.choice((-8, -4, -1, 1, 4, 8, 64, 2**32, 2**63))
        elif kind == 4 and isinstance(container[key], str):
            container[key] = random.choice(DTYPES)
        else:
            container[key] = _value(random)


def change_config(files: Files, random: Random) -> Files:
    """Changes what the config says."""
    config = json.loads(files[0])
    _change_json(config, random)
    return _text(config, random), files[1]


def change_header(files: Files, random: Random) -> Files:
    """Changes what the header says, mostly with the length of the header still right."""
    length = struct.unpack("<Q", files[1][:8])[0]
    header = json.loads(files[1][8 : 8 + length])
    _change_json(header, random)
    if random.random() < 0.2:
        header["__metadata__"] = {"a": _value(random)}
    text = _text(header, random)
    if random.random() < 0.1:
        text += random.choice((b" ", b"\n", b"\t", b"\0", b"}")) * random.choice((1, 7, 4096))
    claimed = len(text) + (random.choice((-1, 1, 8, 2**20, 2**40, 2**63 - 1)) if random.random() < 0.1 else 0)
    return files[0], struct.pack("<Q", max(0, claimed)) + text + files[1][8 + length :]


def change_bytes(data: bytes, random: Random) -> bytes:
    """Flips, cuts, doubles and inserts raw bytes."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8))):
        place = random.randrange(len(changed) + 1)
        # Where a file is read first, more depends on each byte.
        place = place if random.random() < 0.5 else min(place, random.randrange(1, 64))
        kind = random.randrange(5)
        if kind == 0 and place < len(changed):
            changed[place] ^= 1 << random.randrange(8)
        elif kind == 1 and place < len(changed):
            changed[place] = random.choice((0, 0x20, 0x22, 0x7B, 0x7F, 0x80, 0xFF))
        elif kind == 2:
            del changed[place : place + random.choice((1, 4, 64))]
        elif kind == 3:
            changed[place:place] = random.randbytes(random.choice((1, 4, 64)))
        else:
            changed[place:place] = changed[place : place + random.choice((1, 8, 256))]
    return bytes(changed)


def _change_config_bytes(files: Files, random: Random) -> Files:
    return change_bytes(files[0], random), files[1]


def _change_weight_bytes(files: Files, random: Random) -> Files:
    return files[0], change_bytes(files[1], random)


def _change_values(files: Files, random: Random) -> Files:
    """Changes weights alone, so that most come through."""
    length = struct.unpack("<Q", files[1][:8])[0]
    data = bytearray(files[1])
    for _ in range(random.choice((0, 1, 4))):
        data[random.randrange(8 + length, len(data))] = random.choice((0, 0x7C, 0x7F, 0x80, 0xFF))
    return files[0], bytes(data)


def _cut(files: Files, random: Random) -> Files:
    return files[0][: random.randrange(len(files[0]) + 1)], files[1][: random.randrange(len(files[1]) + 1)]


@dataclass(frozen=True, slots=True)
class Mutation:
    """A way to change files, and how often it is taken."""

    change: Callable[[Files, Random], Files]
    weight: int


MUTATIONS = (
    Mutation(change_header, 8),
    Mutation(change_config, 5),
    Mutation(_change_weight_bytes, 4),
    Mutation(_change_config_bytes, 2),
    Mutation(_change_values, 2),
    Mutation(_cut, 1),
)
_CHANGES = [mutation.change for mutation in MUTATIONS]
_WEIGHTS = [mutation.weight for mutation in MUTATIONS]


def mutated(files: Files, random: Random) -> Files:
    """Returns the files after one mutation, or after two one time in four."""
    for change in random.choices(_CHANGES, _WEIGHTS, k=1 if random.random() < 0.75 else 2):
        try:
            files = change(files, random)
        except (ValueError, IndexError, KeyError, struct.error, RecursionError):
            # The first mutation left nothing that this one can read.
            files = _change_weight_bytes(files, random)
    return files
