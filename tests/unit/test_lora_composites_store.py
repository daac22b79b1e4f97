"""Composites in the store: written once, whole or not at all, whoever dies at whatever moment."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
import pytest

from lorauter.errors import NotFound, Unavailable, UnprocessableRequest
from lorauter.lora.check import CONFIG_FILE, WEIGHTS_FILE, Limits, check_adapter
from lorauter.lora.composites import LOCKS, RECORD_FILE, CompositeStore
from lorauter.lora.config import AdapterConfig
from lorauter.lora.recipe import Base, Recipe, make_recipe
from lorauter.lora.servers import peft, tgi
from lorauter.lora.store import STAGING_PREFIX, AdapterStore
from lorauter.lora.write import write_adapter

Q, V = (f"model.layers.0.self_attn.{name}_proj" for name in "qv")
MODULES = {Q: (64, 64), V: (64, 32)}
BASE = Base("demo/base", "sha256:1", MODULES)


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "store")


@pytest.fixture
def digests(tmp_path: Path, store: AdapterStore) -> list[str]:
    rng = np.random.default_rng(0)
    found = []
    for number in range(3):
        matrices = {
            module: (
                rng.normal(size=(4, width)).astype(np.float32),
                rng.normal(size=(out, 4)).astype(np.float32),
            )
            for module, (width, out) in MODULES.items()
        }
        write_adapter(
            tmp_path / str(number), AdapterConfig("b", 4, 8.0, False, ("q_proj", "v_proj")), matrices
        )
        found.append(store.put(tmp_path / str(number)))
    return found


@pytest.fixture
def recipe(digests: list[str]) -> Recipe:
    return make_recipe(BASE, [(digests[0], 0.7), (digests[1], -0.3)], tgi(), "float32")


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Processes that begin with what is needed and without the threads of this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lorauter.lora.composites"])
    return context


def left(store: AdapterStore) -> list[str]:
    """What is in the store beside adapters, composites and locks."""
    known = {*(digest.removeprefix("sha256:") for digest in store.digests()), LOCKS}
    return [p.name for p in store.root.iterdir() if p.name not in known and not p.name.startswith("mix-")]


def test_a_composite_is_written_once(store, digests, recipe) -> None:
    composites = CompositeStore(store)
    made = composites.ensure(recipe)
    inodes = {path.name: path.stat().st_ino for path in made.folder.iterdir()}
    assert composites.ensure(recipe) == made == composites.get(recipe.name)
    assert {path.name: path.stat().st_ino for path in made.folder.iterdir()} == inodes
    assert composites.names() == [recipe.name]
    assert made.members == tuple(sorted([(digests[0], 0.7), (digests[1], -0.3)]))
    assert (made.rank, made.error, made.recipe) == (8, 0.0, recipe.digest)
    assert all(path.stat().st_mode & 0o222 == 0 for path in made.folder.iterdir())
    assert left(store) == []
    assert store.digests() == sorted(digests)


def test_a_composite_is_an_ordinary_adapter(store, recipe) -> None:
    made = CompositeStore(store).ensure(recipe)
    checked = check_adapter(made.folder, MODULES, Limits(max_rank=8))
    assert checked.digest == made.digest
    assert checked.ranks_by_module == {Q: 8, V: 8}
    assert checked.config == AdapterConfig("demo/base", 8, 8.0, False, ("q_proj", "v_proj"))
    assert store.put(made.folder) == made.digest


def test_the_same_recipe_gives_the_same_bytes(store, recipe, tmp_path) -> None:
    other = AdapterStore(tmp_path / "other")
    for digest in store.digests():
        other.put(store.path(digest))
    assert CompositeStore(other).ensure(recipe).digest == CompositeStore(store).ensure(recipe).digest


@pytest.mark.parametrize("file", [CONFIG_FILE, WEIGHTS_FILE, RECORD_FILE])
@pytest.mark.parametrize("damage", ["changed", "emptied", "removed", "linked"])
def test_a_composite_is_written_again_when_it_was_damaged(store, recipe, file: str, damage: str) -> None:
    composites = CompositeStore(store)
    made = composites.ensure(recipe)
    path = made.folder / file
    data = path.read_bytes()
    path.unlink()
    if damage == "linked":
        path.symlink_to(store.root)
    elif damage != "removed":
        path.write_bytes(data[:-9] + b"x" * 9 if damage == "changed" else b"")
    with pytest.raises(UnprocessableRequest) as caught:
        composites.get(recipe.name)
    assert caught.value.reason == "COMPOSITE_CORRUPT"
    assert composites.ensure(recipe) == made
    assert path.read_bytes() == data


def test_a_composite_is_written_again_when_another_recipe_has_its_name(store, recipe) -> None:
    composites = CompositeStore(store)
    made = composites.ensure(recipe)
    record = made.folder / RECORD_FILE
    text = record.read_text()
    record.chmod(0o644)
    record.write_text(text.replace(recipe.digest, "sha256:" + "0" * 64))
    assert composites.get(recipe.name).recipe != recipe.digest
    assert composites.ensure(recipe) == made


def test_nothing_is_written_when_a_member_is_missing_or_damaged(store, digests, recipe) -> None:
    composites = CompositeStore(store)
    weights = store.path(digests[1]) / WEIGHTS_FILE
    data = weights.read_bytes()
    weights.chmod(0o644)
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UnprocessableRequest) as corrupt:
        composites.ensure(recipe)
    assert (corrupt.value.reason, corrupt.value.metadata) == ("ADAPTER_CORRUPT", {"digest": digests[1]})
    weights.unlink()
    with pytest.raises(NotFound) as missing:
        composites.ensure(recipe)
    assert (missing.value.reason, missing.value.metadata) == ("ADAPTER_NOT_STORED", {"digest": digests[1]})
    assert composites.names() == left(store) == []


def test_an_error_names_the_member_when_one_is_to_blame(store, digests, tmp_path) -> None:
    matrices = {Q: (np.zeros((2, 32), np.float32), np.zeros((64, 2), np.float32))}
    write_adapter(tmp_path / "foreign", AdapterConfig("other", 2, 2.0, False, ("q_proj",)), matrices)
    foreign = store.put(tmp_path / "foreign")
    with pytest.raises(UnprocessableRequest) as caught:
        CompositeStore(store).ensure(make_recipe(BASE, [(digests[0], 0.5), (foreign, 0.5)], tgi()))
    assert caught.value.reason == "ADAPTER_SHAPE_MISMATCH"
    assert caught.value.metadata == {"field": "adapters", "adapter": foreign}
    with pytest.raises(UnprocessableRequest) as caught:
        CompositeStore(store).ensure(make_recipe(BASE, [(digests[0], 0.5)], peft(), truncate_to=0))
    assert caught.value.metadata == {"field": "truncate_to"}
    with pytest.raises(UnprocessableRequest) as caught:
        CompositeStore(store).ensure(make_recipe(BASE, [(digests[0], 1e6)], tgi(), "float16"))
    assert caught.value.metadata == {"field": "precision"}
    assert left(store) == []


@pytest.mark.parametrize("name", ["mix-0123456789abcdef", "../store", "mix-../../x", "", "x" * 300])
def test_a_name_is_not_found_when_nobody_composed_it(store, digests, name: str) -> None:
    with pytest.raises(NotFound) as caught:
        CompositeStore(store).get(name)
    assert caught.value.reason == "COMPOSITE_NOT_STORED"


def test_a_store_is_unavailable_when_it_cannot_be_written(store, recipe) -> None:
    (store.root / LOCKS).write_text("in the way")
    with pytest.raises(Unavailable) as caught:
        CompositeStore(store).ensure(recipe)
    assert caught.value.reason == "ADAPTER_STORE_UNAVAILABLE"


def compose(root: Path, recipe: Recipe, results: Path | None = None) -> None:
    """Run in a process of its own: composes, and writes down which file it then sees."""
    made = CompositeStore(AdapterStore(root)).ensure(recipe)
    if results is not None:
        number = (made.folder / WEIGHTS_FILE).stat().st_ino
        (results / str(os.getpid())).write_text(f"{made.digest} {number}")


def compose_until(root: Path, recipe: Recipe, steps: int) -> None:
    """Run in a process of its own: kills itself at the given system call on the store."""
    seen = 0

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event.startswith(("open", "os.", "shutil.", "fcntl.")) and str(root) in str(arguments):
            seen += 1
            if seen == steps:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    compose(root, recipe)


def test_a_composite_is_whole_or_absent_when_its_writer_is_killed_at_any_step(
    store, recipe, processes
) -> None:
    composites = CompositeStore(store)
    deaths = absent = 0
    for steps in range(1, 200):
        child = processes.Process(target=compose_until, args=(store.root, recipe, steps))
        child.start()
        child.join(60)
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        deaths += 1
        if composites.names():
            assert composites.get(recipe.name).recipe == recipe.digest
            for path in (store.root / recipe.name).iterdir():
                path.unlink()
            (store.root / recipe.name).rmdir()
        else:
            absent += 1
    print(f"killed at {deaths} steps, {absent} of them before the composite was there")
    assert deaths > 20
    assert absent > 10
    made = composites.ensure(recipe)
    for name in left(store):
        assert name.startswith(STAGING_PREFIX)
        os.utime(store.root / name, (0, 0))
    composites.ensure(make_recipe(BASE, recipe.members[:1], tgi()))
    assert left(store) == []
    assert composites.get(recipe.name) == made


def test_one_writes_when_many_processes_compose_the_same_and_some_are_killed(
    store, recipe, processes, tmp_path
) -> None:
    results = tmp_path / "results"
    results.mkdir()
    doomed = [
        processes.Process(target=compose_until, args=(store.root, recipe, steps))
        for steps in (18, 22, 26, 30)
    ]
    others = [processes.Process(target=compose, args=(store.root, recipe, results)) for _ in range(8)]
    for pair in zip(others, [*doomed, *doomed], strict=True):
        for process in pair:
            if process.pid is None:
                process.start()
    for process in [*doomed, *others]:
        process.join(60)
    assert [process.exitcode for process in others] == [0] * 8
    assert len({path.read_text() for path in results.iterdir()}) == 1
    assert len(list(results.iterdir())) == 8
    assert CompositeStore(store).get(recipe.name).recipe == recipe.digest
