"""Compositions that gateways want written out, and what became of them, on their way through Redis.

A gateway that meets a decision whose composite it does not know adds an entry to the stream WANTED, once in
ASKED_SECONDS for each key. A worker writes the composite into the adapter store and sets the key's field of
the hash WRITTEN: to a Written, or to a Refusal that counts for a while. Losing Redis costs only time.
Constructing a value that is out of bounds raises ValueError.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from lorauter.errors import InvalidArgument

WANTED = "lorauter:compositions:wanted"
"""The stream of what is wanted; entries are removed by the worker that takes them."""

WRITTEN = "lorauter:compositions:written"
"""The hash of what became of it, by key_of()."""

MOST_WAITING = 1000
"""Entries of the stream; more than that push the oldest ones out."""

MOST_WRITTEN = 1000
"""Fields of the hash; of what is wanted beyond, who has more than its share is refused."""

ASKED_SECONDS = 60
"""How long what was asked for is not asked for again."""

WEIGHT_DECIMALS = 6
"""As many as a composite's recipe has."""

_MOST_MEMBERS_BYTES = 16 * 1024
_MOST_ENTRY_BYTES = 32 * 1024
_CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)

Kind = Literal["tgi", "vllm"]
Name = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f/]+$")]
Id = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]


@dataclass(frozen=True, config=_CONFIG)
class Member:
    """An adapter of a composition: a version, the address of its content, and its weight."""

    adapter_id: Id
    version: Annotated[int, Field(ge=1, le=2**31 - 1)]
    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    weight: Annotated[float, Field(ge=-1e6, le=1e6)]


Members = Annotated[tuple[Member, ...], Field(min_length=1, max_length=16)]


@dataclass(frozen=True, config=_CONFIG)
class Wanted:
    """A composition that a tenant's pool wants for a kind of server.

    ``max_rank`` and ``shards`` are the server's: the largest rank that it loads, and over how many GPUs it
    splits every layer.
    """

    tenant: Name
    pool: Id
    backend_kind: Kind
    max_rank: Annotated[int, Field(ge=1, le=1024)]
    shards: Annotated[int, Field(ge=1, le=1024)]
    members: Members

    def entry(self) -> dict[str, str]:
        """Returns the fields of a stream entry."""
        plain = asdict(self)
        return {name: str(value) for name, value in plain.items()} | {"members": json.dumps(plain["members"])}

    @classmethod
    def read(cls, entry: Mapping[bytes, bytes]) -> Wanted:
        """Returns what a stream entry wants; raises InvalidArgument (BAD_WANTED_COMPOSITION)."""
        try:
            members = entry[b"members"]
            if len(members) > _MOST_MEMBERS_BYTES or len(entry) > len(cls.__dataclass_fields__):
                raise ValueError
            fields = {name.decode(): value.decode() for name, value in entry.items()}
            return _WANTED.validate_python({**fields, "members": json.loads(members)})
        except (ValueError, KeyError, RecursionError) as error:
            raise _bad("BAD_WANTED_COMPOSITION", error) from None


@dataclass(frozen=True, config=_CONFIG)
class Written:
    """A composite that is in the adapter store, in the folder ``name``."""

    name: Annotated[str, Field(pattern=r"^mix-[0-9a-f]{16}$")]
    rank: Annotated[int, Field(ge=1, le=1024)]
    members: Members


@dataclass(frozen=True, config=_CONFIG)
class Refusal:
    """Why a composite was not written, as a LorauterError says it; it counts until ``until``, a Unix time."""

    reason: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]{0,62}$")]
    message: Annotated[str, Field(max_length=1000)]
    until: float

    def counts(self, now: float | None = None) -> bool:
        """Whether there is no point in asking again yet; ``now`` is Unix time."""
        return (time.time() if now is None else now) < self.until


def key_of(wanted: Wanted) -> str:
    """Returns the field of WRITTEN: for whom, for which kind of server, and the members in any order."""
    for_whom = f"{wanted.tenant}/{wanted.pool}"
    server = f"{wanted.backend_kind}/{wanted.max_rank}/{wanted.shards}"
    return f"{for_whom}/{server}/{_members_key(wanted.members)}"


def tenant_of(key: str) -> str:
    """Returns the tenant in a key_of()."""
    return key.partition("/")[0]


def asked_key(key: str) -> str:
    """Returns the Redis key that says, while it lives, that somebody asked for a key_of()."""
    return f"lorauter:compositions:asked:{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}"


def dump_fate(fate: Written | Refusal) -> str:
    """Returns what WRITTEN holds for a key."""
    return json.dumps(asdict(fate))


def read_fate(data: bytes) -> Written | Refusal:
    """Returns what became of a wanted composition; raises InvalidArgument (BAD_WRITTEN_COMPOSITION)."""
    try:
        if len(data) > _MOST_ENTRY_BYTES:
            raise ValueError
        return _FATE.validate_json(data)
    except ValueError as error:
        raise _bad("BAD_WRITTEN_COMPOSITION", error) from None


def _members_key(members: Sequence[Member]) -> str:
    return ",".join(sorted(f"{member.digest}:{_rounded(member.weight):.6f}" for member in members))


def _rounded(weight: float) -> float:
    return round(weight, WEIGHT_DECIMALS) + 0.0  # no -0


def _bad(reason: str, error: Exception) -> InvalidArgument:
    return InvalidArgument(
        reason, f"not a composition ({type(error).__name__}): are gateway and worker of one version?"
    )


_WANTED: TypeAdapter[Wanted] = TypeAdapter(Wanted)
_FATE: TypeAdapter[Written | Refusal] = TypeAdapter(Written | Refusal)
