"""The processes of a suite: what each is started with and what it waits for."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lorauter_suite.addresses import Addresses
from lorauter_suite.embedded.index import index_process, index_url
from lorauter_suite.embedded.ports import LOOPBACK
from lorauter_suite.embedded.postgres import EmbeddedPostgres
from lorauter_suite.embedded.probes import http_ready
from lorauter_suite.embedded.process import ProcessSpec
from lorauter_suite.embedded.valkey import valkey_process, valkey_url
from lorauter_suite.own_keys import OwnKeys, own_keys

PORTS = (
    *("postgres", "valkey", "index", "registry", "registry-grpc", "worker-index", "worker-matching"),
    *("router", "router-grpc", "gateway", "gateway-grpc", "engine"),
)
SERVICES = ("engine", "router", "registry", "worker-index", "worker-matching", "gateway")
"""In the order of start: what takes longest goes first."""
STOP_ORDER = (
    ("gateway",),
    ("router", "registry", "worker-index", "worker-matching", "engine"),
    ("index", "valkey", "migrations", "postgres"),
)
"""Callers first, the database last; what is in one group stops at once."""
TEMPORARY = "tmp"
"""Folder in the data directory for the services' temporary files; emptied at every start."""
DEMO_POOL = Path(__file__).parent / "demo" / "pool"

_ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MALLOC_ARENA_MAX": "2",
    "PYTHONUNBUFFERED": "1",
}


@dataclass(frozen=True)
class SuiteOptions:
    """What a suite runs, and how."""

    services: tuple[str, ...] = SERVICES
    """Which services to start; fewer are for tests."""
    model: Path = DEMO_POOL / "base"
    """The engine's base model: a directory in the format of transformers."""
    model_id: str = "lorauter/demo-base"
    """The name that the engine reports for it."""
    adapter_roots: tuple[Path, ...] = (DEMO_POOL,)
    """Folders from which adapters may be registered, besides ``<data>/incoming``."""
    ports: Mapping[str, int] = field(default_factory=dict)
    """Fixed ports by name (see PORTS); the others are chosen."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Settings for all services, besides what the environment of the caller says."""
    start_seconds: float = 120.0
    """How long the start may take before it counts as failed."""


@dataclass(frozen=True)
class Plan:
    """A suite's processes with what each needs, and where they will listen."""

    processes: tuple[tuple[ProcessSpec, tuple[str, ...]], ...]
    addresses: Addresses


def plan(data_dir: Path, ports: Mapping[str, int], options: SuiteOptions, given: Mapping[str, str]) -> Plan:
    """Returns what to run. ``given`` is the caller's environment.

    Its DATABASE_URL, REDIS_URL and QDRANT_URL name external servers, which replace embedded ones; its
    LORAUTER_ADAPTER_ROOTS come on top of ours. Raises PartFailed where an embedded part's wheel is missing.
    """
    postgres = EmbeddedPostgres(data_dir, ports["postgres"])
    keys = own_keys(data_dir, given)
    addresses = _addresses(data_dir, ports, given, postgres, keys)
    processes: list[tuple[ProcessSpec, tuple[str, ...]]] = []
    if not given.get("QDRANT_URL"):
        processes.append((index_process(ports["index"]), ()))
    if not given.get("REDIS_URL"):
        processes.append((valkey_process(data_dir / "valkey", ports["valkey"]), ()))
    if not given.get("DATABASE_URL"):
        processes.append((postgres.process(), ()))
    environment = {**_ONE_THREAD, **_connections(addresses, data_dir, options, given), **options.environment}
    processes.append((_migrations(environment), ("postgres",)))
    for name in (name for name in SERVICES if name in options.services):
        processes.append((_service(name, ports, {**environment, **_secrets(name, keys)}), _NEEDS[name]))
    return Plan(tuple(processes), addresses)


