"""Backends: the inference servers of pools."""

from __future__ import annotations

from urllib.parse import urlsplit

from sqlmodel import col, select

from lorauter.errors import AlreadyExists, PermissionDenied
from lorauter.store import Write, tables
from lorauter_registry.domain.answers import BackendList
from lorauter_registry.domain.requests import DrainBackend, ListBackends, RegisterBackend
from lorauter_registry.domain.resources import Backend
from lorauter_registry.service.base import Part, check_etag, touch
from lorauter_registry.service.lists import paginate
from lorauter_registry.service.rows import backend_of


class Backends(Part):
    """Backends: the inference servers of pools."""

    def register_backend(self, request: RegisterBackend) -> Backend:
        """Registers a backend, or changes one and makes it active again.

        Raises PermissionDenied (BACKEND_HOST_NOT_ALLOWED), NotFound (POOL_NOT_FOUND) or AlreadyExists
        (BACKEND_EXISTS) if it is another pool's.
        """
        self._check_host(request.url)

        def change(tx: Write) -> Backend:
            self.existing(tx.session, tables.Pool, "pool", request.pool)
            row = tx.session.get(tables.Backend, (self.tenant, request.id), with_for_update=True)
            if row is None:
                row = self._new_backend(request, tx)
            elif row.pool != request.pool:
                raise AlreadyExists(
                    "BACKEND_EXISTS", f"backend {request.id!r} serves pool {row.pool!r}: choose another id"
                )
            elif _is_registered(row, request):
                tx.withdraw()
                return backend_of(row)
            else:
                row.kind, row.url, row.state = request.kind, request.url, "ACTIVE"
                row.limits = request.limits.model_dump(mode="json")
                touch(row, tx)
            tx.owe("index", row.pool)
            return backend_of(row)

        return self.changing(request, Backend, change)

    def _check_host(self, url: str) -> None:
        allowed, host = self.context.backend_hosts, urlsplit(url).hostname or ""
        if allowed and not any(host == one or host.endswith(f".{one}") for one in allowed):
            raise PermissionDenied(
                "BACKEND_HOST_NOT_ALLOWED",
                f"backends may not be on {host[:100]!r}: use one of {', '.join(allowed)}, or name it in "
                "LORAUTER_BACKEND_HOSTS",
                field="url",
            )

    def list_backends(self, request: ListBackends) -> BackendList:
        """Lists backends by id; raises NotFound (POOL_NOT_FOUND)."""
        statement = select(tables.Backend).where(tables.Backend.tenant == self.tenant)
        with self.reading() as session:
            if request.pool:
                self.existing(session, tables.Pool, "pool", request.pool)
                statement = statement.where(tables.Backend.pool == request.pool)
            backends, token = paginate(
                session,
                statement,
                self.tenant,
                request,
                [col(tables.Backend.id)],
                lambda rows: [backend_of(row) for row in rows],
            )
        return BackendList(backends=backends, next_page_token=token)

    def drain_backend(self, request: DrainBackend) -> Backend:
        """Takes a backend out of new requests; raises NotFound or Conflict (ETAG_MISMATCH)."""

        def change(tx: Write) -> Backend:
            row = self.existing(tx.session, tables.Backend, "backend", request.id, lock=True)
            check_etag(row, request.etag)
            if row.state == "DRAINING":
                tx.withdraw()
                return backend_of(row)
            row.state = "DRAINING"
            touch(row, tx)
            tx.owe("index", row.pool)
            return backend_of(row)

        return self.changing(request, Backend, change)

    def _new_backend(self, request: RegisterBackend, tx: Write) -> tables.Backend:
        row = tables.Backend(
            tenant=self.tenant,
            id=request.id,
            pool=request.pool,
            kind=request.kind,
            url=request.url,
            limits=request.limits.model_dump(mode="json"),
            generation=tx.generation,
            create_time=tx.now,
            update_time=tx.now,
        )
        tx.session.add(row)
        return row


def _is_registered(row: tables.Backend, request: RegisterBackend) -> bool:
    known = backend_of(row)
    return (known.kind, known.url, known.limits, row.state) == (
        request.kind,
        request.url,
        request.limits,
        "ACTIVE",
    )
