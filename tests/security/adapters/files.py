"""Folders whose files are links, pipes, sockets or too much, and whose names mislead."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

from lorauter.lora.check import CONFIG_FILE, WEIGHTS_FILE
from tests.security.adapters.model import DATA, Collected, Scene, config_bytes, weights_bytes, write

IRREGULAR, NAME, LARGE = "ADAPTER_FILE_NOT_REGULAR", "ADAPTER_FILE_NAME", "ADAPTER_TOO_LARGE"
MISSING, TRUNCATED, INVALID = "ADAPTER_NOT_FOUND", "ADAPTER_TRUNCATED", "ADAPTER_CONFIG_INVALID"
Put = Callable[[Scene, Path], object]
_all = Collected()


def instead(name: str, put: Put) -> Put:
    """Writes a sound adapter with something else in the place of one file."""

    def make(scene: Scene, folder: Path) -> None:
        write(folder)
        (folder / name).unlink()
        put(scene, folder / name)

    return make


def beside(put: Put) -> Put:
    """Writes a sound adapter and something beside it."""

    def make(scene: Scene, folder: Path) -> None:
        write(folder)
        put(scene, folder)

    return make


def _socket(_: Scene, path: Path) -> None:
    # A socket's address is shorter than a path may be.
    here = os.open(path.parent, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


def _loop(_: Scene, path: Path) -> None:
    path.symlink_to(path.name)


def _sparse(size: int) -> Put:
    def put(_: Scene, path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(size)

    return put


PLACES: dict[str, Put] = {
    "link-out": lambda scene, path: path.symlink_to(scene.canary / "adapter" / path.name),
    "link-out-relative": lambda scene, path: path.symlink_to(
        os.path.relpath(scene.canary / "adapter" / path.name, path.parent.resolve())
    ),
    "link-to-device": lambda _, path: path.symlink_to("/dev/zero"),
    "link-to-memory": lambda _, path: path.symlink_to("/proc/self/mem"),
    "link-to-nothing": lambda _, path: path.symlink_to("nothing"),
    "link-to-itself": _loop,
    "pipe": lambda _, path: os.mkfifo(path),
    "socket": _socket,
    "folder": lambda _, path: path.mkdir(),
}
for _name, _put in PLACES.items():
    for _what, _file in (("config", CONFIG_FILE), ("weights", WEIGHTS_FILE)):
        _all.add(f"{_what}-{_name}", IRREGULAR, instead(_file, _put))

for _what, _file in (("config", CONFIG_FILE), ("weights", WEIGHTS_FILE)):
    # In a store of one's own a second name is harmless: backups make them.
    _all.add(
        f"{_what}-hard-link",
        IRREGULAR,
        instead(_file, lambda scene, path: os.link(scene.canary / "adapter" / path.name, path)),
        contained=False,
    )

_all.add("config-missing", MISSING, instead(CONFIG_FILE, lambda *_: None))
_all.add("weights-missing", MISSING, instead(WEIGHTS_FILE, lambda *_: None))
_all.add("config-sparse-tebibyte", INVALID, instead(CONFIG_FILE, _sparse(2**40)))
_all.add("weights-sparse-tebibyte", LARGE, instead(WEIGHTS_FILE, _sparse(2**40)))
_all.add("weights-sparse-megabyte", "ADAPTER_CORRUPT", instead(WEIGHTS_FILE, _sparse(2**20)))


def _sparse_tail(_: Scene, path: Path) -> None:
    path.write_bytes(weights_bytes())
    os.truncate(path, 2**30)


_all.add("weights-sparse-tail", "ADAPTER_CORRUPT", instead(WEIGHTS_FILE, _sparse_tail))
_all.files("weights-cut", TRUNCATED, None, weights_bytes(data=DATA[:-1]))


def _called(name: str | bytes) -> Put:
    def put(_: Scene, folder: Path) -> None:
        with open(os.path.join(os.fsencode(folder), os.fsencode(name)), "wb"):  # noqa: PTH118, PTH123
            pass

    return put


MISLEADING: dict[str, str | bytes] = {
    "right-to-left": "txt.\u202enib.ledom",
    "zero-width": "adapter_config\u200b.json",
    "escape": "x\x1b]0;owned\x07",
    "line-end": "adapter_config.json\n",
    "not-utf8": b"adapter_\xff.json",
    "capitals": "Adapter_Config.json",
    "capitals-of-weights": "ADAPTER_MODEL.safetensors",
    "fullwidth": "adapter_config\uff0ejson",
    "long-s": "adapter_model.\u017fafetensors",
}
for _label, _file_name in MISLEADING.items():
    _all.add(f"name-{_label}", NAME, beside(_called(_file_name)))


def _many(_: Scene, folder: Path) -> None:
    for number in range(1_000):
        (folder / f"{number}.txt").touch()


_all.add("files-many", LARGE, beside(_many))
_all.add(
    "beside-link-out",
    IRREGULAR,
    beside(lambda scene, at: (at / "README.md").symlink_to(scene.canary / "secret")),
)
_all.add("beside-link-to-folder", IRREGULAR, beside(lambda scene, at: (at / "more").symlink_to(scene.canary)))
_all.add("beside-pipe", IRREGULAR, beside(lambda _, at: os.mkfifo(at / "log.txt")))
_all.add("beside-socket", IRREGULAR, beside(lambda scene, at: _socket(scene, at / "log.txt")))
_all.add(
    "tokenizer-link-out",
    IRREGULAR,
    beside(lambda scene, at: (at / "tokenizer_config.json").symlink_to(scene.canary / "secret")),
)


def _a_file(_: Scene, folder: Path) -> None:
    folder.write_bytes(config_bytes())


_all.add("folder-is-a-file", "PATH_NOT_FOUND", _a_file, at_verifier=MISSING, contained=False)

FILES = tuple(_all.attacks)
