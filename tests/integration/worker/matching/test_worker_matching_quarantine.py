"""Adapters that are at fault: each is quarantined for its reason, and the rest is measured all the same."""

import pytest

from lorauter_worker.ports import Fault
from lorauter_worker.service.automatching import start_matchings


@pytest.mark.parametrize("fault", [Fault.DOES_NOT_LOAD, Fault.NOT_FINITE, Fault.TOO_SLOW])
def test_an_adapter_is_quarantined_and_the_rest_measured_when_the_backend_refuses_it(
    pool, matchings, scripted, fault
):
    id_ = matchings.start()
    evaluator = scripted({"digest-bb": 4}, faults={"digest-a": fault})
    matchings.matcher(evaluator, matching_batch=4).drain()
    done = matchings.get(id_)
    assert (done.state, done.done, done.progress["quarantined_count"]) == ("SUCCEEDED", 16, 1)
    assert matchings.scores() == {
        (task, arm, version): (score, 4)
        for task in ("french", "sort")
        for arm, version, score in (("b", 1, 1.0), ("base", 0, 0.0))
    }
    assert matchings.quarantined() == {"a": f"{fault}: weights do not fit"}
    assert start_matchings(pool.engine, pool.tenant) == 0
    assert pool.task_state("sort") == pool.task_state("french") == "MATCHED"
    assert len([cell for cell in evaluator.cells if cell[0] == "digest-a"]) == 4


def test_an_adapter_is_quarantined_when_it_changes_nothing_and_another_does(pool, matchings, scripted):
    id_ = matchings.start()
    matchings.matcher(scripted({"digest-bb": 4}, idle={"digest-a"}), matching_batch=4).drain()
    assert matchings.quarantined() == {
        "a": "NO_EFFECT: every target of task 'french' is as likely as by the base"
    }
    assert matchings.get(id_).state == "SUCCEEDED"
    assert {key[1] for key in matchings.affinities()} == {"b", "base"}


def test_no_adapter_is_quarantined_when_none_of_them_changes_anything(pool, matchings, scripted):
    id_ = matchings.start()
    matchings.matcher(scripted(idle={"digest-a", "digest-bb"})).drain()
    assert matchings.get(id_).state == "SUCCEEDED"
    assert matchings.quarantined() == {}
    assert not any(row.eligible for row in matchings.affinities().values())


def test_an_adapter_is_not_without_effect_when_too_few_examples_say_so(pool, matchings, scripted):
    pool.put_task("french", pool.questions("french", 1))
    pool.delete_task("sort")
    matchings.start()
    matchings.matcher(scripted({"digest-bb": 4}, idle={"digest-a"})).drain()
    assert matchings.quarantined() == {}


def test_no_adapter_is_quarantined_when_the_backend_refuses_them_all(pool, matchings, scripted):
    id_ = matchings.start()
    faults = {"digest-a": Fault.DOES_NOT_LOAD, "digest-bb": Fault.DOES_NOT_LOAD}
    matchings.matcher(scripted(faults=faults)).drain()
    failed = matchings.get(id_)
    assert failed.state == "FAILED"
    assert failed.error.startswith("BACKEND_REFUSES_ADAPTERS")
    assert matchings.quarantined() == {}
    assert matchings.rows() == []


def test_a_new_adapter_is_quarantined_when_others_were_measured_before(pool, matchings, scripted):
    matchings.start()
    matchings.matcher(scripted()).drain()
    pool.add_version("c", "digest-ccc")
    id_ = matchings.start()
    evaluator = scripted(faults={"digest-ccc": Fault.DOES_NOT_LOAD})
    matchings.matcher(evaluator).drain()
    assert matchings.quarantined() == {"c": "DOES_NOT_LOAD: weights do not fit"}
    assert matchings.get(id_).state == "SUCCEEDED"
    assert {digest for digest, _ in evaluator.cells} == {"digest-ccc"}


def test_the_version_before_serves_when_a_new_one_is_quarantined(pool, matchings, scripted, index_worker):
    matchings.start()
    matchings.matcher(scripted({"digest-a": 4})).drain()
    pool.add_version("a", "digest-a2")
    matchings.start()
    matchings.matcher(scripted(faults={"digest-a2": Fault.NOT_FINITE})).drain()
    index_worker.indexer.drain()
    routable = {each.adapter_id: each.version for each in index_worker.pool().adapters if each.routable}
    assert routable == {"a": 1, "b": 1}
