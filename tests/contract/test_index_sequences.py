"""Publishers that repeat themselves, come late or die between any two calls leave one generation."""

import uuid
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient

from benchmarks.sequences_process import CountedClient, Crash, Outcome, Process, Stop
from lorauter.errors import NotFound
from lorauter.index import ExampleSet, QdrantIndex, canonical, root_digest
from lorauter.routing.model import Affinity, Pool, Profile, Snapshot, Task

NEWEST = 6


def die() -> None:
    raise Crash


def generation(tenant: str, number: int) -> tuple[Snapshot, list[ExampleSet]]:
    """Generations share some tasks, change some and toggle one, so that points come, stay, go and return."""
    chosen = [0, 1, *([2] if number % 2 else []), *([3] if number > 3 else [])]
    tasks, examples = [], []
    for key in chosen:
        version = number if key == 1 else 1
        vector = np.full(4, key + version / 16, dtype=np.float32)
        tasks.append(
            Task(
                task_id=f"t{key}",
                version=version,
                metric="exact_match",
                tags=frozenset(),
                example_count=2,
                centroid=vector,
                terms={key: 1.0},
                affinities=(Affinity("base", 0, 0.5, 2, 0.1),),
            )
        )
        examples.append(ExampleSet("main", f"t{key}", version, np.stack([vector, vector + 1])))
    scatter = np.full(10, 1 + number // 2, dtype=np.float16)
    profile = Profile("sha256:p", {}, scatter=scatter if number > 1 else None)
    pool = Pool("main", "base", (), "ROUTE", profile, tuple(tasks), (), ())
    return Snapshot(tenant, number, "", "sha256:" + "ef" * 32, {"main": pool}), examples


steps = st.lists(
    st.tuples(st.integers(1, NEWEST), st.one_of(st.none(), st.integers(0, 30))), min_size=1, max_size=8
)


def run(client: QdrantClient, tenant: str, number: int, crash_after: int | None) -> None:
    snapshot, examples = generation(tenant, number)
    try:
        dying: Any = CountedClient(client, die)
        dying.left = 0 if crash_after is None else crash_after + 1
        QdrantIndex(dying).publish(snapshot, examples)
    except Crash:
        pass


@settings(max_examples=60)
@given(steps)
def test_readers_see_one_whole_generation_and_none_goes_back_when_publishers_die_or_come_late(sequence):
    client, tenant = QdrantClient(":memory:"), f"t{uuid.uuid4().hex[:12]}"
    wanted = {root_digest(generation(tenant, n)[0]): n for n in range(1, NEWEST + 1)}
    reader, seen, held = QdrantIndex(client), 0, None
    for number, crash_after in sequence:
        run(client, tenant, number, crash_after)
        try:
            held = reader.read(tenant, held)
        except NotFound:
            assert seen == 0
            continue
        assert wanted[held.digest] == held.generation
        assert root_digest(held) == held.digest
        assert held.generation >= seen
        seen = held.generation
    run(client, tenant, NEWEST, None)
    snapshot, examples = generation(tenant, NEWEST)
    assert root_digest(reader.read(tenant, held)) == canonical(snapshot).digest
    assert reader.verify(snapshot, examples).is_sound
    surplus = reader.verify(snapshot, examples).surplus
    report = reader.publish(snapshot, examples, thorough=True)
    assert (report.written, report.deleted) == (0, surplus)
    assert reader.verify(snapshot, examples).surplus == 0


@pytest.mark.parametrize("thorough", [False, True], ids=["quick", "thorough"])
@pytest.mark.parametrize("newest", [3, 5], ids=["points-return", "a-scatter-more"])
def test_what_a_newer_generation_names_stays_when_an_older_publisher_halts_anywhere_and_goes_on_late(
    thorough, newest
):
    """Task 2 is of odd generations only: the second one replaces it, and the next brings it back."""
    wanted, halts = generation("t", newest), 0
    for calls in range(1, 60):
        client = QdrantClient(":memory:")
        run(client, "t", 1, None)
        late = Process(client)
        halting: Any = late.client
        publish = partial(QdrantIndex(halting).publish, *generation("t", 2), thorough=thorough)
        if late.run(publish, Stop(calls=calls, dies=False)) is Outcome.DONE:
            break
        halts += 1
        run(client, "t", newest, None)
        assert late.resume() is Outcome.DONE
        index = QdrantIndex(client)
        assert index.verify(*wanted).is_sound, f"halted before call {calls}"
        assert root_digest(index.read("t")) == root_digest(wanted[0])
    assert halts > 10
