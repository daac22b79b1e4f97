"""Starts the worker."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from lorauter.errors import LorauterError

_FOLDERS = "lorauter-worker-metrics-"


def main() -> None:
    """Runs the worker until SIGTERM, which lets running tasks finish for LORAUTER_DRAIN_SECONDS."""
    from lorauter_worker.config import Settings

    settings = Settings.load()
    folder = _metrics_folder()
    # Celery and prometheus_client read these when they are imported.
    os.environ["REMAP_SIGTERM"] = "SIGQUIT"
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    from lorauter_worker.wiring import run

    try:
        status = run(settings)
    except LorauterError as error:
        print(f"{error.reason}: {error.message}", file=sys.stderr)
        status = 2
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(status)


def _metrics_folder() -> Path:
    """Makes a folder for this process's metrics, and removes those that killed workers left."""
    parent = Path(tempfile.gettempdir())
    for left in parent.glob(f"{_FOLDERS}*"):
        if not _is_running(left.name.removeprefix(_FOLDERS).partition("-")[0]):
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{_FOLDERS}{os.getpid()}-", dir=parent))


def _is_running(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True


if __name__ == "__main__":
    main()
