"""Paths and hub ids that lead elsewhere than under a root or to a commit."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.security.adapters.model import Collected, Scene

OUTSIDE, MISSING, HUB = "PATH_NOT_ALLOWED", "PATH_NOT_FOUND", "INVALID_HUB_NAME"
COMMIT = "0123456789" * 4
_all = Collected()

PATHS = {
    "outside": (OUTSIDE, "{canary}/adapter"),
    "upwards": (OUTSIDE, "{root}/../canary/adapter"),
    "upwards-and-back": (OUTSIDE, "{root}/x/../../canary/adapter"),
    "relative": (OUTSIDE, "adapter"),
    "relative-upwards": (OUTSIDE, "../canary/adapter"),
    "home": (OUTSIDE, "~/adapter"),
    "root-itself-upwards": (OUTSIDE, "{root}/.."),
    "prefix-of-root": (OUTSIDE, "{root}-other"),
    "by-proc": (OUTSIDE, "/proc/self/root{canary}/adapter"),
    "by-proc-of-one": (OUTSIDE, "/proc/1/root{canary}/adapter"),
    "descriptor": (OUTSIDE, "/proc/self/fd/0"),
    "device": (OUTSIDE, "/dev/zero"),
    "file-url": (OUTSIDE, "file://{canary}/adapter"),
    "http-url": (OUTSIDE, "http://169.254.169.254/latest/meta-data/"),
    "percent-encoded": (MISSING, "{root}/%2e%2e/canary/adapter"),
    "backslashes": (MISSING, "{root}/..\\..\\canary\\adapter"),
    "unicode-dots": (MISSING, "{root}/\u2024\u2024/canary/adapter"),
    "fullwidth-dots": (MISSING, "{root}/\uff0e\uff0e/canary/adapter"),
    "long": (MISSING, "{root}/" + "x" * 300),
    "nul": ("INVALID_TEXT", "{root}/\0/../../canary/adapter"),
    "empty": ("INVALID_FIELD", ""),
}


def _named(path: str) -> Callable[[Scene, Path], object]:
    return lambda scene, _: {"path": path.format(root=scene.root, canary=scene.canary)}


def _of_hub(name: str) -> Callable[[Scene, Path], object]:
    return lambda *_: {"hub": name}


for _name, (_reason, _path) in PATHS.items():
    _all.add(f"path-{_name}", _reason, _named(_path), at_verifier="", contained=False)


def _linked(scene: Scene, folder: Path) -> None:
    folder.symlink_to(scene.canary / "adapter")


def _linked_above(scene: Scene, folder: Path) -> dict[str, Any]:
    folder.symlink_to(os.path.relpath(scene.canary, folder.parent))
    return {"path": f"{folder}/adapter"}


def _linked_twice(scene: Scene, folder: Path) -> None:
    folder.with_name(f"{folder.name}-2").symlink_to(scene.canary / "adapter")
    folder.symlink_to(f"{folder.name}-2")


for _name, _make in {"link": _linked, "link-above": _linked_above, "link-of-link": _linked_twice}.items():
    _all.add(f"path-{_name}", OUTSIDE, _make, at_verifier="", contained=False)

HUB_IDS = {
    "metadata-service": f"http://169.254.169.254/latest@{COMMIT}",
    "localhost": f"localhost:1/adapter@{COMMIT}",
    "url": f"https://huggingface.co/n/m@{COMMIT}",
    "credentials": f"user:word@host/m@{COMMIT}",
    "file": f"file:///n/m@{COMMIT}",
    "upwards": f"../m@{COMMIT}",
    "upwards-in-name": f"n/..@{COMMIT}",
    "dots-in-name": f"n/a..b@{COMMIT}",
    "dashes-in-name": f"n/a--b@{COMMIT}",
    "three-parts": f"n/m/resolve@{COMMIT}",
    "branch": "n/m@main",
    "tag": "n/m@v1.0",
    "pull-request": "n/m@refs/pr/1",
    "short-commit": "n/m@0123456",
    "long-commit": f"n/m@{COMMIT}0",
    "capital-commit": f"n/m@{'A' * 40}",
    "no-commit": "n/m",
    "query": f"n/m?x=1@{COMMIT}",
    "fragment": f"n/m#@{COMMIT}",
    "encoded": f"n/%2e%2e@{COMMIT}",
    "line-end": f"n/m@{COMMIT}\n",
    "not-ascii": f"n/mod\u00e9l@{COMMIT}",
    "other-digits": "n/m@" + "\u0660" * 40,
    "git-suffix": f"n/m.git@{COMMIT}",
}
for _name, _hub in HUB_IDS.items():
    _all.add(f"hub-{_name}", HUB, _of_hub(_hub), at_verifier="", contained=False)

SOURCES = tuple(_all.attacks)
