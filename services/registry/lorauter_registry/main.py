"""Boots the registry: `lorauter-registry` serves, `lorauter-registry migrate` brings up the schema."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from fastapi import FastAPI
from sqlalchemy import Engine

from lorauter import tracing
from lorauter.access import Scope
from lorauter.errors import FailedPrecondition, LorauterError, Unavailable
from lorauter.lora.check import Limits
from lorauter.lora.store import AdapterStore
from lorauter.server.access import Gate, open_gate
from lorauter.server.grpc import GrpcServer
from lorauter.server.run import serve
from lorauter.store import create_engine
from lorauter.store.migrate import downgrade, migrate
from lorauter.store.schema import refuse_other_schema, wait_for_schema
from lorauter.telemetry import configure_logging, get_logger
from lorauter_registry.adapters.folders import RootedFolders
from lorauter_registry.adapters.hub import HuggingFaceHub
from lorauter_registry.adapters.wakeups import CeleryWakeups
from lorauter_registry.api.calls import Calls
from lorauter_registry.api.gate import StoredKeys
from lorauter_registry.api.grpc import add_registry
from lorauter_registry.api.rest import create_rest
from lorauter_registry.config import DatabaseSettings, Settings
from lorauter_registry.domain.affinity_requests import MAX_IMPORT_BYTES
from lorauter_registry.domain.archives.requests import ArchiveLimits
from lorauter_registry.service import Registry
from lorauter_registry.service.admission import Admission, given_keys
from lorauter_registry.service.base import Context


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="lorauter-registry", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    command = commands.add_parser("migrate", help="bring the schema of DATABASE_URL to a revision")
    command.add_argument("--to", default="head", metavar="REV", help="the revision (default: the newest)")
    command.add_argument("--down", action="store_true", help="go back to REV; `base` drops all tables")
    command.add_argument(
        "--wait", type=float, metavar="SECONDS", help="change nothing; wait until somebody else has migrated"
    )
    options = parser.parse_args(arguments)
    if options.command == "migrate":
        _migrate(options.to, options.down, options.wait)
        return
    settings = Settings.load()
    configure_logging("registry", settings.log_level, settings.log_format)
    tracing.configure("registry")
    refuse_other_schema(str(settings.database_url))
    try:
        asyncio.run(run(settings))
    except FailedPrecondition as error:
        print(f"{error.message} ({error.reason})", file=sys.stderr)
        raise SystemExit(2) from None


async def run(settings: Settings) -> None:
    """Serves gRPC and REST until a signal."""
    get_logger(__name__).info("registry.settings.read", **settings.redacted())
    with assembled(settings) as parts:
        await serve(settings, parts.rest, parts.grpc_server)


@dataclass(frozen=True, slots=True)
class Assembly:
    """The registry, put together but not listening yet."""

    registry: Registry
    grpc_server: GrpcServer
    rest: FastAPI


@contextmanager
def assembled(settings: Settings) -> Iterator[Assembly]:
    """Puts the registry together on its real parts, inside a running event loop; closes them at the end."""
    engine = create_engine(str(settings.database_url), pool_size=settings.threads)
    wakeups = CeleryWakeups(str(settings.redis_url))
    context = Context(
        engine=engine,
        wakeups=wakeups,
        folders=RootedFolders(settings.adapter_roots),
        hub=HuggingFaceHub(
            settings.max_adapter_bytes,
            settings.hub_timeout_seconds,
            settings.hub_endpoint,
            settings.hub_hosts,
            settings.hub_download_seconds,
        ),
        store=_prepared(settings.adapter_store),
        limits=Limits(max_rank=settings.max_adapter_rank, max_bytes=settings.max_adapter_bytes),
        max_pins=timedelta(days=settings.max_pins_days),
        audit_kept=timedelta(days=settings.audit_days),
        backend_hosts=settings.backend_hosts,
        archive_limits=ArchiveLimits(settings.max_archive_bytes, settings.max_validation_set_bytes),
    )
    registry = Registry(context)
    calls = Calls(registry, settings.threads, settings.watch_seconds)
    try:
        with _gate(settings, engine) as gate:
            grpc_server = GrpcServer(MAX_IMPORT_BYTES, gate)
            add_registry(grpc_server, calls, settings.max_validation_set_bytes)
            rest = create_rest(calls, settings.max_body_bytes, settings.max_validation_set_bytes, gate)
            yield Assembly(registry, grpc_server, rest)
    finally:
        calls.close()
        wakeups.close()
        engine.dispose()


def _prepared(folder: Path) -> AdapterStore:
    store = AdapterStore(folder)
    store.prepare()
    return store


@contextmanager
def _gate(settings: Settings, engine: Engine) -> Iterator[Gate]:
    """Returns who lets callers in. With PostgreSQL away, given keys are stored at the first call."""
    if settings.access == "open":
        yield open_gate(settings)
        return
    given = {
        "LORAUTER_BOOTSTRAP_KEY": (settings.bootstrap_key.get_secret_value(), (Scope.ADMIN,)),
        "LORAUTER_GATEWAY_KEY": (settings.gateway_key.get_secret_value(), (Scope.READ, Scope.INVOKE)),
    }
    admission = Admission(engine, given_keys(given), settings.tenant)
    with suppress(Unavailable):
        admission.store_given()
        admission.refuse_when_empty()
    keys = StoredKeys(admission)
    try:
        yield keys
    finally:
        keys.close()


def _migrate(revision: str, down: bool, wait: float | None) -> None:
    url = str(DatabaseSettings.load().database_url)
    try:
        if wait is not None:
            wait_for_schema(url, wait)
        else:
            (downgrade if down else migrate)(url, revision)
    except LorauterError as error:
        raise SystemExit(f"lorauter-registry migrate: {error.message}") from None


if __name__ == "__main__":
    main()
