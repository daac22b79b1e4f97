"""What a matching makes of changes: tasks and adapters that come, change and go while it runs."""

from sqlalchemy import text

from lorauter_worker.service.automatching import start_matchings


def test_only_new_examples_are_asked_when_a_validation_set_changes_in_part(pool, matchings, scripted):
    start_matchings(pool.engine, pool.tenant)
    matchings.matcher(scripted({"digest-a": 9})).drain()
    pool.put_task("sort", pool.questions("sort", 6)[2:])
    assert start_matchings(pool.engine, pool.tenant) == 0
    pool.execute("UPDATE task SET state = 'EMBEDDED' WHERE id = 'sort'")
    assert start_matchings(pool.engine, pool.tenant) == 1
    evaluator = scripted({"digest-a": 5})
    matchings.matcher(evaluator).drain()
    assert sorted(evaluator.cells) == sorted(
        (digest, f"sort answer {number}") for digest in ("", "digest-a", "digest-bb") for number in (4, 5)
    )
    assert matchings.scores()["sort", "a", 1] == (0.75, 4)
    assert len(matchings.stored("sort", "digest-a")) == 4
    assert pool.task_state("sort") == "MATCHED"


def test_everything_is_asked_again_when_the_prompt_changes(pool, matchings, scripted):
    matchings.start()
    matchings.matcher(scripted()).drain()
    pool.execute("UPDATE task_version SET prompt_digest = 'sha256:other' WHERE task_id = 'sort'")
    pool.execute("DELETE FROM affinity WHERE task_id = 'sort'")
    matchings.start()
    evaluator = scripted()
    matchings.matcher(evaluator).drain()
    assert len(evaluator.cells) == 12
    assert all(target.startswith("sort") for _, target in evaluator.cells)


def test_a_task_that_changes_is_measured_in_its_new_version_when_matching_runs(pool, matchings, scripted):
    id_ = matchings.start()
    evaluator = scripted({"digest-a": 4})

    def replace() -> None:
        evaluator.before = lambda: None
        pool.put_task("french", pool.questions("new french", 6))
        pool.delete_task("sort")

    evaluator.before = replace
    matchings.matcher(evaluator).drain()
    assert matchings.get(id_).state == "SUCCEEDED"
    with pool.engine.connect() as connection:
        rows = connection.execute(text("SELECT DISTINCT task_id, task_version, count FROM affinity")).all()
    assert rows == [("french", 2, 6)]


def test_the_rest_is_measured_when_a_task_is_deleted_in_the_middle(pool, matchings, scripted):
    id_ = matchings.start()
    evaluator = scripted()

    def delete() -> None:
        if len(evaluator.asked) == 1:
            pool.delete_task("french")

    evaluator.before = delete
    matchings.matcher(evaluator, matching_batch=4).drain()
    done = matchings.get(id_)
    assert (done.state, done.done, done.total) == ("SUCCEEDED", 20, 20)
    assert {key[0] for key in matchings.affinities()} == {"sort"}
    assert [part.state for part in matchings.parts(id_)] == ["DONE", "DONE"]


def test_a_task_is_measured_anew_when_its_id_comes_again_meanwhile(pool, matchings, scripted):
    matchings.start()
    evaluator = scripted({"digest-a": 4})

    def create_again() -> None:
        evaluator.before = lambda: None
        pool.delete_task("french")
        pool.put_task("french", pool.questions("new french", 6))

    evaluator.before = create_again
    matchings.matcher(evaluator).drain()
    with pool.engine.connect() as connection:
        rows = connection.execute(
            text("SELECT task_version, count, count(*) FROM affinity WHERE task_id = 'french' GROUP BY 1, 2")
        ).all()
    assert rows == [(1, 6, 3)]


def test_an_adapter_is_left_out_when_it_is_retired_in_the_middle(pool, matchings, scripted):
    id_ = matchings.start()
    evaluator = scripted()

    def retire() -> None:
        if len(evaluator.asked) == 1:
            pool.execute("UPDATE adapter_version SET state = 'RETIRED' WHERE adapter_id = 'b'")
            pool.touch()

    evaluator.before = retire
    matchings.matcher(evaluator, matching_batch=4).drain()
    done = matchings.get(id_)
    assert (done.state, done.done, done.total) == ("SUCCEEDED", 16, 16)
    assert {key[1] for key in matchings.affinities()} == {"a", "base"}
    assert "digest-bb" not in {digest for digest, _ in evaluator.cells}


def test_tasks_and_adapters_join_when_they_come_while_a_matching_runs(pool, matchings, scripted):
    id_ = matchings.start()
    evaluator = scripted()

    def register() -> None:
        evaluator.before = lambda: None
        pool.put_task("third", pool.questions("third"))
        pool.add_version("c", "digest-ccc")

    evaluator.before = register
    matchings.matcher(evaluator, matching_batch=4).drain()
    done = matchings.get(id_)
    assert (done.state, done.done, done.progress["task_count"]) == ("SUCCEEDED", 48, 3)
    assert len(evaluator.cells) == len(set(evaluator.cells)) == 48
    assert len(matchings.affinities()) == 12


def test_a_matching_ends_when_its_pool_has_no_tasks(registry, matchings, scripted):
    registry.add_pool()
    id_ = matchings.start()
    matchings.matcher(scripted()).drain()
    done = matchings.get(id_)
    assert (done.state, done.message, done.done) == ("SUCCEEDED", "done", 0)
