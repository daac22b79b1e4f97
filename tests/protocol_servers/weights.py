"""What a server makes of an adapter's folder: which of its tensors reach the base, and what they add."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lorauter.lora.check import CONFIG_FILE, WEIGHTS_FILE
from lorauter.lora.header import MalformedFileError, Tensor, read_header
from lorauter.lora.modules import read_modules

_TENSOR = re.compile(r"(base_model\.model\.)?(.+)\.lora_([AB])\.weight")
_USUAL = re.compile(r"model\.layers\.\d+\.(?:self_attn|mlp)\.\w+_proj")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_HEADER_BYTES = 8 * 1024 * 1024
_MAX_TENSORS = 65_536


class LoadError(Exception):
    """A folder cannot be loaded. ``is_missing``: there are no adapter's files at all."""

    def __init__(self, message: str, is_missing: bool = False) -> None:
        super().__init__(message)
        self.is_missing = is_missing


@dataclass(frozen=True, slots=True)
class Weights:
    """What an adapter adds to the base. ``key`` tells contents apart; it is empty where nothing is added.

    ``members`` are (digest, weight) of the stored adapters that it consists of, where its folder tells.
    """

    path: str = ""
    rank: int = 0
    key: str = ""
    members: tuple[tuple[str, float], ...] = ()

    def scaled(self, factor: float, mark: str) -> Weights:
        """Returns the same adapter with another scale."""
        members = tuple((digest, weight * factor) for digest, weight in self.members)
        return Weights(self.path, self.rank, self.key and f"{self.key}:{mark}", members)


BASE = Weights()


@dataclass(frozen=True, slots=True)
class Reading:
    """How a kind of server matches an adapter's tensors with the base's modules.

    ``layers``: the last parts of the names of modules that it adapts. ``needs_prefix``: only tensors whose
    names begin as PEFT's do are found. ``whole_types``: a layer type of which one layer lacks its tensors is
    left out. ``refuses_others``: a tensor for any other layer is an error.
    """

    layers: frozenset[str]
    needs_prefix: bool
    whole_types: bool
    refuses_others: bool


def modules_of(base: str) -> frozenset[str]:
    """Returns the linear layers of a base model's folder; none without one, which then stands for any."""
    return frozenset(read_modules(Path(base))) if base else frozenset()


def read_weights(path: str, reading: Reading, modules: frozenset[str]) -> Weights:
    """Returns what a folder adds to a base of ``modules``; raises LoadError."""
    folder = Path(path).resolve()
    try:
        stamp = (folder / WEIGHTS_FILE).stat()
    except OSError:
        raise LoadError(f"No adapter found for {path}", is_missing=True) from None
    return _read(folder, reading, modules, stamp.st_mtime_ns, stamp.st_size)


@lru_cache(maxsize=4096)
def _read(folder: Path, reading: Reading, modules: frozenset[str], *_: int) -> Weights:
    try:
        config = json.loads((folder / CONFIG_FILE).read_text())
        with (folder / WEIGHTS_FILE).open("rb") as file:
            tensors = read_header(file, _MAX_HEADER_BYTES, _MAX_TENSORS)
            data = {name: _bytes(file, tensor) for name, tensor in tensors.items()}
    except OSError:
        raise LoadError(f"No adapter found for {folder}", is_missing=True) from None
    except (ValueError, MalformedFileError) as error:
        raise LoadError(f"Loading lora {folder} failed: {error}") from None
    found = _pairs(data, reading)
    if reading.refuses_others:
        _refuse_others(found, reading)
    kept = _reaching(found, reading, modules)
    rank = int(config.get("r") or 0)
    return Weights(str(folder), rank, _key(kept, config), _members(folder))


def _bytes(file: Any, tensor: Tensor) -> bytes:
    file.seek(tensor.begin)
    return bytes(file.read(tensor.end - tensor.begin))


def _pairs(data: Mapping[str, bytes], reading: Reading) -> dict[str, dict[str, bytes]]:
    found: dict[str, dict[str, bytes]] = {}
    for name, content in data.items():
        match = _TENSOR.fullmatch(name)
        if match and (match[1] or not reading.needs_prefix):
            found.setdefault(match[2], {})[match[3]] = content
    return found


def _refuse_others(found: Iterable[str], reading: Reading) -> None:
    others = sorted(module for module in found if _layer(module) not in reading.layers)
    if others:
        expected = ", ".join(sorted(reading.layers))
        raise LoadError(
            f"While loading the adapter, expected target modules in {{{expected}}} but received {others[:3]}."
        )


def _reaching(
    found: Mapping[str, dict[str, bytes]], reading: Reading, modules: frozenset[str]
) -> dict[str, dict[str, bytes]]:
    def is_of_base(module: str) -> bool:
        return module in modules if modules else bool(_USUAL.fullmatch(module))

    kept = {
        module: pair
        for module, pair in found.items()
        if len(pair) == 2 and _layer(module) in reading.layers and is_of_base(module)
    }
    if reading.whole_types and modules:
        torn = {_layer(module) for module in modules if module not in kept}
        kept = {module: pair for module, pair in kept.items() if _layer(module) not in torn}
    return kept


def _layer(module: str) -> str:
    return module.rpartition(".")[2]


def _key(kept: Mapping[str, dict[str, bytes]], config: Mapping[str, Any]) -> str:
    adding = {
        module: pair for module, pair in kept.items() if pair["A"].strip(b"\0") and pair["B"].strip(b"\0")
    }
    if not adding:
        return ""
    hashed = hashlib.sha256(f"{config.get('lora_alpha')} {config.get('use_rslora')}".encode())
    for module, pair in sorted(adding.items()):
        hashed.update(module.encode() + pair["A"] + pair["B"])
    return hashed.hexdigest()


def _members(folder: Path) -> tuple[tuple[str, float], ...]:
    if _DIGEST.fullmatch(folder.name):
        return ((f"sha256:{folder.name}", 1.0),)
    try:
        members = json.loads((folder / "composite.json").read_text())["members"]
    except OSError:
        return ()
    return tuple((str(each["digest"]), float(each["weight"])) for each in members)
