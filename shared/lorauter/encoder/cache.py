"""Where encoders lie as ONNX files: each is made once, and all processes of a user share it."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from lorauter.encoder.files import files_digest
from lorauter.errors import FailedPrecondition

Precision = Literal["fp32", "int8"]
"""What an encoder computes in."""

_PIPELINE = "onnx-1"
"""Version of all that makes a vector beside the encoder's files: raise it when the exported graph, the cut of
long texts, the quantisation or anything else in this package changes what comes out."""

_FILE = "model.onnx"

_log = logging.getLogger(__name__)


def model_digest(directory: Path, precision: Precision) -> str:
    """Returns ``sha256:<hex>`` of an encoder's files, of the version of our pipeline, and of the precision.

    Raises FailedPrecondition (ENCODER_INVALID).
    """
    content = f"{files_digest(directory)} {_PIPELINE} {precision}"
    return "sha256:" + hashlib.sha256(content.encode()).hexdigest()


@contextmanager
def model_file(directory: Path, precision: Precision, digest: str) -> Iterator[Path]:
    """Lends the ONNX file of a plain BERT: the cache's, or one of our own if the cache cannot be written.

    ``digest`` is its model_digest. Raises FailedPrecondition (ENCODER_EXPORT_FAILED).
    """
    try:
        cached = cached_model(directory, precision, digest)
    except OSError as error:
        _log.warning("%s: the encoder is exported at every start; set XDG_CACHE_HOME to keep it", error)
    else:
        yield cached
        return
    with TemporaryDirectory(prefix="lorauter-encoder-") as folder:
        path = Path(folder) / _FILE
        _export(directory, precision, path)
        yield path


def cached_model(directory: Path, precision: Precision, digest: str) -> Path:
    """Returns the ONNX file of a plain BERT in the user's cache, after making it if it is not there.

    ``digest`` is its model_digest. Making it takes some ten seconds, in a process of its own, so that no
    torch stays in this one; whoever wants the same file meanwhile waits. Raises OSError where the cache
    cannot be written, and FailedPrecondition (ENCODER_EXPORT_FAILED).
    """
    folder = _cache_folder() / digest.removeprefix("sha256:")
    path = folder / _FILE
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "export.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.is_file():
                # The export inherits the lock: if this process is killed, the next one waits for it to end.
                _export(directory, precision, path, lock.fileno())
    return path


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "lorauter" / "encoders"
    except RuntimeError as error:
        raise FileNotFoundError(f"no cache folder: {error}") from error


def _export(directory: Path, precision: Precision, path: Path, *inherited: int) -> None:
    done = subprocess.run(  # noqa: S603
        [
            sys.executable,
            "-m",
            "lorauter.encoder.export",
            str(directory.absolute()),
            precision,
            str(path.absolute()),
        ],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        pass_fds=inherited,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise FailedPrecondition(
            "ENCODER_EXPORT_FAILED",
            f"exporting {directory} to {path} ended with {done.returncode} and said {said!r}: it needs the "
            "packages of lorauter[encoder-export], 1 GB of memory and 200 MB of disk; check them and start "
            "again",
        )
