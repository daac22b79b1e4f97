"""The sentence encoder: texts to unit vectors. Importing this loads no model and no torch."""

from lorauter.encoder.encoder import (
    DEFAULT_ENCODER,
    Encoder,
    SentenceEncoder,
    encoder_directory,
    load_encoder,
    preload,
)
from lorauter.encoder.files import files_digest

__all__ = [
    "DEFAULT_ENCODER",
    "Encoder",
    "SentenceEncoder",
    "encoder_directory",
    "files_digest",
    "load_encoder",
    "preload",
]
