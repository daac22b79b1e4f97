"""Runs every check that needs no running service, shows what each one found, and fails if any failed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
BUF_FOLDER = ROOT / "scripts" / "buf"
BUF = BUF_FOLDER / "node_modules" / ".bin" / "buf"


@dataclass(frozen=True)
class Result:
    """What one check ended with: ``passed``, or ``None`` if it could not run, and what it printed."""

    passed: bool | None
    output: str


def main() -> int:
    """Prints one line a check, and everything that a failed one said."""
    folders = ("shared", "services", "tests", "scripts", "benchmarks")
    types = ["--strict", "--num-workers", "2", "--config-file", "pyproject.toml", *folders]
    checks = {
        "format": lambda: run(BIN / "ruff", "format", "--check", "."),
        "lint": lambda: run(BIN / "ruff", "check", "."),
        "types": lambda: run(BIN / "mypy", *types),
        "imports": lambda: run(BIN / "lint-imports", "--no-logo"),
        "proto drift": lambda: run(sys.executable, "scripts/proto.py", "--check"),
        "proto lint": lambda: buf("lint"),
        "proto breaking": breaking,
    }
    failed = []
    for name, check in checks.items():
        started = time.monotonic()
        result = check()
        verdict = {True: "ok", False: "FAILED", None: "not run"}[result.passed]
        note = f": {result.output}" if result.passed is not False and result.output else ""
        print(f"{name:<15} {verdict} ({time.monotonic() - started:.1f} s){note}", flush=True)
        if result.passed is False:
            print(result.output, flush=True)
            failed.append(name)
    print(f"make check: {', '.join(failed)} failed" if failed else "make check: all passed")
    return 1 if failed else 0


def run(*command: str | Path) -> Result:
    """Runs a command in the project's root; its output is kept only if it fails."""
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return Result(done.returncode == 0, "" if done.returncode == 0 else done.stdout.strip())


def buf(*arguments: str) -> Result:
    """Runs buf, which comes as a Node package, after installing the version that package-lock.json pins."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        return Result(None, "buf comes as a Node package, and node or npm is not on PATH")
    pinned = BUF_FOLDER / "package-lock.json"
    installed = BUF_FOLDER / "node_modules" / ".package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < pinned.stat().st_mtime:
        result = run("npm", "ci", "--prefix", BUF_FOLDER, "--ignore-scripts", "--loglevel=error")
        if not result.passed:
            return result
    return run(BUF, *arguments)


def breaking() -> Result:
    """Compares protos/ with those of the last tag, which callers may rely on."""
    described = run_git("describe", "--tags", "--abbrev=0")
    if described.returncode != 0:
        return Result(None, "no tag to compare with yet")
    tag = described.stdout.decode().strip()
    archived = run_git("archive", tag, "--", "protos", "buf.yaml")
    if archived.returncode != 0:
        return Result(None, f"tag {tag} has no protos")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["tar", "-x", "-C", folder], input=archived.stdout, check=True)
        return buf("breaking", "--against", folder)


def run_git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Runs git in the project's root and returns how it ended."""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)


if __name__ == "__main__":
    sys.exit(main())
