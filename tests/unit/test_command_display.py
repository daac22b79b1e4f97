"""What the command line shows and reads, from plain values: evidence, progress, files, heat maps."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import typer
from matplotlib.image import imread
from rich.console import Console

from lorauter.errors import InvalidArgument
from lorauter.identifiers import encode_generation
from lorauter.registry.v1 import registry_pb2 as pb
from lorauter.router.v1 import router_pb2
from lorauter_suite.cli import affinity_files, evidence
from lorauter_suite.cli.heat_map import arrange
from lorauter_suite.cli.heat_map_figure import draw, save
from lorauter_suite.cli.operations import read_duration
from lorauter_suite.cli.policies import read_bytes
from lorauter_suite.cli.profiles import is_at
from lorauter_suite.cli.replaying import batches
from lorauter_suite.cli.watching import View, is_unfinished, outcome

SKILLS = ("reverse", "sort", "shift", "upper")


def measured(adapter: str, score: float, task: str = "t", **fields) -> pb.Affinity:
    count = fields.pop("count", 20)
    return pb.Affinity(
        pool="demo",
        task_id=task,
        task_version=1,
        adapter_id=adapter,
        adapter_version=0 if adapter == "base" else 1,
        score=score,
        count=count,
        **fields,
    )


def task(name: str, *tags: str, **fields) -> pb.Task:
    return pb.Task(id=name, pool="demo", version=1, state=pb.TASK_STATE_MATCHED, tags=tags, **fields)


def operation(done: int, total: int, **fields) -> pb.Operation:
    matching = pb.MatchingProgress(strategy="default", task_count=24, **fields)
    state = pb.OPERATION_STATE_RUNNING
    return pb.Operation(
        id="1", kind="matching", pool="demo", state=state, done=done, total=total, matching=matching
    )


def printed(value: object) -> str:
    text = io.StringIO()
    Console(file=text, width=100, force_terminal=False).print(value)
    return text.getvalue()


def card(of: pb.Task, *affinities: pb.Affinity) -> str:
    return "\n".join(line.plain for line in evidence.lift_card(of, evidence.best_first(affinities)))


def test_routed_score_orders_adapters_when_one_is_thinly_measured() -> None:
    lucky = measured("lucky", 1.0, count=2, shrunk_score=0.5, eligible=False)
    good = measured("good", 0.9, shrunk_score=0.85, eligible=True)
    base = measured("base", 0.5, shrunk_score=0.5)
    assert [one.adapter_id for one in evidence.best_first([lucky, base, good])] == ["good", "base", "lucky"]


def test_base_is_shown_when_only_the_best_are() -> None:
    best = evidence.best_first([measured("base", 0.1), *(measured(f"a{n}", n / 10) for n in range(2, 9))])
    assert [one.adapter_id for one in evidence.shortened(best, 2)] == ["a8", "a7", "base"]
    assert len(evidence.shortened(best, 0)) == 8


def test_lift_card_says_what_routing_gains_when_an_adapter_beats_the_base() -> None:
    lift = pb.Lift(
        adapter_id="reverse-word-a", base_score=0.41, score=0.78, standard_error=0.04, count=10, lift=0.37,
        lift_error=0.09,
    )  # fmt: skip
    assert card(task("reverse-word", lift=lift)).splitlines() == [
        "base 41 → routed 78 ± 4 with reverse-word-a (n = 10 examples that did not choose it)",
        "a gain of 37 points, 28 or more with 95 % confidence",
    ]


def test_lift_card_names_whom_all_examples_prefer_when_that_is_another() -> None:
    lift = pb.Lift(adapter_id="a", base_score=0.41, score=0.78, standard_error=0.04, count=10, lift=0.37)
    shown = card(task("t", lift=lift, best_adapter="b", best_score=0.81)).splitlines()
    assert shown[-1] == "all examples together prefer b, which is routed to: 81"
    assert len(card(task("t", lift=lift, best_adapter="a", best_score=0.81)).splitlines()) == 2


def test_lift_card_says_so_when_nothing_beats_the_base() -> None:
    lift = pb.Lift(adapter_id="base", base_score=0.41, score=0.41, standard_error=0.1, count=10)
    near = measured("near", 0.5, lift=0.05, lift_error=0.12, judged_count=10)
    assert card(task("t", lift=lift), near, measured("base", 0.4)).splitlines() == [
        "nothing beats the base beyond the error: base 41 ± 10 (n = 10 examples)",
        "closest: near, +5.0 ± 12.0 points (n = 10)",
    ]


@pytest.mark.parametrize(
    ("of", "said"),
    [
        (pb.Task(id="t"), "no validation set"),
        (pb.Task(id="t", version=1, state=pb.TASK_STATE_MATCHING), "being measured"),
        (pb.Task(id="t", version=1, state=pb.TASK_STATE_EMBEDDED), "not measured yet"),
        (task("t", base_score=0.2, best_score=0.9, best_adapter="a"), "base 20 → best 90 with a"),
    ],
)
def test_lift_card_says_why_when_there_is_no_lift(of: pb.Task, said: str) -> None:
    assert said in card(of)


def test_progress_has_rate_and_time_left_when_evaluations_are_done() -> None:
    now = [0.0]
    view = View(lambda: now[0])
    view.update(operation(1_000, 8_400, alive=[888]))
    assert view.line() == "running: 1,000 of about 8,400 evaluations, 0 of 24 tasks, alive 888"
    now[0] = 2.0
    view.update(operation(2_000, 9_000, alive=[888, 412], done_task_count=2, quarantined_count=1))
    assert view.line() == (
        "running: 2,000 of about 9,000 evaluations, 2 of 24 tasks, 500/s, 0:00:14 left, alive 888 → 412, "
        "1 quarantined"
    )
    shown = printed(view)
    for part in (
        "matching of demo by default",
        "2,000 of about 9,000",
        "500/s · 0:00:14 left",
        "888 → 412",
        "quarantined",
    ):
        assert part in shown


def test_what_is_left_is_said_when_an_operation_was_stopped() -> None:
    stopped = operation(100, 500, done_task_count=4)
    stopped.state = pb.OPERATION_STATE_CANCELLED
    stopped.end_time.GetCurrentTime()
    assert is_unfinished(stopped)
    assert "left: 20 tasks, about 400 evaluations; the same `lorauter match`" in outcome(stopped)
    done = operation(500, 500, done_task_count=24)
    done.state = pb.OPERATION_STATE_SUCCEEDED
    assert not is_unfinished(done)
    assert "left" not in outcome(done)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("1.5", 1.5), ("10m", 600), ("1h30m", 5_400), ("0s", 0)]
)
def test_duration_is_read_when_it_has_units(text: str, seconds: float) -> None:
    assert read_duration(text).total_seconds() == seconds


@pytest.mark.parametrize("text", ["", "m", "ten", "-5", "10 m", "5d"])
def test_duration_is_refused_when_it_is_none(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="no duration"):
        read_duration(text)


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_affinities_are_the_same_when_written_and_read(tmp_path, suffix: str) -> None:
    whole = measured(
        "a", 1 / 3, standard_error=0.1, shrunk_score=0.3, eligible=False, judged_score=0.0, judged_count=10,
        lift=-0.25, lift_error=0.1, likelihood=-1.5, round=2, metric="exact_match", metric_version=1,
        prompt_digest="sha256:0",
    )  # fmt: skip
    whole.measure_time.FromJsonString("2026-01-01T00:00:00.123456Z")
    bare = measured("base", 0.0)
    write = affinity_files.to_csv if suffix == "csv" else affinity_files.to_json
    file = tmp_path / f"affinities.{suffix}"
    file.write_text(write([whole, bare]), encoding="utf-8")
    read, places = affinity_files.read(file)
    assert read == [whole, bare]
    assert places == (["line 2", "line 3"] if suffix == "csv" else ["item 1", "item 2"])


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "task_id,adapter_id,score,count\nt,a,0.5,20\nt,b,half,20\n", "line 3: .*score"),
        ("a.csv", "task_id,adapter_id,score,count\nt,a,0.5\n", "line 2 has 3 cells, the header 4"),
        ("a.csv", "task_id,adapter,score\n", "unknown ones .adapter."),
        ("a.csv", "", "it is empty"),
        ("a.json", "[{}, {]", "Expecting"),
        ("a.json", '{"task_id": "t"}', "not a list"),
        ("a.json", '[{"task_id": "t"}, {"colour": 1}]', "item 2: .*colour"),
        ("a.json", "[1]", "item 1"),
        ("a.txt", "", "ends with .csv or .json"),
    ],
)
def test_place_is_named_when_a_file_of_affinities_is_wrong(tmp_path, name: str, text: str, said: str) -> None:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidArgument, match=said):
        affinity_files.read(file)


def pool(adapters_each: int, examples: int = 20) -> tuple[list[pb.Task], list[pb.Affinity]]:
    """Returns tasks of four tags and adapters that are good at one tag's tasks each, in no order."""
    tasks = [task(f"{skill}-{thing}", skill) for thing in ("word", "code") for skill in SKILLS]
    found = []
    for one in tasks:
        found.append(measured("base", 0.2, one.id, count=examples))
        for number in range(adapters_each):
            for skill in SKILLS:
                is_own = one.tags[0] == skill
                score = 0.95 - number / (2 * adapters_each) if is_own else 0.1
                seen = examples if is_own else 4
                found.append(measured(f"{skill}-{number}", score, one.id, count=seen))
    for affinity in found:
        affinity.measure_time.FromJsonString("2026-01-02T03:04:05Z")
    return tasks, found