_NEEDS: Mapping[str, tuple[str, ...]] = {
    "engine": (),
    "router": (),
    "registry": ("migrations", "valkey"),
    "worker-index": ("migrations", "valkey", "index"),
    "worker-matching": ("migrations", "valkey", "index"),
    "gateway": (),
}
_READY_WITH_DATA = ("router", "gateway")
"""They are not ready before something is registered; here it is enough that they listen."""
_QUEUES = {"worker-index": "index", "worker-matching": "matching"}


def _addresses(
    data_dir: Path,
    ports: Mapping[str, int],
    given: Mapping[str, str],
    postgres: EmbeddedPostgres,
    keys: OwnKeys,
) -> Addresses:
    def http(name: str) -> str:
        return f"http://{LOOPBACK}:{ports[name]}"

    def grpc(name: str) -> str:
        return f"{LOOPBACK}:{ports[name + '-grpc']}"

    return Addresses(
        registry_http=http("registry"),
        registry_grpc=grpc("registry"),
        router_http=http("router"),
        router_grpc=grpc("router"),
        gateway_http=http("gateway"),
        gateway_grpc=grpc("gateway"),
        engine_http=http("engine"),
        index_http=given.get("QDRANT_URL") or index_url(ports["index"]),
        database_url=given.get("DATABASE_URL") or postgres.url(),
        redis_url=given.get("REDIS_URL") or valkey_url(ports["valkey"]),
        incoming=str(data_dir / "incoming"),
        api_key=keys.api_key,
    )


def _connections(
    addresses: Addresses, data_dir: Path, options: SuiteOptions, given: Mapping[str, str]
) -> dict[str, str]:
    own = given.get("LORAUTER_ADAPTER_ROOTS", "").split(os.pathsep)
    roots = [*options.adapter_roots, data_dir / "incoming", *(Path(root) for root in own if root)]
    return {
        "DATABASE_URL": addresses.database_url,
        "REDIS_URL": addresses.redis_url,
        "QDRANT_URL": addresses.index_http,
        "TMPDIR": str(data_dir / TEMPORARY),
        "LORAUTER_HOST": LOOPBACK,
        "LORAUTER_ADAPTER_STORE": str(data_dir / "adapters"),
        "LORAUTER_ADAPTER_ROOTS": os.pathsep.join(str(root.absolute()) for root in roots),
        "LORAUTER_ACCESS": given.get("LORAUTER_ACCESS") or "keys",
        "LORAUTER_REGISTRY_ADDRESS": addresses.registry_grpc,
        "LORAUTER_ROUTER_ADDRESS": addresses.router_grpc,
        "LORAUTER_MODEL": given.get("LORAUTER_MODEL") or str(options.model),
        "LORAUTER_MODEL_ID": given.get("LORAUTER_MODEL_ID") or options.model_id,
        "LORAUTER_DRAIN_SECONDS": given.get("LORAUTER_DRAIN_SECONDS") or "3",
    }


def _secrets(name: str, keys: OwnKeys) -> dict[str, str]:
    """Returns the keys that a service gets: no other sees them."""
    if name == "registry":
        return {"LORAUTER_BOOTSTRAP_KEY": keys.api_key, "LORAUTER_GATEWAY_KEY": keys.gateway_key}
    return {"LORAUTER_API_KEY": keys.gateway_key if name == "gateway" else ""}


def _service(name: str, ports: Mapping[str, int], environment: Mapping[str, str]) -> ProcessSpec:
    module = name.partition("-")[0]
    port = ports[name]
    path = "/healthz" if name in _READY_WITH_DATA else "/readyz"
    own = {"LORAUTER_HTTP_PORT": str(port), "LORAUTER_GRPC_PORT": str(ports.get(f"{name}-grpc", 0))}
    if name in _QUEUES:
        own["LORAUTER_QUEUES"] = _QUEUES[name]
    return ProcessSpec(
        name,
        [sys.executable, "-P", "-m", f"lorauter_{module}.main"],
        environment={**environment, **own},
        probe=lambda: http_ready(port, path),
    )


def _migrations(environment: Mapping[str, str]) -> ProcessSpec:
    command = [sys.executable, "-P", "-m", "lorauter_registry.main", "migrate"]
    return ProcessSpec("migrations", command, environment=environment, once=True)
