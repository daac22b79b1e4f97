"""Starts the containers of docker-compose.yml as processes: their programs, their variables, nothing else.

Hosts become ports of this machine, volumes become folders, and what the images would hold comes from the
virtual environment of these tests, or from the folder TOPOLOGY_IMAGES, as `make try-images` leaves it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError
from scripts.try_image import stages

from lorauter_suite.embedded.index import index_process
from lorauter_suite.embedded.ports import LOOPBACK, free_port
from lorauter_suite.embedded.postgres import EmbeddedPostgres
from lorauter_suite.embedded.process import ProcessSpec, await_ready, running, start, stop
from lorauter_suite.embedded.valkey import valkey_process
from lorauter_suite.suite import Addresses, PartFailed
from tests.topology.compose import ROOT, Container, containers

HEALTHCHECK = ROOT / "deploy" / "docker" / "healthcheck.py"
BACKING = {"postgres": "5432", "redis": "6379", "qdrant": "6333"}
"""Servers that others' images run, with their ports; here the embedded parts stand for them."""
DAEMONS = ("registry", "worker-index", "worker-matching", "router", "gateway", "engine")
_STOP_SECONDS = 10.0


class Topology:
    """The containers of the default and the demo profile on a folder; see started()."""

    def __init__(self, folder: Path, variables: Mapping[str, str]) -> None:
        self.folder = folder
        self.variables = variables
        # a checkout's folder of incoming adapters is nobody else's business
        known = containers({**variables, "LORAUTER_INCOMING": str(folder / "incoming")})
        self.containers = {name: known[name] for name in (*BACKING, "migrate", *DAEMONS)}
        self._ports = {address: free_port() for address in self._listening()}

    def _listening(self) -> Iterator[tuple[str, str]]:
        yield from BACKING.items()
        for name in DAEMONS:
            given = self._given(self.containers[name])
            yield from (
                (name, given[key]) for key in given if re.fullmatch(r"LORAUTER_(HTTP|GRPC)_PORT", key)
            )

    def address(self, name: str, port: str) -> str:
        """Returns where a port of a container is reached here, ``host:port``."""
        return f"{LOOPBACK}:{self._ports[name, port]}"

    def environment(self, name: str) -> dict[str, str]:
        """Returns all variables of a process, its image's and its own, with hosts and paths of here."""
        container = self.containers[name]
        given = self._given(container)
        moved = {key: self._path(self._hosts(value), container) for key, value in given.items()}
        for key in ("LORAUTER_HTTP_PORT", "LORAUTER_GRPC_PORT"):
            if key in given and (name, given[key]) in self._ports:
                moved[key] = str(self._ports[name, given[key]])
        if "LORAUTER_HOST" in given:
            moved["LORAUTER_HOST"] = LOOPBACK
        return moved

    def _given(self, container: Container) -> dict[str, str]:
        image = next(rest for word, rest in stages(container.dockerfile)[-1].instructions if word == "ENV")
        return {**dict(pair.split("=", 1) for pair in image.split()), **container.environment}

    def _hosts(self, value: str) -> str:
        for (name, port), here in self._ports.items():
            value = re.sub(rf"(?<![\w.-]){name}:{port}\b", f"{LOOPBACK}:{here}", value)
        return value

    def _path(self, value: str, container: Container) -> str:
        places = {mount.target: self._source(mount.source) for mount in container.mounts}
        places["/opt/cache"] = str(self._cache(container))
        places |= {"/opt/lorauter/bin": str(self._programs(container)), "$PATH": os.defpath}
        places["/tmp"] = str(self.folder / "tmp" / container.name)
        if "://" in value:
            return value
        return ":".join(_moved(part, places) for part in value.split(":"))

    def _source(self, source: str) -> str:
        if source.startswith("."):
            return str((ROOT / source).resolve())
        return source if source.startswith("/") else str(self.folder / source)

    def _cache(self, container: Container) -> Path:
        images = os.environ.get("TOPOLOGY_IMAGES")
        if images:
            return Path(images) / container.dockerfile / "opt" / "cache"
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")

    def _programs(self, container: Container) -> Path:
        images = os.environ.get("TOPOLOGY_IMAGES")
        if images:
            return Path(images) / container.dockerfile / "opt" / "lorauter" / "bin"
        return Path(sys.executable).parent

    def spec(self, name: str) -> ProcessSpec:
        """Returns how a container's process is started, and asked by its own health check."""
        container = self.containers[name]
        environment = self.environment(name)
        Path(environment["TMPDIR"]).mkdir(parents=True, exist_ok=True)
        instructions = stages(container.dockerfile)[-1].instructions
        entrypoint = next(json.loads(rest) for word, rest in instructions if word == "ENTRYPOINT")
        program = self._programs(container) / entrypoint[0]
        cleared = ["/usr/bin/env", "-i", *(f"{key}={value}" for key, value in environment.items())]
        check = container.document.get("healthcheck", {}).get("test", ())
        probe = [*cleared, sys.executable, "-I", "-S", str(HEALTHCHECK), *check[-1:]]
        return ProcessSpec(
            name,
            [*cleared, str(program), *container.command],
            probe=(lambda: _succeeds(probe)) if check else None,
            folder=environment["TMPDIR"],
            ready_seconds=90,
        )

    @contextmanager
    def started(self) -> Iterator[Addresses]:
        """Starts all at once behind the migrated database, waits until it is ready, stops it at the end."""
        for folder in ("incoming", "adapters", "tmp", "logs"):
            (self.folder / folder).mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            for spec in self._backing():
                stack.enter_context(running(spec))
            self._migrate()
            specs = [self.spec(name) for name in DAEMONS]
            begun = []
            for spec in specs:
                log = stack.enter_context((self.folder / "logs" / spec.name).open("wb"))
                process = start(spec, log)
                stack.callback(stop, spec, process, _STOP_SECONDS)
                begun.append((spec, process))
            for spec, process in begun:
                try:
                    await_ready(spec, process)
                except PartFailed as error:
                    log_tail = (self.folder / "logs" / spec.name).read_text(errors="replace")[-3000:]
                    raise PartFailed(f"{error.message}\n{log_tail}") from None
            yield self._addresses()

    def _backing(self) -> Iterator[ProcessSpec]:
        password = self.folder / "database" / "postgres.password"
        password.parent.mkdir(parents=True)
        password.write_text(self.variables["POSTGRES_PASSWORD"])
        yield EmbeddedPostgres(password.parent, self._ports["postgres", "5432"]).process()
        valkey = valkey_process(self.folder / "valkey", self._ports["redis", "6379"])
        secret = self.variables["REDIS_PASSWORD"]
        url = f"redis://:{secret}@{self.address('redis', '6379')}/0"
        yield replace(valkey, command=[*valkey.command, "--requirepass", secret], probe=lambda: _answers(url))
        yield index_process(self._ports["qdrant", "6333"])

    def _migrate(self) -> None:
        spec = self.spec("migrate")
        log = self.folder / "logs" / spec.name
        with log.open("wb") as output:
            process = start(spec, output)
            if process.wait(60) != 0:
                raise PartFailed(f"migrate ended with {process.returncode}: {log.read_text()[-3000:]}")

    def _addresses(self) -> Addresses:
        registry, index = self.environment("registry"), self.environment("worker-index")
        return Addresses(
            registry_http=f"http://{self.address('registry', '8080')}",
            registry_grpc=self.address("registry", "9090"),
            router_http=f"http://{self.address('router', '8080')}",
            router_grpc=self.address("router", "9090"),
            gateway_http=f"http://{self.address('gateway', '8080')}",
            gateway_grpc=self.address("gateway", "9090"),
            engine_http=f"http://{self.address('engine', '8080')}",
            index_http=index["QDRANT_URL"],
            database_url=registry["DATABASE_URL"],
            redis_url=registry["REDIS_URL"],
            incoming=str(self.folder / "incoming"),
            api_key=self.variables["LORAUTER_BOOTSTRAP_KEY"],
        )


def _moved(value: str, places: Mapping[str, str]) -> str:
    for inside in sorted(places, key=len, reverse=True):
        rest = value.removeprefix(inside)
        if rest != value and rest[:1] in ("", "/"):
            return places[inside] + rest
    return value


def _succeeds(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0


def _answers(url: str) -> bool:
    with suppress(RedisError), Redis.from_url(url) as client:
        return bool(client.ping())
    return False