def test_like_tasks_and_adapters_stand_together_when_tasks_have_tags() -> None:
    grid = arrange(*pool(3), limit=60)
    assert sorted(tag for tag, _, _ in grid.groups) == sorted(SKILLS)
    assert all(last - first == 1 for _, first, last in grid.groups)
    for number, (tag, first, _) in enumerate(grid.groups):
        block = slice(3 * number, 3 * number + 3)
        assert grid.columns[block] == tuple(f"{tag}-{place}" for place in range(3))
        assert (grid.scores[first, 1:][block] > 0.5).all()
        assert grid.winners[first] == 1 + 3 * number
    assert grid.shares[:, 0].tolist() == [1.0] * 8
    assert grid.shares.min() == pytest.approx(0.2)


def test_best_of_every_task_are_drawn_when_there_are_too_many_adapters() -> None:
    tasks, found = pool(300)
    grid = arrange(tasks, found, limit=8)
    assert sorted(grid.columns) == sorted(f"{skill}-{number}" for skill in SKILLS for number in (0, 1))
    assert grid.adapter_count == 1_200
    assert grid.evaluations == sum(one.count for one in found)
    title = draw(grid).texts[0].get_text()
    assert title == "demo: 8 tasks by the 8 best of 1,200 adapters and the base"


def test_cells_are_empty_when_they_were_not_measured() -> None:
    tasks, found = pool(1)
    grid = arrange([*tasks, task("new")], [one for one in found if one.adapter_id != "sort-0"], limit=60)
    row = grid.tasks.index("new")
    assert np.isnan(grid.scores[row]).all()
    assert grid.winners[row] == -1
    assert len(grid.columns) == 3


