"""How a model was taught to read a chat and to end an answer, as the tokenizer's files beside it say."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorauter.errors import UnprocessableRequest
from lorauter.lora.strict import open_regular, refused

TOKENIZER_CONFIG = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
CHAT_FORMAT_FILES = (TOKENIZER_CONFIG, TEMPLATE_FILE)
"""Trainers save these beside an adapter. None is needed, and none is stored."""

CHAT_FORMAT_MISMATCH = "ADAPTER_CHAT_FORMAT_MISMATCH"

MAX_BYTES = 16 * 1024 * 1024
"""Most bytes of each: a configuration that lists a large vocabulary's added tokens has about 1 MiB."""


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """``template`` is the sha256 of the chat template, 64 hex digits; ``eos`` the end token's text.

    Either is empty where the files name none.
    """

    template: str = ""
    eos: str = ""

    def to_json(self) -> dict[str, str]:
        """Returns both by name."""
        return asdict(self)


def read_chat_format(folder: Path, follow_links: bool = False) -> ChatFormat | None:
    """Returns what the files in ``folder`` say, or None if there are none.

    Links, hard ones too, are followed only where asked for: hub caches are made of them. Raises ValueError,
    saying which file cannot be read.
    """
    config = _object(_text(folder / TOKENIZER_CONFIG, follow_links))
    template = _text(folder / TEMPLATE_FILE, follow_links)
    if config is None and template is None:
        return None
    named = config or {}
    template = template or _template(named.get("chat_template"))
    eos = named.get("eos_token")
    if isinstance(eos, dict):
        eos = eos.get("content")
    return ChatFormat(
        template=hashlib.sha256(template.strip().encode()).hexdigest() if template else "",
        eos=eos if isinstance(eos, str) else "",
    )


def check_chat_format(folder: Path, base: ChatFormat) -> None:
    """Returns if an adapter's folder names no other chat template and no other end token than the base's.

    Servers render chats and end answers by the base's files, so such an adapter would answer as it was never
    trained. Raises UnprocessableRequest: ADAPTER_CHAT_FORMAT_MISMATCH, ADAPTER_CONFIG_INVALID.
    """
    try:
        own = read_chat_format(folder)
    except ValueError as error:
        raise refused("ADAPTER_CONFIG_INVALID", f"{error}: mend it or leave it out") from None
    if own is None:
        return
    if own.template and own.template != base.template:
        what = "another chat template than the base model" if base.template else "a chat template of its own"
        raise _mismatch("chat_template", f"the adapter brings {what}")
    if own.eos and base.eos and own.eos != base.eos:
        raise _mismatch(
            "eos_token",
            f"the adapter ends answers with {own.eos[:80]!r}, the base model with {base.eos[:80]!r}",
        )


def _mismatch(field: str, message: str) -> UnprocessableRequest:
    return refused(
        CHAT_FORMAT_MISMATCH,
        f"{message}, but servers use the base's: train on the base's, or vouch for it with assume_base",
        field=field,
    )


def _object(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{TOKENIZER_CONFIG} is not JSON") from None
    if not isinstance(value, dict):
        raise ValueError(f"{TOKENIZER_CONFIG} is not an object")
    return value


def _template(value: Any) -> str:
    """Returns a template as text; named ones, which transformers keeps as a list, in their order by name."""
    if isinstance(value, list):
        return json.dumps(sorted(value, key=str), sort_keys=True)
    return value if isinstance(value, str) else ""


def _text(path: Path, follow_links: bool) -> str | None:
    try:
        with open_regular(path.resolve() if follow_links else path, alone=not follow_links) as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read ({error})") from None
    if len(data) > MAX_BYTES:
        raise ValueError(f"{path.name} is over {MAX_BYTES} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{path.name} is not UTF-8") from None
