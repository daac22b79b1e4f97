"""Whatever the order of commands, events, crashes and halts, the index equals the registry."""

from typing import Any

import pytest
from qdrant_client import models
from sqlalchemy import text

from benchmarks.sequences import figures, line, run
from benchmarks.sequences_machine import Machine
from benchmarks.sequences_process import Stop
from benchmarks.sequences_site import Site
from lorauter.store import create_engine

SEQUENCES, STEPS, SEED = 60, 10, 1
_FORGET = text(
    "CREATE FUNCTION forget() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
    "DELETE FROM outbox WHERE id = NEW.id AND topic = 'index'; RETURN NULL; END $$"
)
_FORGETTING = text("CREATE TRIGGER forgetting AFTER INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION forget()")


class Unguarded:
    """A client whose writes all take place, whatever is there already."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def upsert(self, *arguments: Any, update_filter: models.Filter | None = None, **options: Any) -> Any:
        return self._client.upsert(*arguments, **options)


@pytest.fixture
def engine(postgres_url):
    engine = create_engine(postgres_url, pool_size=8)
    yield engine
    engine.dispose()


@pytest.mark.timeout(300)
def test_index_equals_the_registry_when_anything_comes_in_any_order(engine, tmp_path):
    result = run(Site(engine, tmp_path), SEED, SEQUENCES, steps=STEPS)
    assert result["violation"] == ""
    assert result["sequences"] >= SEQUENCES
    assert result["steps"] >= 4 * SEQUENCES


def test_a_violation_is_found_when_the_outbox_loses_rows(engine, tmp_path):
    with engine.begin() as connection:
        connection.execute(_FORGET)
        connection.execute(_FORGETTING)
    result = run(Site(engine, tmp_path), SEED, 5, steps=STEPS)
    assert "AssertionError" in result["violation"]
    assert "state.teardown()" in result["violation"]


def late_publisher(site: Site) -> Machine:
    """Plays one sequence: a worker halts before it moves the marker, and wakes once another did more."""
    Machine.site = site
    machine = Machine()
    machine.first_pool()
    machine.deliver(worker=0, place=0, again=False, stop=None)
    machine.create_task("t", "p", "")
    machine.put_validation_set("t", ["sort", "add"], "")
    machine.deliver(worker=0, place=0, again=True, stop=Stop("upsert", dies=False))
    machine.tag_task("t", ["add"], "")
    machine.pass_time()
    machine.deliver(worker=1, place=0, again=False, stop=None)
    machine.published_generation_never_goes_back()
    machine.wake_up(place=0, dies=False)
    return machine


def test_a_late_publisher_changes_nothing_when_a_newer_generation_is_published(engine, tmp_path):
    machine = late_publisher(Site(engine, tmp_path))
    machine.published_generation_never_goes_back()
    machine.teardown()


def test_a_violation_is_found_when_the_markers_guard_is_off(engine, tmp_path):
    machine = late_publisher(Site(engine, tmp_path, Unguarded))
    with pytest.raises(AssertionError, match="went back"):
        machine.published_generation_never_goes_back()
    machine.site.end()


def test_figures_count_slices_with_a_violation():
    slices = [
        {"seed": seed, "sequences": 100, "steps": 900, "violation": violation, "seconds": 1.5}
        for seed, violation in ((7, ""), (8, "AssertionError: x"))
    ]
    assert line(figures(slices)) == "200 sequences of 1,800 steps, seeds 7 to 8: 1 violations in 3 s"
