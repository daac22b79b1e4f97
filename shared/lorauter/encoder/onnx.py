"""Encodes with a plain BERT on ONNX Runtime: no torch, and no time lost on padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lorauter.encoder.cache import Precision, model_digest, model_file
from lorauter.encoder.files import most_tokens
from lorauter.errors import FailedPrecondition

MAX_CHARACTERS = 32_768
"""Encoders read a few hundred tokens; the characters beyond this only cost time to cut into tokens."""

_RUN_TEXTS = 32
_RUN_TOKENS = 512
"""Most tokens in one run of the model, padding included, unless one text has more: larger runs leave a CPU's
caches and are slower."""
_RUN_COST = 10
"""What a run costs by itself, in tokens: less padding than that is cheaper than a run more."""

_Cut = TypeVar("_Cut", str, list[int])


class OnnxEncoder:
    """An Encoder for what is_plain_bert is true of. Safe to use from several threads, which run side by side.

    Of a text with more tokens than the model reads, 256 for the default, it reads the first and the last,
    half and half: [CLS], 127 tokens, 127 tokens, [SEP]. Instructions stand at either end. Of a text with over
    32,768 characters it first takes that many, half and half too. Any other text gets the vector that
    sentence-transformers gives it, within 1e-5.

    ``int8`` is twice as fast on one text; its vectors are others, at a cosine of about 0.99, and so is the
    digest. Either way a text's vector does not depend on what is encoded with it.
    """

    def __init__(self, directory: Path, threads: int, precision: Precision = "fp32") -> None:
        """Loads the encoder, which is exported first if that was never done; one run uses ``threads``.

        Raises FailedPrecondition (ENCODER_INVALID, ENCODER_EXPORT_FAILED, ENCODER_CACHE_DAMAGED).
        """
        from tokenizers import Tokenizer

        self.digest = model_digest(directory, precision)
        self._tokens = most_tokens(directory)
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # int8 scales numbers by the largest of a run: a text alone always gets the same vector
        self._run_texts = 1 if precision == "int8" else _RUN_TEXTS
        with model_file(directory, precision, self.digest) as path:
            self._session = _session(path, threads)
        self.dimension = int(self._session.get_outputs()[0].shape[1])

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See Encoder."""
        tokens = self._tokenize(texts)
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        for run in runs([len(ids) for ids in tokens], self._run_texts):
            vectors[run] = self._run([tokens[number] for number in run])
        return vectors

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        # even for one text the batch's function: it lets other threads run
        encodings = self._tokenizer.encode_batch_fast([ends(text, MAX_CHARACTERS) for text in texts])
        return [ends(encoding.ids, self._tokens) for encoding in encodings]

    def _run(self, tokens: list[list[int]]) -> NDArray[np.float32]:
        shape = len(tokens), max(map(len, tokens))
        ids, mask = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        for row, text in enumerate(tokens):
            ids[row, : len(text)] = text
            mask[row, : len(text)] = 1
        vectors: NDArray[np.float32] = self._session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        return vectors


def ends(whole: _Cut, most: int) -> _Cut:
    """Returns ``whole``, or its two ends, half of ``most`` long each, if it is longer than ``most``."""
    return whole if len(whole) <= most else whole[: most // 2] + whole[-(most // 2) :]


def runs(lengths: Sequence[int], most_texts: int) -> Iterator[list[int]]:
    """Yields the positions of texts of these lengths, in tokens, in runs of like lengths, short ones first.

    A run has at most ``most_texts`` texts and, unless it is one text, 512 tokens with its padding. A text
    that would pad the ones before it by more than a run costs begins another run.
    """
    run: list[int] = []
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        length = lengths[number]
        if run and (
            len(run) == most_texts
            or length * (len(run) + 1) > _RUN_TOKENS
            or (length - lengths[run[-1]]) * len(run) > _RUN_COST
        ):
            yield run
            run = []
        run.append(number)
    if run:
        yield run


def _session(path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # threads that wait sleep, so that an idle service costs nothing
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library's errors have no common class
        raise FailedPrecondition(
            "ENCODER_CACHE_DAMAGED",
            f"{path} cannot be loaded ({error}): remove it, it is made again at the next start",
        ) from error
