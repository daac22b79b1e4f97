"""Reads the frozen pool and proves that its files are the ones that were frozen.

Run as `python -m lorauter_suite.demo.verify`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lorauter_suite.demo.data import Example
from lorauter_suite.demo.digests import file_digests, pool_digest
from lorauter_suite.demo.skills import Split

POOL = Path(__file__).parent / "pool"
"""The shipped pool."""
FROZEN_DIGEST = "c16c99bcf2426f65bbb63aa5da916eb84f9200fca942b565321599a0fbd1e441"
"""The digest of the shipped pool; routing may be tuned on the pool only while this stays as it is."""


class PoolChanged(Exception):
    """The pool's files are not those of its manifest or of the frozen digest."""


def read_manifest(root: Path = POOL) -> dict[str, Any]:
    """The pool's manifest, pool.json."""
    manifest: dict[str, Any] = json.loads((root / "pool.json").read_text())
    return manifest


def read_examples(task: str, split: Split, root: Path = POOL) -> list[Example]:
    """The validation or test examples of `task`."""
    lines = (root / "tasks" / task / f"{split}.jsonl").read_text().splitlines()
    return [Example(**json.loads(line)) for line in lines]


def verify_pool(root: Path = POOL, expected: str | None = None) -> str:
    """Checks every file of the pool against the manifest; returns the pool's digest.

    Raises PoolChanged if a file was changed, added or removed, or if the digest is not `expected`.
    """
    listed: dict[str, str] = read_manifest(root)["files"]
    found = file_digests(root)
    wrong = sorted(path for path in listed.keys() | found.keys() if listed.get(path) != found.get(path))
    if wrong:
        raise PoolChanged(f"changed, added or missing: {', '.join(wrong)}")
    digest = pool_digest(found)
    if expected is not None and digest != expected:
        raise PoolChanged(f"the pool's digest is {digest}, not {expected}")
    return digest


if __name__ == "__main__":
    print(f"{verify_pool(expected=FROZEN_DIGEST)}  {POOL.name}")
