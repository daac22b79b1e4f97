"""Fuzzes the verifier of adapters: `python -m tests.security.fuzz_verifier --inputs N --seed S`.

Each input is made from (seed, number) alone, so `--first NUMBER --inputs 1` makes it again. What it must
hold: nothing but a LorauterError comes out, in bounded time and memory; and what is accepted is read alike by
safetensors' own reader, with finite weights.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

import numpy as np
import safetensors

from lorauter.errors import LorauterError
from lorauter.lora.check import CONFIG_FILE, WEIGHTS_FILE, check_adapter
from lorauter.lora.config import AdapterConfig
from lorauter.lora.weights import read_weights
from lorauter.lora.write import write_adapter
from tests.security.mutations import Files, mutated

Q, V = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"
MODULES = {Q: (8, 8), V: (8, 4)}
SECONDS = 2.0
"""How long one input may take of a processor's time."""

STILL_SECONDS = 60.0
"""How long one input may take in all: a busy machine may give us little of its time."""

MEMORY_BYTES = 256 * 1024 * 1024
"""How much address space the inputs may take on top of what the process has at the start."""

TOLD = 50_000
"""After so many inputs, what came out so far is told on stderr."""

KEPT = 20
"""Most crashes that are described."""


@dataclass(slots=True)
class Figures:
    """What came out. ``crashes`` counts anything but a LorauterError, ``disagreements`` accepted files that
    safetensors reads otherwise; ``first`` describes the first ones by number. ``slowest_ms`` is
    processor time, ``grown_mib`` how much the most memory that was taken grew."""

    seed: int
    inputs: int = 0
    accepted: int = 0
    crashes: int = 0
    hangs: int = 0
    disagreements: int = 0
    slowest_ms: float = 0.0
    grown_mib: float = 0.0
    seconds: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)
    first: list[str] = field(default_factory=list)


class _HangError(BaseException):
    """An input took too long."""


def seeds(folder: Path) -> list[Files]:
    """Returns sound adapters of several kinds, written in ``folder``."""
    draw = np.random.default_rng(0)
    matrices = {
        name: (
            draw.normal(size=(2, width)).astype(np.float32),
            draw.normal(size=(out, 2)).astype(np.float32),
        )
        for name, (width, out) in MODULES.items()
    }
    plain = AdapterConfig("demo/base", 2, 4.0, False, ("q_proj", "v_proj"))
    patterned = AdapterConfig("demo/base", 1, 4.0, True, ("q_proj", "v_proj"), {"q_proj": 2, "v_proj": 2})
    made = []
    for number, config in enumerate((plain, patterned)):
        for precision in (None, "float16", "bfloat16"):
            target = folder / f"{number}-{precision}"
            write_adapter(target, config, matrices, precision)
            made.append(((target / CONFIG_FILE).read_bytes(), (target / WEIGHTS_FILE).read_bytes()))
    return made


def verify(folder: Path) -> None:
    """What is fuzzed: the check, and the load of what passed."""
    checked = check_adapter(folder, MODULES)
    for lora in read_weights(folder, digest=checked.digest).values():
        assert np.isfinite(lora.a).all()
        assert np.isfinite(lora.b).all()
        assert math.isfinite(lora.scale)


def _agrees(data: bytes) -> bool:
    try:
        names = {name for name, _ in safetensors.deserialize(data)}
    except safetensors.SafetensorError:
        return False
    return names == {
        f"base_model.model.{module}.lora_{side}.weight" for module in MODULES for side in "AB"
    } or (0 < len(names) < 4)


def fuzz(
    inputs: int, seed: int, first: int = 0, target: Callable[[Path], None] = verify, home: str | None = None
) -> Figures:
    """Puts mutated adapters before ``target``, in a folder in memory where there is one."""
    figures = Figures(seed)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=home or _memory()) as root, _alarmed():
        samples = seeds(Path(root))
        folder = Path(root, "input")
        folder.mkdir()
        before = _peak_mib()
        for number in range(first, first + inputs):
            random = Random(seed * 2**40 + number)
            files = mutated(random.choice(samples), random)
            for name, data in zip((CONFIG_FILE, WEIGHTS_FILE), files, strict=True):
                (folder / name).write_bytes(data)
            _judge(figures, number, folder, files, target)
            if figures.inputs % TOLD == 0:
                print(
                    f"{figures.inputs} inputs, {figures.crashes} crashes, {figures.hangs} hangs",
                    file=sys.stderr,
                )
        figures.grown_mib = round(_peak_mib() - before, 1)
    figures.seconds = round(time.perf_counter() - began, 1)
    return figures


def _judge(figures: Figures, number: int, folder: Path, files: Files, target: Callable[[Path], None]) -> None:
    figures.inputs += 1
    began = time.process_time()
    _arm(SECONDS, STILL_SECONDS)
    try:
        target(folder)
        figures.accepted += 1
        if not _agrees(files[1]):
            figures.disagreements += 1
            figures.first.append(f"{number}: accepted, but safetensors reads it otherwise")
    except LorauterError as error:
        figures.reasons[error.reason] = figures.reasons.get(error.reason, 0) + 1
    except _HangError:
        figures.hangs += 1
        figures.first.append(f"{number}: over {SECONDS} s of a processor, or {STILL_SECONDS} s in all")
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        figures.crashes += 1
        figures.first.append(f"{number}: {type(error).__name__}: {error}"[:300])
    finally:
        _arm(0, 0)
    del figures.first[KEPT:]
    figures.slowest_ms = max(figures.slowest_ms, round((time.process_time() - began) * 1e3, 1))


def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _arm(busy_seconds: float, seconds: float) -> None:
    signal.setitimer(signal.ITIMER_PROF, busy_seconds)
    signal.setitimer(signal.ITIMER_REAL, seconds)


@contextmanager
def _alarmed() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise _HangError

    former = {number: signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)}
    try:
        yield
    finally:
        _arm(0, 0)
        for number, handler in former.items():
            signal.signal(number, handler)


@contextmanager
def bounded(more_bytes: int = MEMORY_BYTES) -> Iterator[None]:
    """Bounds the address space of this process: what asks for more gets a MemoryError, which is a crash."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    former = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + more_bytes, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, former)


def main() -> int:
    """Prints the figures as JSON; the status is 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    given = parser.parse_args()
    with bounded():
        figures = fuzz(given.inputs, given.seed, given.first)
    print(json.dumps(asdict(figures), indent=2))
    return 1 if figures.crashes or figures.hangs or figures.disagreements else 0


if __name__ == "__main__":
    sys.exit(main())
