"""What an attack is, and the sound adapter that most of them are made from."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorauter.lora.check import CONFIG_FILE, WEIGHTS_FILE

BASE = "tiny/base"
MODULE = "model.layers.0.self_attn.q_proj"
MODULES = {MODULE: (8, 8)}
A, B = (f"base_model.model.{MODULE}.lora_{side}.weight" for side in "AB")

CONFIG: Mapping[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": BASE,
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["q_proj"],
}
Entry = Mapping[str, Any]
HEADER: Mapping[str, Entry] = {
    A: {"dtype": "F32", "shape": [2, 8], "data_offsets": [0, 64]},
    B: {"dtype": "F32", "shape": [8, 2], "data_offsets": [64, 128]},
}
DATA = struct.pack("<32f", *(number / 32 for number in range(32)))


def config_bytes(**changes: Any) -> bytes:
    """Returns the config of the sound adapter with changes."""
    return json.dumps({**CONFIG, **changes}).encode()


def weights_bytes(header: object = HEADER, data: bytes = DATA, length: int | None = None) -> bytes:
    """Returns a file of tensors; ``header`` is JSON's value or its text, ``length`` what the file claims."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@dataclass(frozen=True, slots=True)
class Scene:
    """Where attacks stand: ``root`` is a folder that callers may name, ``canary`` one that nobody may touch.

    ``canary`` holds a sound adapter in ``adapter`` and the file ``secret``.
    """

    root: Path
    canary: Path


@dataclass(frozen=True, slots=True)
class Attack:
    """A hostile adapter.

    ``make`` writes it into a folder that does not exist and returns the fields of its registration but for
    id and pool. ``reason`` is the registry's; ``at_verifier`` that of check_source(), if it is another one,
    and empty where there is nothing to verify. ``contained`` tells that its files alone make it unfit, so
    that an engine refuses them as well if somebody puts them into its store.
    """

    name: str
    reason: str
    make: Callable[[Scene, Path], Mapping[str, Any]]
    at_verifier: str | None = None
    contained: bool = True

    @property
    def verifier_reason(self) -> str:
        """The reason that the verifier gives; empty for none."""
        return self.reason if self.at_verifier is None else self.at_verifier


@dataclass(slots=True)
class Collected:
    """A list of attacks that functions are added to."""

    attacks: list[Attack] = field(default_factory=list)

    def add(self, name: str, reason: str, make: Callable[[Scene, Path], object], **fields: Any) -> None:
        """Adds one whose function may return nothing: then the folder is what is registered."""

        def made(scene: Scene, folder: Path) -> Mapping[str, Any]:
            answer = make(scene, folder)
            return answer if isinstance(answer, dict) else {"path": str(folder)}

        self.attacks.append(Attack(name, reason, made, **fields))

    def files(self, name: str, reason: str, config: bytes | None, weights: bytes | None) -> None:
        """Adds one that is a folder with these two files."""
        self.add(name, reason, lambda _, folder: write(folder, config, weights))


def write(folder: Path, config: bytes | None = None, weights: bytes | None = None) -> None:
    """Writes an adapter's two files; those not given are sound."""
    folder.mkdir(parents=True)
    (folder / CONFIG_FILE).write_bytes(config_bytes() if config is None else config)
    (folder / WEIGHTS_FILE).write_bytes(weights_bytes() if weights is None else weights)
