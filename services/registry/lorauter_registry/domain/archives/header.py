"""What an archive says of itself, first and last."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError

from lorauter.errors import InvalidArgument
from lorauter_registry.domain.archives.columns import Big
from lorauter_registry.domain.archives.framing import refused
from lorauter_registry.domain.archives.rows import ROWS
from lorauter_registry.domain.fields import Count, Text, Value, refusal

V = TypeVar("V", bound=Value)

FORMAT = "lorauter registry"
VERSION = 1
KEYS = "api_key"
OPTIONAL = frozenset({"cached_embedding", KEYS})
"""Tables that an archive may lack."""

MAX_GENERATION = 2**40
"""No registry was changed as often."""

MAX_HEADER_BYTES = 64 * 1024
MAX_END_BYTES = 1024


class Header(Value):
    """What is in an archive. ``rows`` counts them by table; ``generation`` is the registry's number."""

    format: Literal["lorauter registry"]
    version: Literal[1]
    lorauter: Annotated[Text, Field(max_length=64)]
    schema_revision: Annotated[Text, Field(max_length=64)]
    generation: Annotated[int, Field(ge=1, le=MAX_GENERATION)]
    weights: bool
    adapters: Count
    rows: dict[str, Big]


class End(Value):
    """Proves that all before it came as it was written."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def to_json(value: Value) -> bytes:
    """Returns the file of a header or an end."""
    return json.dumps(value.model_dump(), indent=1, sort_keys=True).encode() + b"\n"


def read_header(data: bytes) -> Header:
    """Returns the header in a file.

    Raises UnprocessableRequest: ARCHIVE_MALFORMED, ARCHIVE_VERSION for one that another lorauter wrote.
    """
    found = _object(data, "lorauter.json")
    if found.get("format") != FORMAT:
        raise refused("ARCHIVE_MALFORMED", "is not one of a lorauter registry")
    if found.get("version") != VERSION:
        writer, version = str(found.get("lorauter"))[:64], str(found.get("version"))[:20]
        raise refused(
            "ARCHIVE_VERSION",
            f"is of format version {version}, written by lorauter {writer}; this lorauter reads version "
            f"{VERSION}: import it with that lorauter, then upgrade",
            version=version,
            lorauter=writer,
        )
    header = _checked(Header, found, "lorauter.json")
    if unknown := sorted(set(header.rows) - set(ROWS)):
        raise refused(
            "ARCHIVE_MALFORMED", f"has a table {unknown[0][:80]!r} that this lorauter does not know"
        )
    if lacking := sorted(set(ROWS) - set(header.rows) - OPTIONAL):
        raise refused("ARCHIVE_MALFORMED", f"lacks the table {lacking[0]}")
    return header


def read_end(data: bytes) -> End:
    """Returns the end in a file; raises UnprocessableRequest (ARCHIVE_MALFORMED)."""
    return _checked(End, _object(data, "end.json"), "end.json")


def _object(data: bytes, name: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise refused("ARCHIVE_MALFORMED", f"has a {name} that is not an object in JSON")
    return found


def _checked(kind: type[V], found: dict[str, Any], name: str) -> V:
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        raise refused("ARCHIVE_MALFORMED", f"has a wrong {name}: {refusal(error).message}") from None
    except InvalidArgument as error:
        raise refused("ARCHIVE_MALFORMED", f"has a wrong {name}: {error.message}") from None
