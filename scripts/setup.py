"""Makes the virtual environment .venv hold exactly what requirements.lock names; does nothing if it does."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOCK = ROOT / "requirements.lock"
STAMP = VENV / "set-up.stamp"
UNFINISHED = VENV / "set-up.unfinished"
OLDEST = (3, 11)


def main() -> int:
    """Sets up under a lock, so that two makes at once do not disturb each other."""
    ensure_python()
    VENV.mkdir(exist_ok=True)
    with (VENV / "set-up.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # pip inherits the lock: a pip whose set-up was killed keeps the next set-up waiting until it ends.
        os.set_inheritable(lock.fileno(), True)
        if STAMP.is_file() and STAMP.read_text() == fingerprint() and PYTHON.exists():
            return 0
        return set_up()


def ensure_python() -> None:
    """Goes on under a newer Python if this one is too old; says what is missing if there is none."""
    if sys.version_info >= OLDEST:
        return
    for minor in (11, 12, 13, 14):
        found = shutil.which(f"python3.{minor}")
        # what is on PATH may be the shim of a version that is not installed
        if found and subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0:
            os.execv(found, [found, *sys.argv])
    version = ".".join(str(part) for part in sys.version_info[:3])
    sys.exit(
        f"lorauter needs Python 3.11 or newer; {sys.executable} is {version} and no newer one is on PATH.\n"
        "Install one, or name it: make PYTHON=/path/to/python3.11 ..."
    )


def distributions() -> list[Path]:
    """Returns the folders of the distributions, those that others need first."""
    return [ROOT / "shared", *sorted(path.parent for path in ROOT.glob("services/*/pyproject.toml"))]


def fingerprint() -> str:
    """Digests all that the environment is made from, its place and its interpreter included."""
    digest = hashlib.sha256(f"{ROOT}\n{sys.version}\n".encode())
    for path in [LOCK, Path(__file__), *(folder / "pyproject.toml" for folder in distributions())]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def set_up() -> int:
    """Installs everything; a set-up that was cut off is begun anew, as pip cannot tell half a package."""
    started = time.monotonic()
    STAMP.unlink(missing_ok=True)
    if UNFINISHED.exists() or not usable():
        say("set-up 1/5: virtual environment .venv")
        create()
    UNFINISHED.touch()
    torch = next(line for line in LOCK.read_text().splitlines() if line.startswith("torch=="))
    say(f"set-up 2/5: {torch}, the largest part (a CPU build where pip offers one)")
    pip("install", torch, "--constraint", str(LOCK))
    say("set-up 3/5: everything else in requirements.lock")
    pip("install", "--no-deps", "--requirement", str(LOCK))
    say("set-up 4/5: the distributions of this repository")
    editable = [argument for folder in distributions() for argument in ("--editable", str(folder))]
    pip("install", "--no-deps", "--no-build-isolation", *editable)
    say("set-up 5/5: the sentence encoder, exported for ONNX Runtime into the user's cache")
    export()
    UNFINISHED.unlink()
    STAMP.write_text(fingerprint())
    say(f"set-up done in {time.monotonic() - started:.0f} s")
    return 0


def usable() -> bool:
    """Returns whether .venv has a pip that runs, under the Python that runs this."""
    if not PYTHON.exists():
        return False
    probe = "import sys, pip; print(sys.version)"
    done = subprocess.run([PYTHON, "-c", probe], capture_output=True, text=True, check=False)
    return done.returncode == 0 and done.stdout.strip() == sys.version.strip()


def create() -> None:
    """Makes an empty virtual environment, whatever was there."""
    for entry in VENV.iterdir():
        if entry.name == "set-up.lock":
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    done = subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=False)
    if done.returncode != 0:
        sys.exit("Python could not make a virtual environment (on Debian and Ubuntu: install python3-venv)")


def pip(*arguments: str) -> None:
    """Runs pip quietly; its errors are shown, and end the set-up."""
    command = [str(PYTHON), "-m", "pip", "-qq", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, check=False, close_fds=False)
    if done.returncode != 0:
        sys.exit(f"set-up failed: pip ended with {done.returncode}; try make setup again")


def export() -> None:
    """Exports the encoder unless it was before, so that no service has to do it at its start."""
    done = subprocess.run([PYTHON, "-m", "lorauter.encoder"], stdout=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        sys.exit(f"set-up failed: exporting the encoder ended with {done.returncode}; try make setup again")


def say(line: str) -> None:
    """Prints progress to stderr, so that a target's stdout stays its own."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
