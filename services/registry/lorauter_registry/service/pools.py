"""Pools: base models with their adapters and backends."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from sqlmodel import col, select

from lorauter.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from lorauter.lora.chat_format import read_chat_format
from lorauter.lora.check import read_modules
from lorauter.store import Write, tables
from lorauter_registry.domain.answers import PoolList
from lorauter_registry.domain.requests import (
    CreatePool,
    GetById,
    ListPools,
    UpdatePool,
)
from lorauter_registry.domain.resources import Pool
from lorauter_registry.service.base import Part, check_etag, touch
from lorauter_registry.service.lists import paginate
from lorauter_registry.service.rows import pool_of


class Pools(Part):
    """Pools: base models with their adapters and backends."""

    def create_pool(self, request: CreatePool) -> Pool:
        """Creates a pool.

        Reads digests and modules from ``base_path`` before the transaction. Raises AlreadyExists
        (POOL_EXISTS), InvalidArgument (PATH_NOT_ALLOWED, …) or FailedPrecondition (BASE_UNREADABLE, …).
        """
        if answer := self.answered(request, Pool):
            return answer
        base = self._read_base(request)

        def change(tx: Write) -> Pool:
            if tx.session.get(tables.Pool, (self.tenant, request.id)):
                raise AlreadyExists(
                    "POOL_EXISTS", f"pool {request.id!r} exists: update it, or choose another id"
                )
            row = tables.Pool(
                tenant=self.tenant,
                id=request.id,
                description=request.description,
                base_model=request.base_model,
                base_revision=request.base_revision,
                weights_digest=base.weights_digest,
                tokenizer_digest=base.tokenizer_digest,
                aliases=list(request.aliases),
                modules={name: list(shape) for name, shape in base.modules.items()},
                chat_format=base.chat_format,
                untypical_policy=request.untypical_policy,
                serving=request.serving.model_dump(mode="json"),
                generation=tx.generation,
                create_time=tx.now,
                update_time=tx.now,
            )
            tx.session.add(row)
            tx.owe("index", row.id)
            return pool_of(row)

        return self.changing(request, Pool, change)

    def get_pool(self, request: GetById) -> Pool:
        """Returns a pool; raises NotFound (POOL_NOT_FOUND)."""
        with self.reading() as session:
            return pool_of(self.existing(session, tables.Pool, "pool", request.id))

    def list_pools(self, request: ListPools) -> PoolList:
        """Lists pools by id."""
        statement = select(tables.Pool).where(tables.Pool.tenant == self.tenant)
        with self.reading() as session:
            pools, token = paginate(
                session,
                statement,
                self.tenant,
                request,
                [col(tables.Pool.id)],
                lambda rows: [pool_of(row) for row in rows],
            )
        return PoolList(pools=pools, next_page_token=token)

    def update_pool(self, request: UpdatePool) -> Pool:
        """Changes a pool; raises NotFound (POOL_NOT_FOUND) or Conflict (ETAG_MISMATCH)."""

        def change(tx: Write) -> Pool:
            row = self.existing(tx.session, tables.Pool, "pool", request.id, lock=True)
            check_etag(row, request.etag)
            if request.description is not None:
                row.description = request.description
            if request.replace_aliases:
                row.aliases = list(request.aliases)
            if request.untypical_policy is not None:
                row.untypical_policy = request.untypical_policy
            if request.serving is not None:
                row.serving = request.serving.model_dump(mode="json")
            touch(row, tx)
            tx.owe("index", row.id)
            return pool_of(row)

        return self.changing(request, Pool, change)

    def _read_base(self, request: CreatePool) -> _Base:
        if not request.base_path:
            named = {module.name: (module.in_features, module.out_features) for module in request.modules}
            return _Base(modules=named)
        if request.modules:
            raise InvalidArgument("INVALID_FIELD", "give base_path or modules, not both", field="modules")
        folder = self.context.folders.allowed(request.base_path)
        return _Base(
            modules=read_modules(folder),
            weights_digest=_digest_of(sorted(folder.glob("*.safetensors"))),
            tokenizer_digest=_digest_of([folder / "tokenizer.json"]),
            chat_format=_chat_format(folder),
        )


@dataclass(frozen=True, slots=True)
class _Base:
    modules: dict[str, tuple[int, int]] = field(default_factory=dict)
    weights_digest: str = ""
    tokenizer_digest: str = ""
    chat_format: dict[str, str] = field(default_factory=dict)


def _chat_format(folder: Path) -> dict[str, str]:
    try:
        known = read_chat_format(folder, follow_links=True)
    except ValueError as error:
        raise FailedPrecondition("BASE_UNREADABLE", f"base model: {error}: mend the file") from None
    return known.to_json() if known else {}


def _digest_of(files: list[Path]) -> str:
    """Returns the sha256 of one file, or of the lines `digest  name` of several; empty if none is there."""
    digests = []
    for path in files:
        if path.is_file():
            with path.open("rb") as file:
                digests.append((hashlib.file_digest(file, "sha256").hexdigest(), path.name))
    if len(digests) <= 1:
        return f"sha256:{digests[0][0]}" if digests else ""
    lines = "".join(f"{digest}  {name}\n" for digest, name in digests)
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"
