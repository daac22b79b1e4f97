"""Generates the committed stubs from protos/, or with --check says which of them are out of date."""

from __future__ import annotations

import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
PACKAGE = ROOT / "shared"


def main() -> int:
    """Writes the stubs, or compares them; returns the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        made = generate(Path(folder))
        existing = [path.relative_to(PACKAGE) for path in PACKAGE.glob("lorauter/*/v*/*_pb2*.py*")]
        if "--check" in sys.argv[1:]:
            return compare(Path(folder), made, existing)
        for name in set(existing) - set(made):
            (PACKAGE / name).unlink()
        for name in made:
            target = PACKAGE / name
            target.parent.mkdir(parents=True, exist_ok=True)
            for package in (target.parent, target.parent.parent):
                (package / "__init__.py").touch()
            shutil.copy(Path(folder) / name, target)
    print(f"proto: {len(made)} files are up to date")
    return 0


def generate(folder: Path) -> list[Path]:
    """Runs protoc into ``folder``; returns the names of what it wrote."""
    outputs = [f"--{kind}_out={folder}" for kind in ("python", "grpc_python")]
    outputs += [f"--{kind}_out=quiet:{folder}" for kind in ("mypy", "mypy_grpc")]
    sources = sorted(str(path) for path in PROTOS.rglob("*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", *outputs, *sources]
    # protoc finds its plugins on PATH
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run(command, check=True, env={**os.environ, "PATH": path})
    return sorted(path.relative_to(folder) for path in folder.rglob("*_pb2*.py*"))


def compare(folder: Path, made: list[Path], existing: list[Path]) -> int:
    """Prints every committed stub that differs from what protos/ give."""
    stale = set(existing) ^ set(made)
    stale |= {n for n in set(made) & set(existing) if not filecmp.cmp(folder / n, PACKAGE / n, shallow=False)}
    for name in sorted(stale):
        print(f"shared/{name}: not what protos/ give; run make proto", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