@pytest.mark.parametrize(("adapters_each", "tagged"), [(9, True), (1, False)])
def test_picture_is_drawn_when_the_grid_is_large_or_small(tmp_path, adapters_each: int, tagged: bool) -> None:
    tasks, found = pool(adapters_each)
    if not tagged:
        tasks = [task(one.id) for one in tasks[:1]]
        found = [one for one in found if one.task_id == tasks[0].id]
    grid = arrange(tasks, found, limit=60)
    file = tmp_path / "map.png"
    file.write_bytes(save(draw(grid), "png"))
    pixels = imread(file)
    height, width, _ = pixels.shape
    assert 300 < height < 3_000
    assert 1_000 < width < 3_000
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 50
    drawing = save(draw(grid), "svg").decode()
    assert "<svg" in drawing
    assert all(f">{name}</text>" in drawing for name in (*grid.tasks, *grid.columns, "base"))


def test_json_of_affinities_is_what_the_list_prints() -> None:
    (one,) = json.loads(affinity_files.to_json([measured("a", 0.5, eligible=True)]))
    assert one["adapter_id"] == "a"
    assert one["eligible"] is True
    assert "lift" not in one


def test_decisions_are_replayed_in_batches_that_a_router_takes() -> None:
    short = [pb.Decision(id=str(number), vector=b"12") for number in range(600)]
    assert [len(batch) for batch in batches(short)] == [256, 256, 88]
    assert [one.id for batch in batches(short) for one in batch] == [one.id for one in short]
    long = [pb.Decision(terms=b"1" * 32 * 1024) for _ in range(100)]
    assert [sum(one.ByteSize() for one in batch) < 3 * 1024 * 1024 for batch in batches(long)] == [True] * 2
    assert list(batches([])) == []


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("1048576", 2**20), ("500 MB", 500_000_000), ("1.5kib", 1_536), ("2TiB", 2**41)],
)
def test_sizes_are_read_with_their_units(text: str, size: int) -> None:
    assert read_bytes(text) == size


@pytest.mark.parametrize("text", ["", "-1", "8 parsecs", "GiB", "1e9", "9999999TiB"])
def test_sizes_are_refused_when_they_are_none(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is no size"):
        read_bytes(text)


def test_rollback_is_served_from_its_generation_on() -> None:
    def snapshot(generation: int) -> router_pb2.GetSnapshotResponse:
        pool = router_pb2.PoolSnapshot(tenant="acme", generation=encode_generation(generation, "acme"))
        return router_pb2.GetSnapshotResponse(pools=[pool])

    wanted = encode_generation(300, "acme")
    assert [is_at(snapshot(number), wanted) for number in (1, 299, 300, 301, 2**33)] == [
        *(False, False),
        *(True, True, True),
    ]
    assert not is_at(router_pb2.GetSnapshotResponse(), wanted)
