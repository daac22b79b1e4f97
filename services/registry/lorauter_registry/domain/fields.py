"""The kinds of values that requests are made of, with their bounds."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
)

from lorauter.errors import InvalidArgument
from lorauter.identifiers import check_adapter_id, check_id

MAX_INT32 = 2**31 - 1
MAX_INT64 = 2**63 - 1
MAX_TAGS = 32
DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1_000

_SCHEMES = ("http", "https", "dns+http", "dns+https")


class Value(BaseModel):
    """An immutable value without surprises: what it does not know, it refuses."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


def refusal(error: ValidationError) -> InvalidArgument:
    """Returns the error for the first thing that was wrong with a value, with its place as ``field``.

    A problem's type that is a reason of lorauter's stays that reason.
    """
    problem = error.errors(include_url=False, include_input=False)[0]
    field = ""
    for part in problem["loc"]:
        field += f"[{part}]" if isinstance(part, int) else f".{part}" if field else part
    kind = problem["type"]
    reason = kind if kind.isupper() else "MISSING_FIELD" if kind == "missing" else "INVALID_FIELD"
    return InvalidArgument(reason, f"{field or 'request'}: {problem['msg']}", field=field)


def check_text(value: str, info: ValidationInfo | None = None) -> str:
    """Returns ``value`` if PostgreSQL can store it, else raises InvalidArgument (INVALID_TEXT)."""
    field = (info and info.field_name) or "text"
    if "\x00" in value:
        raise InvalidArgument("INVALID_TEXT", f"{field} holds the character U+0000: remove it", field=field)
    try:
        value.encode()
    except UnicodeEncodeError:
        message = f"{field} holds half a surrogate pair: send whole Unicode characters"
        raise InvalidArgument("INVALID_TEXT", message, field=field) from None
    return value


def _identifier(value: str, info: ValidationInfo) -> str:
    return check_id(check_text(value, info), info.field_name or "id")


def _adapter_identifier(value: str, info: ValidationInfo) -> str:
    return check_adapter_id(check_text(value, info))


def _optional_identifier(value: str, info: ValidationInfo) -> str:
    return _identifier(value, info) if value else value


def _alias(value: str) -> str:
    check_id(value, "alias")
    if value.isdigit():
        raise InvalidArgument(
            "INVALID_ID", f"alias {value!r} looks like a version: use a letter in it", field="alias"
        )
    return value


def _backend_url(value: str, info: ValidationInfo) -> str:
    try:
        parts = urlsplit(check_text(value, info))
        valid = parts.scheme in _SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if valid and parts.scheme == "dns+https":
        raise InvalidArgument(
            "INVALID_URL",
            "url begins with dns+https://, but a certificate is for a name, not for each address behind it: "
            "use https:// for the name as a whole, or dns+http://",
            field="url",
        )
    if not valid or parts.username or parts.password or parts.query or parts.fragment:
        raise InvalidArgument(
            "INVALID_URL",
            "url is not a base URL: use http://, https:// or dns+http://, a host, a port and a path, and no "
            "credentials",
            field="url",
        )
    return value.rstrip("/")


def _unique(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))


Text = Annotated[str, AfterValidator(check_text)]
Name = Annotated[Text, Field(min_length=1, max_length=512)]
Description = Annotated[Text, Field(max_length=4_096)]
Id = Annotated[str, AfterValidator(_identifier)]
AdapterId = Annotated[str, AfterValidator(_adapter_identifier)]
OptionalId = Annotated[str, AfterValidator(_optional_identifier)]
"""An id, or empty for none."""
Alias = Annotated[str, AfterValidator(_alias)]
Tag = Annotated[Text, Field(min_length=1, max_length=63)]
Tags = Annotated[tuple[Tag, ...], Field(max_length=MAX_TAGS), AfterValidator(_unique)]
BaseAliases = Annotated[tuple[Name, ...], Field(max_length=64), AfterValidator(_unique)]
BackendUrl = Annotated[str, Field(max_length=2_048), AfterValidator(_backend_url)]
Count = Annotated[int, Field(ge=0, le=MAX_INT32)]
Version = Annotated[int, Field(ge=0, le=MAX_INT32)]
Share = Annotated[float, Field(ge=0, le=1)]
Moment = AwareDatetime
"""A time with its offset, as in RFC 3339."""
Etag = Annotated[Text, Field(max_length=128)]
RequestId = Annotated[Text, Field(max_length=128)]


class WriteRequest(Value):
    """A write, idempotent if it has a ``request_id``."""

    request_id: RequestId = Field("", description="Makes the write idempotent for 24 hours.")


class Change(WriteRequest):
    """A write on what exists, guarded by the ``etag`` that was read."""

    etag: Etag = Field("", description="The etag that was read. Empty: whatever it is now.")


class PageRequest(Value):
    """Asks for a page."""

    page_size: int = Field(
        0, ge=0, description="At most this many, 1 to 1,000; larger values are lowered. 0 means 100."
    )
    page_token: str = Field("", max_length=2_048, description="The `next_page_token` of the page before.")

    @property
    def limit(self) -> int:
        """The number of items that a page may have."""
        return min(self.page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
