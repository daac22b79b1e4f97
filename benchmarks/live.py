"""The default strategy through the real path: registry, worker and engine on embedded parts, a noisy pool."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.table import benchmark_examples
from lorauter import Client
from lorauter.errors import LorauterError
from lorauter.registry.v1 import registry_pb2 as pb
from lorauter_suite.demo.check import load_pool
from lorauter_suite.demo.export import MAX_NEW_TOKENS
from lorauter_suite.demo.noisy.broken import BROKEN
from lorauter_suite.demo.noisy.pool import write_pool
from lorauter_suite.demo.noisy.recipe import NoisyRecipe
from lorauter_suite.demo.noisy.training import trained_stacks
from lorauter_suite.demo.noisy.weights import Workshop
from lorauter_suite.demo.recipe import BASE_ID
from lorauter_suite.demo.verify import POOL
from lorauter_suite.suite import Suite, SuiteOptions

POOL_ID = "noisy"
TASKS = ("reverse-word", "dash-code")
"""A task at which the base knows nothing, and one at which it is right every other time."""

SERVICES = ("engine", "registry", "worker-index", "worker-matching")
CALLS = 8
"""Adapters that are registered at once."""

POLL_SECONDS = 0.2
LONGEST_SECONDS = 400.0
"""Longest that a matching may take."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Registered:
    """A pool that was registered: how long that took, and for which reason each refused one was refused."""

    seconds: float
    refusals: Mapping[str, str]


def live(recipe: NoisyRecipe, cache: Path, progress: Progress) -> dict[str, Any]:
    """Matches two tasks to the recipe's pool, broken adapters included, then lets one adapter more join.

    ``evaluations``, on choosing and judging examples, and ``seconds`` are the matching's. ``incremental`` is
    what the last of the adapters costs. ``chosen`` are the tasks' best eligible adapters, with what they
    scored on judging examples. ``broken`` tells of each broken adapter what happened to it. Raises
    AssertionError if that is not what should.
    """
    with tempfile.TemporaryDirectory(prefix="lorauter-noisy-") as folder:
        root = Path(folder)
        progress(f"live: writing {recipe.count:,} adapters")
        write_pool(root / "pool", _workshop(recipe, cache), lambda: None)
        options = SuiteOptions(services=SERVICES, adapter_roots=(POOL, root / "pool"))
        with (
            Suite(root / "data", options, lambda _: None) as suite,
            suite.addresses.client() as client,
        ):
            _create_pool(client)
            *folders, last = sorted((root / "pool" / "adapters").iterdir(), key=_order)
            progress(f"live: registering {len(folders):,} adapters")
            registered = _register(client, folders)
            for task in TASKS:
                _create_task(client, task, recipe.seed)
            _wait(
                lambda: all(
                    t.state == pb.TASK_STATE_EMBEDDED for t in client.registry.list_tasks(pool=POOL_ID)
                )
            )
            progress(f"live: matching {len(TASKS)} tasks")
            client.registry.register_backend(
                id="engine", pool=POOL_ID, kind=pb.BACKEND_KIND_ENGINE, url=suite.addresses.engine_http
            )
            first = _finished(client, 1)
            broken = _fates(client, registered)
            progress("live: one adapter joins")
            _register(client, [last])
            joined = _finished(client, 2)
            chosen = {task: _chosen(client, task) for task in TASKS}
    return {
        **_matching_figures(first),
        "adapters": len(folders) - len(registered.refusals),
        "registration_seconds": round(registered.seconds, 1),
        "incremental": {
            **_matching_figures(joined),
            "evaluations_fraction": round(joined.done / first.done, 5),
        },
        "chosen": chosen,
        "broken": broken,
    }


def _workshop(recipe: NoisyRecipe, cache: Path) -> Workshop:
    return Workshop(recipe, load_pool(POOL).stack, trained_stacks(recipe, cache, lambda _: None))


def _order(folder: Path) -> tuple[bool, str]:
    """Broken adapters first, so that the last one is sound."""
    return not folder.name.startswith("broken-"), folder.name


