"""Pickles and archives under every name, and files that are sound tensors and something else as well."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from lorauter.lora.check import CONFIG_FILE, WEIGHTS_FILE
from tests.security.adapters.model import A, B, Collected, Scene, config_bytes, weights_bytes, write

PICKLE, CODE, CORRUPT = "ADAPTER_PICKLE", "ADAPTER_CODE", "ADAPTER_CORRUPT"
_all = Collected()


class Payload:
    """Leaves a file beside the secret when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.write_text, (self.target, "owned")


def payload(scene: Scene, protocol: int = 2) -> bytes:
    """Returns a pickle that writes into the canary."""
    return pickle.dumps({A: Payload(scene.canary / "owned")}, protocol)


def archive(scene: Scene) -> bytes:
    """Returns what torch.save() writes: a zip archive with a pickle in it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped:
        zipped.writestr("archive/data.pkl", payload(scene))
        zipped.writestr("archive/data/0", bytes(64))
    return file.getvalue()


def bomb() -> bytes:
    """Returns an archive that unpacks to a thousand times its size."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr(WEIGHTS_FILE, bytes(16 * 1024 * 1024))
    return file.getvalue()


def tarball(scene: Scene) -> bytes:
    """Returns a tar archive with a member that climbs out."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        member = tarfile.TarInfo("../../canary/owned")
        member.size = 5
        tar.addfile(member, io.BytesIO(b"owned"))
    return file.getvalue()


def _as_weights(name: str, reason: str, weights: bytes) -> None:
    _all.files(name, reason, None, weights)


def _from_scene(name: str, reason: str, make: Callable[[Scene], bytes]) -> None:
    _all.add(name, reason, lambda scene, folder: write(folder, None, make(scene)))


def _pickled(protocol: int) -> Callable[[Scene], bytes]:
    return lambda scene: payload(scene, protocol)


for _protocol in range(6):
    # Protocols 0 and 1 begin with what reads as the length of a huge header.
    _from_scene(f"pickle-protocol-{_protocol}", PICKLE if _protocol >= 2 else CORRUPT, _pickled(_protocol))
_from_scene("pickle-of-torch", PICKLE, archive)
_from_scene("pickle-then-tensors", PICKLE, lambda scene: payload(scene) + weights_bytes())
_from_scene("pickle-after-tensors", CORRUPT, lambda scene: weights_bytes() + payload(scene))
_from_scene("archive-after-tensors", CORRUPT, lambda scene: weights_bytes() + archive(scene))
_as_weights("archive-bomb", PICKLE, bomb())
_as_weights("archive-gzip-bomb", CORRUPT, gzip.compress(bytes(16 * 1024 * 1024)))
_as_weights("archive-gzip-of-tensors", CORRUPT, gzip.compress(weights_bytes()))
_from_scene("archive-tar", CORRUPT, tarball)
_as_weights("program-elf", CORRUPT, b"\x7fELF\x02\x01\x01\x00" + bytes(200))
_as_weights("program-script", CORRUPT, b"#!/bin/sh\ntouch owned\n" + b"#" * 100)
_as_weights("document-pdf", CORRUPT, b"%PDF-1.7\n" + bytes(200))


def polyglot(scene: Scene) -> bytes:
    """Returns sound tensors of the right shapes in whose bytes an archive stands with its last record."""
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as zipped:
            zipped.writestr("x", b"")
        tail = file.getvalue()
    # Bytes of small numbers only, so that the weights are finite; the shapes are those of the base's layer.
    size = 2 * 8 * 4 * 2
    assert len(tail) <= size, len(tail)
    header = {
        A: {"dtype": "F32", "shape": [2, 8], "data_offsets": [0, 64]},
        B: {"dtype": "F32", "shape": [8, 2], "data_offsets": [64, 128]},
    }
    return weights_bytes(header, bytes(size - len(tail)) + tail)


_from_scene("archive-within-tensors", PICKLE, polyglot)


def _beside(name: str, reason: str, file: str) -> None:
    def make(scene: Scene, folder: Path) -> None:
        write(folder)
        (folder / file).write_bytes(payload(scene))

    _all.add(f"beside-{name}", reason, make)


for _name, _file in {
    "bin": "adapter_model.bin",
    "arguments": "training_args.bin",
    "capitals": "OPTIMIZER.PT",
    "pth": "x.pth",
    "ckpt": "x.ckpt",
    "pkl": "x.pkl",
    "joblib": "x.joblib",
    "numpy": "x.npy",
    "keras": "x.keras",
    "old": "x.pkl.old",
    "packed": "x.pickle.gz",
    "fullwidth": "x.\uff50\uff4b\uff4c",
    "hidden": ".pkl",
    "spaced": "x.bin ",
    "dotted": "x.pt.",
}.items():
    _beside(_name, PICKLE, _file)
for _name, _file in {
    "module": "modeling_evil.py",
    "bytecode": "x.pyc",
    "library": "x.so",
    "script": "setup.sh",
    "zip": "weights.zip",
    "tar": "weights.tar.gz",
    "wheel": "evil-1.0-py3-none-any.whl",
}.items():
    _beside(_name, CODE, _file)


def _only_pickle(scene: Scene, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / CONFIG_FILE).write_bytes(config_bytes())
    (folder / "adapter_model.bin").write_bytes(payload(scene))


_all.add("pickle-instead-of-tensors", PICKLE, _only_pickle)

PICKLES = tuple(_all.attacks)
