"""A registry in a process of its own before all attacks at once, and what became of everything around it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from lorauter.encoder import Encoder
from tests.security.adapters import ATTACKS, Scene
from tests.security.adapters.model import BASE, write
from tests.security.tenancy import Stage, staged
from tests.security.watching import Watch, census


@dataclass(frozen=True)
class Process:
    """A registry: its REST, its store, and how much memory it has had at most, in MiB."""

    http: httpx.Client
    store: Path
    number: int

    def peak_mib(self) -> float:
        """Returns the most memory that the process has had."""
        lines = Path(f"/proc/{self.number}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


@contextmanager
def registry_process(database_url: str, folder: Path, *roots: Path) -> Iterator[Process]:
    """Runs a registry whose callers may name folders under ``roots``."""
    environment = {
        **os.environ,
        "DATABASE_URL": database_url,
        "REDIS_URL": "redis://127.0.0.1:1/0",
        "LORAUTER_ADAPTER_STORE": str(folder / "store"),
        "LORAUTER_ADAPTER_ROOTS": os.pathsep.join(map(str, roots)),
        "LORAUTER_ACCESS": "open",
    }
    command = [sys.executable, "-m", "lorauter_registry.main"]
    with (folder / "registry.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log)
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline() or b"{}")
        assert ready.get("ready"), (folder / "registry.log").read_text()
        with httpx.Client(base_url=f"http://127.0.0.1:{ready['http_port']}", timeout=60) as http:
            yield Process(http, folder / "store", process.pid)
    finally:
        process.terminate()
        try:
            assert process.wait(15) == 0
        finally:
            process.kill()
            process.stdout.close()


@dataclass(frozen=True)
class Struck:
    """What came of all attacks: answers and folders by name, and what changed around."""

    scene: Scene
    answers: dict[str, httpx.Response]
    sound: httpx.Response
    folders: dict[str, Path]
    events: list[str]
    before: dict[str, tuple[int, ...]]
    after: dict[str, tuple[int, ...]]
    stored: list[str]
    adapters: list[dict[str, Any]]
    grown_mib: float


def make_scene(folder: Path) -> Scene:
    """Makes the folder that callers may name and the one that nobody may touch, side by side."""
    scene = Scene(folder / "root", folder / "canary")
    scene.root.mkdir()
    write(scene.canary / "adapter")
    (scene.canary / "secret").write_text('{"eos_token": "a secret"}')
    write(scene.root.with_name("root-other") / "adapter")
    return scene


@pytest.fixture(scope="session")
def struck(
    postgres_server: Any, _migrated: str, tmp_path_factory: pytest.TempPathFactory, tiny_pools: Any
) -> Struck:
    """All attacks, after each was tried on the same registry."""
    folder = tmp_path_factory.mktemp("attacks").resolve()
    scene = make_scene(folder)
    base = tiny_pools(folder / "model").base()
    requests = {attack.name: attack.make(scene, scene.root / attack.name) for attack in ATTACKS}
    write(scene.root / "sound")
    watch = Watch(scene.canary)
    with (
        postgres_server.database(_migrated) as url,
        registry_process(url, folder, scene.root, base) as process,
    ):
        http = process.http
        pool = {"id": "p", "base_model": BASE, "base_path": str(base)}
        http.post("/v1/pools", json=pool).raise_for_status()
        before, memory = census(scene.root) | census(scene.canary), process.peak_mib()
        watch.events()
        answers = {
            name: http.post("/v1/adapters", json={"id": name[:60], "pool": "p", **request})
            for name, request in requests.items()
        }
        events = watch.events()
        after, grown = census(scene.root) | census(scene.canary), process.peak_mib() - memory
        stored = sorted(path.name for path in process.store.glob("**/*"))
        adapters = http.get("/v1/adapters").json().get("adapters", [])
        sound = http.post("/v1/adapters", json={"id": "sound", "pool": "p", "path": f"{scene.root}/sound"})
    watch.close()
    folders = {name: scene.root / name for name in requests}
    return Struck(scene, answers, sound, folders, events, before, after, stored, adapters, grown)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(
    postgres_server: Any,
    _migrated: str,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_pools: Any,
    encoder: Encoder,
) -> AsyncIterator[Stage]:
    """Registry, router and gateway with keys, and two tenants with everything in them."""
    folder = tmp_path_factory.mktemp("tenants")
    with postgres_server.database(_migrated) as url:
        async with staged(url, folder, tiny_pools(folder / "incoming"), encoder) as ready:
            yield ready
