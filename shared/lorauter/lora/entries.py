"""Looks at the names in an adapter's folder: nothing that runs, nothing that leads out, nothing ambiguous."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

from lorauter.errors import UnprocessableRequest
from lorauter.lora.strict import refused

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

_PICKLE = re.compile("bin|pt|pth|ckpt|pkl?|pickle|dill|joblib|np[yz]|t7|mar|nemo|distcp|h5|hdf5|keras")
"""Endings of formats that may run code when they are loaded."""

_PROGRAM = re.compile(
    "py[cdwz]?|so|dll|dylib|exe|sh|bash|bat|cmd|ps1|js|wasm|jar|whl|egg|class|zip|tar|t?gz|bz2|xz|zst|7z|rar"
)
"""Endings of programs, and of archives, in which anything may be."""

_TEXT = re.compile("md|txt|jsonl?|ya?ml|jinja")

MAX_ENTRIES = 1_000
"""Most files in an adapter's folder."""

_ADVICE = f"leave only {CONFIG_FILE} and {WEIGHTS_FILE} in it"


def check_entries(directory: Path) -> None:
    """Returns if the names in ``directory`` may stand in an adapter's folder. No file is opened.

    Only two files are ever read, but somebody down the line might load another. Raises UnprocessableRequest:
    ADAPTER_NOT_FOUND, ADAPTER_TOO_LARGE, ADAPTER_PICKLE, ADAPTER_CODE, ADAPTER_FILE_NAME,
    ADAPTER_FILE_NOT_REGULAR.
    """
    try:
        with os.scandir(directory) as entries:
            for count, entry in enumerate(entries):
                if count >= MAX_ENTRIES:
                    raise refused("ADAPTER_TOO_LARGE", f"the folder holds over {MAX_ENTRIES} files")
                _check_name(entry.name)
                _check_kind(entry)
    except OSError:
        raise refused("ADAPTER_NOT_FOUND", "the path is not a readable folder") from None


def _check_name(name: str) -> None:
    spelled = unicodedata.normalize("NFKC", name).casefold()
    if not name.isprintable() or (spelled in (CONFIG_FILE, WEIGHTS_FILE) and name != spelled):
        raise _forbidden("ADAPTER_FILE_NAME", name, "a name that programs read differently")
    endings = [ending.strip() for ending in spelled.split(".")[1:]]
    # All count, as in `x.pkl.old`, but not in the names of texts: `model.bin.index.json`, `README.pt.md`.
    for ending in [] if endings and _TEXT.fullmatch(endings[-1]) else endings:
        if _PICKLE.fullmatch(ending):
            raise _forbidden("ADAPTER_PICKLE", name, "a format that may run code")
        if _PROGRAM.fullmatch(ending):
            raise _forbidden("ADAPTER_CODE", name, "a program or an archive")


def _forbidden(reason: str, name: str, what: str) -> UnprocessableRequest:
    return refused(reason, f"the folder holds {name[:100]!a}, {what}: {_ADVICE}")


def _check_kind(entry: os.DirEntry[str]) -> None:
    if not entry.is_file(follow_symlinks=False) and not entry.is_dir(follow_symlinks=False):
        raise refused(
            "ADAPTER_FILE_NOT_REGULAR",
            f"the folder holds {entry.name[:100]!a}, a link, pipe, socket or device: copy the file itself",
        )
