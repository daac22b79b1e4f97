"""Exports an encoder before services need it: ``python -m lorauter.encoder [NAME] [--precision int8]``."""

from __future__ import annotations

import argparse
import sys

from lorauter.encoder.cache import cached_model, model_digest
from lorauter.encoder.encoder import DEFAULT_ENCODER, encoder_directory
from lorauter.encoder.files import is_plain_bert


def main() -> None:
    """Prints where the exported encoder lies, or why it is not exported."""
    parser = argparse.ArgumentParser(prog="python -m lorauter.encoder", description=__doc__)
    parser.add_argument("name", nargs="?", default=DEFAULT_ENCODER)
    parser.add_argument("--precision", choices=["fp32", "int8"], default="fp32")
    arguments = parser.parse_args()
    directory = encoder_directory(arguments.name)
    if not is_plain_bert(directory):
        print(f"{arguments.name} runs on sentence-transformers: nothing to export")
        return
    digest = model_digest(directory, arguments.precision)
    try:
        print(cached_model(directory, arguments.precision, digest))
    except OSError as error:
        print(
            f"{error}: services export the encoder at every start; set XDG_CACHE_HOME to keep it",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
