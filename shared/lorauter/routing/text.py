"""The one function that says which text of a request is routed; needs no numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lorauter.errors import InvalidArgument

MAX_QUERY_BYTES = 1024 * 1024
"""Longest routed text in UTF-8; an encoder reads far less of it."""

SYSTEM_ROLES = frozenset({"system", "developer"})
ROLES = SYSTEM_ROLES | {"user", "assistant", "tool"}


def routed_text(source: str | Sequence[Mapping[str, str]]) -> str:
    """Returns the text to route: a prompt as it is, or a conversation's system text and first user turn.

    Messages have ``role`` and ``content``. The system text is every system message before the first user
    message, joined by blank lines: later turns do not change it, so a conversation keeps its decision.
    Raises InvalidArgument: EMPTY_QUERY, QUERY_TOO_LARGE (over 1 MiB of UTF-8), QUERY_HAS_NUL,
    QUERY_NOT_UNICODE (a lone surrogate), INVALID_ROLE, NO_USER_TURN.
    """
    if isinstance(source, str):
        return check_text(source, "query")
    if not source:
        raise InvalidArgument(
            "EMPTY_QUERY", "messages is empty: send at least a user message", field="messages"
        )
    parts: list[str] = []
    for number, message in enumerate(source):
        role, content = message.get("role", ""), message.get("content", "")
        if role not in ROLES:
            raise InvalidArgument(
                "INVALID_ROLE",
                f"messages[{number}].role {role[:40]!r} is unknown: use system, user, assistant or tool",
                field=f"messages[{number}].role",
            )
        if role == "user":
            check_text(content, f"messages[{number}].content")
            return check_text("\n\n".join([*parts, content]), "messages")
        if role in SYSTEM_ROLES and content.strip():
            parts.append(content)
    raise InvalidArgument(
        "NO_USER_TURN",
        "messages holds no user message: the first user turn is what is routed",
        field="messages",
    )


def check_text(text: str, field: str) -> str:
    """Returns ``text`` if it can be routed, else raises as routed_text does; ``field`` says where it was."""
    if len(text) > MAX_QUERY_BYTES or (len(text) > MAX_QUERY_BYTES // 4 and _size(text) > MAX_QUERY_BYTES):
        raise InvalidArgument(
            "QUERY_TOO_LARGE",
            f"{field} is over {MAX_QUERY_BYTES} bytes of UTF-8: shorten it",
            field=field,
            limit_bytes=str(MAX_QUERY_BYTES),
        )
    if not text.strip():
        raise InvalidArgument(
            "EMPTY_QUERY", f"{field} is empty or only white space: send the text to route", field=field
        )
    if "\0" in text:
        raise InvalidArgument("QUERY_HAS_NUL", f"{field} holds a NUL character: remove it", field=field)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(
            "QUERY_NOT_UNICODE",
            f"{field} holds a lone surrogate at character {error.start}: send valid Unicode",
            field=field,
        ) from None
    return text


def _size(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))
