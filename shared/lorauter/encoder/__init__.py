"""The sentence encoder: texts to unit vectors. Importing this loads no model and neither of the libraries."""

from lorauter.encoder.cache import Precision
from lorauter.encoder.encoder import (
    DEFAULT_ENCODER,
    Encoder,
    SentenceEncoder,
    encoder_directory,
    load_encoder,
    preload,
)
from lorauter.encoder.files import files_digest
from lorauter.encoder.onnx import MAX_CHARACTERS, OnnxEncoder

__all__ = [
    "DEFAULT_ENCODER",
    "MAX_CHARACTERS",
    "Encoder",
    "OnnxEncoder",
    "Precision",
    "SentenceEncoder",
    "encoder_directory",
    "files_digest",
    "load_encoder",
    "preload",
]
