"""Registration of adapters: files are checked and copied first, then one write makes the version."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlmodel import col, select

from lorauter.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    Unavailable,
    UnprocessableRequest,
)
from lorauter.lora.chat_format import CHAT_FORMAT_MISMATCH, ChatFormat, check_chat_format
from lorauter.lora.check import CONFIG_FILE, CheckedAdapter
from lorauter.lora.config import MAX_CONFIG_BYTES, AdapterConfig, parse_config
from lorauter.lora.strict import open_regular
from lorauter.store import Write, tables
from lorauter_registry.domain.adapter_requests import RegisterAdapter
from lorauter_registry.domain.adapters import advance
from lorauter_registry.domain.resources import Adapter, AdapterState
from lorauter_registry.service.adapters import Adapters
from lorauter_registry.service.base import touch


class Registration(Adapters):
    """Adapters, and how they come in."""

    def register_adapter(self, request: RegisterAdapter) -> Adapter:
        """Registers an adapter, or a new version of one, from files that pass all checks.

        A version whose files are active already under this id is not made again; then only a given
        description and given tags may change. Raises NotFound (POOL_NOT_FOUND), AlreadyExists
        (ADAPTER_EXISTS) if the id is another pool's, InvalidArgument (PATH_NOT_ALLOWED, RESERVED_ID, …),
        UnprocessableRequest (ADAPTER_BASE_MISMATCH, the reasons of check_adapter and check_chat_format),
        FailedPrecondition (ADAPTER_QUARANTINED) or Unavailable (HUB_UNAVAILABLE,
        ADAPTER_STORE_UNAVAILABLE); then nothing is stored.
        """
        if answer := self.answered(request, Adapter):
            return answer
        with self.reading() as session:
            pool = self.existing(session, tables.Pool, "pool", request.pool)
            self._check_id(session.get(tables.Adapter, (self.tenant, request.id)), request, pool)
        with self._files(request) as folder:
            checked, assumed = self._admit(folder, request, pool)

        def change(tx: Write) -> Adapter:
            row = tx.session.get(tables.Adapter, (self.tenant, request.id), with_for_update=True)
            self._check_id(row, request, pool)
            self._check_recalls(tx, checked.digest)
            known = row is not None and self._is_active(tx, row, checked.digest)
            if row is None:
                row = self._new_adapter(tx, request)
            elif not _describe(row, request) and known:
                tx.withdraw()
                return self.shown(tx.session, [row], tx.now)[0]
            else:
                touch(row, tx)
            if not known:
                self._add_version(tx, row, request, checked, assumed)
            tx.owe("index", row.pool)
            return self.shown(tx.session, [row], tx.now)[0]

        return self.changing(request, Adapter, change)

    @contextmanager
    def _files(self, request: RegisterAdapter) -> Iterator[Path]:
        if request.hub is not None:
            with self.context.hub.fetched(request.hub) as folder:
                yield folder
        else:
            with self.context.folders.opened(request.path or "") as folder:
                yield folder

    def _admit(
        self, folder: Path, request: RegisterAdapter, pool: tables.Pool
    ) -> tuple[CheckedAdapter, bool]:
        """Checks the files, copies them into the store; returns them and whether the base was assumed."""
        modules = {name: (shape[0], shape[1]) for name, shape in pool.modules.items()}
        limits = self.context.limits
        config = _readable_config(folder, limits.max_rank)
        if config is not None:
            _check_base(config, request, pool)
        vouched = _check_chat_format(folder, request, pool)
        try:
            checked = self.context.store.admit(folder, modules, limits)
        except OSError as error:
            raise Unavailable(
                "ADAPTER_STORE_UNAVAILABLE",
                f"the adapter store cannot be written ({error.strerror}): see to its disk, then retry",
            ) from error
        return checked, _check_base(checked.config, request, pool) or vouched

    def _check_id(self, row: tables.Adapter | None, request: RegisterAdapter, pool: tables.Pool) -> None:
        if request.id in {pool.base_model, *pool.aliases}:
            raise InvalidArgument(
                "RESERVED_ID", f"{request.id!r} names the pool's base model: choose another id", field="id"
            )
        if row is not None and row.pool != request.pool:
            raise AlreadyExists(
                "ADAPTER_EXISTS", f"adapter {request.id!r} belongs to pool {row.pool!r}: choose another id"
            )

    def _check_recalls(self, tx: Write, digest: str) -> None:
        version = tables.AdapterVersion
        statement = select(version.adapter_id, version.state_reason).where(
            version.tenant == self.tenant,
            version.digest == digest,
            version.state == AdapterState.QUARANTINED,
        )
        recalled = tx.session.exec(statement.limit(1)).first()
        if recalled is not None:
            raise FailedPrecondition(
                "ADAPTER_QUARANTINED",
                f"these files were recalled as adapter {recalled[0]!r}: {recalled[1]}",
                digest=digest,
            )

    def _is_active(self, tx: Write, row: tables.Adapter, digest: str) -> bool:
        version = tables.AdapterVersion
        statement = select(col(version.version)).where(
            version.tenant == self.tenant,
            version.adapter_id == row.id,
            version.digest == digest,
            version.state == AdapterState.ACTIVE,
        )
        return tx.session.exec(statement.limit(1)).first() is not None

    def _new_adapter(self, tx: Write, request: RegisterAdapter) -> tables.Adapter:
        row = tables.Adapter(
            tenant=self.tenant,
            id=request.id,
            pool=request.pool,
            description=request.description,
            tags=list(request.tags),
            generation=tx.generation,
            create_time=tx.now,
            update_time=tx.now,
        )
        tx.session.add(row)
        tx.session.flush()
        return row

    def _add_version(
        self,
        tx: Write,
        row: tables.Adapter,
        request: RegisterAdapter,
        checked: CheckedAdapter,
        assumed: bool,
    ) -> None:
        row.latest_version += 1
        state = advance(AdapterState.REGISTERED, AdapterState.VERIFIED, AdapterState.ACTIVE)
        tx.session.add(
            tables.AdapterVersion(
                tenant=self.tenant,
                adapter_id=row.id,
                version=row.latest_version,
                digest=checked.digest,
                source=f"hub:{request.hub}" if request.hub is not None else f"path:{request.path}",
                base_model=checked.config.base_model,
                base_assumed=assumed,
                rank=checked.config.rank,
                alpha=checked.config.alpha,
                rslora=checked.config.rslora,
                target_modules=list(checked.config.target_modules),
                size_bytes=checked.size_bytes,
                state=state,
                create_time=tx.now,
            )
        )


def _readable_config(folder: Path, max_rank: int) -> AdapterConfig | None:
    """Returns the config, so that a foreign base is refused before anything is copied.

    None if the file cannot be read: the store's check says why.
    """
    try:
        with open_regular(folder / CONFIG_FILE, alone=True) as file:
            return parse_config(file.read(MAX_CONFIG_BYTES + 1), max_rank)
    except OSError:
        return None


def _check_base(config: AdapterConfig, request: RegisterAdapter, pool: tables.Pool) -> bool:
    if config.base_model in {pool.base_model, *pool.aliases}:
        return False
    if request.assume_base:
        return True
    raise UnprocessableRequest(
        "ADAPTER_BASE_MISMATCH",
        f"the adapter is for base model {config.base_model[:200]!r}, pool {pool.id!r} has "
        f"{pool.base_model!r}: choose its pool, add the name to the pool's aliases, or vouch for it with "
        "assume_base",
        adapter_base_model=config.base_model[:200],
        pool_base_model=pool.base_model,
    )


def _check_chat_format(folder: Path, request: RegisterAdapter, pool: tables.Pool) -> bool:
    """Returns whether the caller vouches for an adapter that was trained on another chat format."""
    if not pool.chat_format:
        return False
    try:
        check_chat_format(folder, ChatFormat(**pool.chat_format))
    except UnprocessableRequest as error:
        if error.reason != CHAT_FORMAT_MISMATCH or not request.assume_base:
            raise
        return True
    return False


def _describe(row: tables.Adapter, request: RegisterAdapter) -> bool:
    """Takes over a given description and given tags; returns whether that changed anything."""
    before = (row.description, list(row.tags))
    row.description = request.description or row.description
    row.tags = list(request.tags) or row.tags
    return before != (row.description, list(row.tags))
