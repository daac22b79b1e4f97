"""Starts the worker."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile

from lorauter.errors import LorauterError


def main() -> None:
    """Runs the worker until SIGTERM, which lets running tasks finish for LORAUTER_DRAIN_SECONDS."""
    from lorauter_worker.config import Settings

    settings = Settings.load()
    # Celery and prometheus_client read these when they are imported.
    os.environ["REMAP_SIGTERM"] = "SIGQUIT"
    folder = tempfile.mkdtemp(prefix="lorauter-worker-metrics-")
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    from lorauter_worker.wiring import run

    try:
        status = run(settings)
    except LorauterError as error:
        print(f"{error.reason}: {error.message}", file=sys.stderr)
        status = 2
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
