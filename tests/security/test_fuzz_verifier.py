"""The verifier's fuzzer: a run of CI's size, and that it would see what it looks for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lorauter.lora.check import WEIGHTS_FILE
from tests.security import fuzz_verifier
from tests.security.fuzz_verifier import Figures, bounded, fuzz

INPUTS = 4_000
ROOT = Path(__file__).parents[2]


def test_verifier_survives_mutated_adapters_in_bounded_memory() -> None:
    """In a process of its own, under RLIMIT_AS: memory beyond the bound would be a crash."""
    command = [sys.executable, "-m", "tests.security.fuzz_verifier", "--inputs", str(INPUTS), "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout)
    assert (figures["inputs"], figures["crashes"], figures["hangs"]) == (INPUTS, 0, 0)
    assert figures["disagreements"] == 0
    # Mutations that all fail at the same gate would fuzz that gate alone.
    assert 0.02 < figures["accepted"] / INPUTS < 0.5
    assert len(figures["reasons"]) >= 6


def naive(folder: Path) -> None:
    """A reader that trusts the header."""
    data = (folder / WEIGHTS_FILE).read_bytes()
    length = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + length])
    entries.pop("__metadata__", None)
    for entry in entries.values():
        begin, end = entry["data_offsets"]
        data[8 + length + begin : 8 + length + end].hex()


def test_fuzzer_sees_a_reader_that_crashes() -> None:
    figures = fuzz(300, seed=1, target=naive)
    assert figures.crashes > 30
    assert figures.disagreements > 10
    assert len(figures.first) == fuzz_verifier.KEPT


def test_fuzzer_sees_a_reader_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_verifier, "SECONDS", 0.05)

    def spin(_: Path) -> None:
        while True:
            pass

    assert fuzz(2, seed=1, target=spin).hangs == 2


def test_fuzzer_sees_a_reader_that_takes_what_the_header_claims() -> None:
    def reserve(folder: Path) -> None:
        data = (folder / WEIGHTS_FILE).read_bytes()
        bytearray(min(int.from_bytes(data[:8], "little"), 2**40))

    with bounded():
        figures = fuzz(300, seed=1, target=reserve)
    assert any("MemoryError" in line for line in figures.first)


def test_inputs_are_made_again_from_seed_and_number() -> None:
    seen: list[bytes] = []

    def remember(folder: Path) -> None:
        seen.append((folder / WEIGHTS_FILE).read_bytes())

    def run(inputs: int, first: int) -> Figures:
        return fuzz(inputs, seed=3, first=first, target=remember)

    run(5, 0)
    run(1, 4)
    assert seen[4] == seen[5]