def _create_pool(client: Client) -> None:
    described = json.loads((POOL / "pool.json").read_text(encoding="utf-8"))
    client.registry.create_pool(
        id=POOL_ID,
        base_model=BASE_ID,
        base_revision=described["base"]["revision"],
        base_path=str(POOL / "base"),
    )


def _register(client: Client, folders: Sequence[Path]) -> Registered:
    started = time.perf_counter()
    with ThreadPoolExecutor(CALLS) as threads:
        reasons = list(threads.map(lambda folder: _registered(client, folder), folders))
    refusals = {folder.name: why for folder, why in zip(folders, reasons, strict=True) if why is not None}
    return Registered(time.perf_counter() - started, refusals)


def _registered(client: Client, folder: Path) -> str | None:
    """Registers an adapter; returns the reason if it is refused."""
    try:
        client.registry.register_adapter(id=folder.name, pool=POOL_ID, path=str(folder))
    except LorauterError as error:
        return error.reason
    return None


def _create_task(client: Client, task: str, seed: int) -> None:
    settings = pb.GenerationSettings(max_new_tokens=MAX_NEW_TOKENS)
    client.registry.create_task(id=task, pool=POOL_ID, metric="exact_match", generation_settings=settings)
    examples = [pb.ValidationExample(**one._asdict()) for one in benchmark_examples(task, seed)]
    client.registry.put_validation_set(task, examples)


def _finished(client: Client, count: int) -> pb.Operation:
    """Waits until all tasks are matched, by ``count`` matchings; returns the last one."""

    def is_done() -> bool:
        operations = _operations(client)
        failed = [one.error for one in operations if one.state == pb.OPERATION_STATE_FAILED]
        assert not failed, f"a matching failed: {failed[0]}"
        succeeded = [one for one in operations if one.state == pb.OPERATION_STATE_SUCCEEDED]
        return len(operations) >= count and len(succeeded) == len(operations)

    _wait(is_done)
    operations = _operations(client)
    assert len(operations) == count, f"{len(operations)} matchings ran, not {count}"
    return operations[-1]


def _operations(client: Client) -> list[pb.Operation]:
    """The pool's matchings, oldest first."""
    found = client.registry.list_operations(pool=POOL_ID)
    return sorted(found, key=lambda one: one.create_time.ToNanoseconds())


def _wait(is_done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONGEST_SECONDS
    while not is_done():
        assert time.monotonic() < deadline, f"the suite took over {LONGEST_SECONDS:g} s"
        time.sleep(POLL_SECONDS)


def _matching_figures(operation: pb.Operation) -> dict[str, float]:
    seconds = (operation.end_time.ToNanoseconds() - operation.create_time.ToNanoseconds()) / 1e9
    return {"evaluations": operation.done, "seconds": round(seconds, 2)}


def _fates(client: Client, registered: Registered) -> dict[str, str]:
    """What happened to each broken adapter, by its name."""
    fates = {}
    for broken in BROKEN:
        name = f"broken-{broken.name}"
        if name in registered.refusals:
            fates[broken.name] = f"refused: {registered.refusals[name]}"
        else:
            latest = client.registry.get_adapter(id=name).latest
            state = pb.AdapterState.Name(latest.state).removeprefix("ADAPTER_STATE_").lower()
            fates[broken.name] = f"{state}: {latest.state_reason.partition(':')[0]}"
        wanted = "refused" if broken.stage == "registration" else "quarantined"
        assert fates[broken.name] == f"{wanted}: {broken.reason}", f"{broken.name} is {fates[broken.name]}"
    assert len(registered.refusals) == sum(broken.stage == "registration" for broken in BROKEN)
    return fates


def _chosen(client: Client, task: str) -> dict[str, str | float]:
    """The best of the adapters that are eligible for ``task``, and its mean score on judging examples."""
    eligible = [one for one in client.registry.list_affinities(task_id=task) if one.eligible]
    best = max(eligible, key=lambda one: (one.shrunk_score, one.likelihood))
    return {"adapter": best.adapter_id, "judged_score": best.judged_score}
