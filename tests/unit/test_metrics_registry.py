"""Exact match, what a metric is, and the registry with metrics that a deployment adds."""

import subprocess
import sys

import pytest

from lorauter.errors import AlreadyExists, FailedPrecondition, InvalidArgument, UnprocessableRequest
from lorauter.metrics import METRIC_NAMES, Metric, metric, metric_names, register

LENGTH = (
    "from lorauter.metrics import Metric\nLENGTH = Metric('length', 3, of_text=lambda said, wanted: 0.5)\n"
)
ASK = """
from lorauter.errors import LorauterError
from lorauter.metrics import metric, metric_names
print(*metric_names())
for name in {names!r}:
    try:
        print(name, metric(name).version)
    except LorauterError as error:
        print(name, error.reason, error.message)
"""


def half(prediction, target):
    return 0.5


def fails(*texts):
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("prediction", "target", "score"),
    [
        ("abc", "abc", 1.0),
        (" abc\n", "abc", 1.0),
        ("abc", " abc ", 1.0),
        ("Abc", "abc", 0.0),
        ("a  b", "a b", 0.0),
        ("abc.", "abc", 0.0),
        ("", "abc", 0.0),
    ],
)
def test_exact_match_ignores_only_outer_white_space_when_compared(prediction, target, score):
    assert metric("exact_match").score(prediction, target) == score


def test_exact_match_is_decided_by_the_pass_when_the_likelihood_is_unknown():
    assert [metric("exact_match").from_pass(exact, float("nan")) for exact in (True, False)] == [1.0, 0.0]


def test_metric_names_the_known_ones_when_unknown():
    with pytest.raises(InvalidArgument) as caught:
        metric("bleurt")
    assert caught.value.reason == "UNKNOWN_METRIC"
    assert all(name in caught.value.message for name in METRIC_NAMES)


def test_every_metric_states_definition_and_source_when_built_in():
    for name in METRIC_NAMES:
        known = metric(name)
        assert "Source:" in (known.of_text or known.of_pass).__doc__, name


def test_metrics_import_nothing_heavy_when_imported():
    heavy = ("numpy", "torch", "sacrebleu", "lxml")
    code = f"import sys, lorauter.metrics; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_metric_says_what_it_needs_when_asked_for_the_other():
    generated, scored = Metric("generated", 1, of_text=half), metric("likelihood")
    assert (generated.needs_generation, generated.reads_text) == (True, True)
    assert (scored.needs_generation, scored.reads_text) == (False, False)
    with pytest.raises(FailedPrecondition) as caught:
        generated.from_pass(True, 0.0)
    assert caught.value.reason == "METRIC_NEEDS_GENERATION"
    with pytest.raises(FailedPrecondition) as caught:
        scored.score("a", "a")
    assert caught.value.reason == "METRIC_READS_NO_TEXT"


@pytest.mark.parametrize("value", [float("nan"), -0.1, 1.1, float("inf"), None, "1"])
def test_metric_is_called_broken_when_it_returns_no_score(value):
    with pytest.raises(UnprocessableRequest, match="'odd' version 2 returned") as caught:
        Metric("odd", 2, of_text=lambda said, wanted: value).score("a", "a")
    assert caught.value.reason == "BROKEN_METRIC"


def test_metric_is_called_broken_when_it_fails():
    with pytest.raises(UnprocessableRequest, match="ZeroDivisionError"):
        Metric("odd", 1, of_text=fails).score("a", "a")
    with pytest.raises(UnprocessableRequest, match="ZeroDivisionError"):
        Metric("odd", 1, of_text=half, fault_in=fails).check_target("a")


@pytest.mark.parametrize(("name", "version", "of_text"), [("", 1, half), ("a b", 1, half), ("a", 0, half)])
def test_metric_is_refused_when_name_or_version_is_none(name, version, of_text):
    with pytest.raises(ValueError, match="metric"):
        Metric(name, version, of_text=of_text)


def test_metric_is_refused_when_it_scores_nothing():
    with pytest.raises(ValueError, match="of_text, of_pass"):
        Metric("idle", 1)


def test_metric_is_found_when_a_program_registered_it():
    added = Metric("registered_by_a_program", 1, of_text=half)
    register(added)
    assert metric(added.name) is added
    assert added.name in metric_names()
    assert added.name not in METRIC_NAMES


@pytest.mark.parametrize("name", ["exact_match", "taken"])
def test_metric_is_refused_when_its_name_is_taken(name):
    if name not in metric_names():
        register(Metric(name, 1, of_text=half))
    with pytest.raises(AlreadyExists) as caught:
        register(Metric(name, 2, of_text=half))
    assert caught.value.reason == "METRIC_EXISTS"


@pytest.fixture
def ask(tmp_path):
    """Returns what a new process says of metrics, with the given plug-ins installed."""

    def asked(plugins, *names):
        for distribution, (source, entry_points) in plugins.items():
            (tmp_path / f"{distribution}.py").write_text(source)
            info = tmp_path / f"{distribution}-1.0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
            (info / "entry_points.txt").write_text(f"[lorauter.metrics]\n{entry_points}\n")
        code = f"import sys; sys.path.append({str(tmp_path)!r})" + ASK.format(names=names)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        known, *lines = done.stdout.splitlines()
        return known.split(), lines

    return asked


def test_plug_in_is_found_when_installed(ask):
    known, lines = ask({"plug": (LENGTH, "length = plug:LENGTH")}, "length", "exact_match")
    assert set(known) == {*METRIC_NAMES, "length"}
    assert lines == ["length 3", "exact_match 1"]


@pytest.mark.parametrize(
    ("source", "entry_point", "problem"),
    [
        ("import nowhere_to_be_found\n", "odd = plug:ODD", "ModuleNotFoundError"),
        ("ODD = 3\n", "odd = plug:ODD", "is a int and no lorauter.metrics.Metric"),
        (LENGTH, "odd = plug:LENGTH", "calls itself 'length'"),
        (LENGTH, "odd = plug:MISSING", "AttributeError"),
    ],
)
def test_plug_in_is_named_and_the_rest_works_when_it_is_broken(ask, source, entry_point, problem):
    known, (odd, exact) = ask({"plug": (source, entry_point)}, "odd", "exact_match")
    assert "odd" in known
    assert odd.startswith("odd BROKEN_METRIC metric 'odd' of plug (plug:")
    assert problem in odd
    assert exact == "exact_match 1"


def test_names_clash_when_two_plug_ins_offer_one(ask):
    two = {name: (LENGTH, f"length = {name}:LENGTH") for name in ("first", "second")}
    _, (clash, exact) = ask(two, "length", "exact_match")
    assert clash.startswith("length METRIC_CLASH")
    assert "first (first:LENGTH)" in clash
    assert "second (second:LENGTH)" in clash
    assert exact == "exact_match 1"


def test_names_clash_when_a_plug_in_offers_a_built_in_one(ask):
    _, (clash, other) = ask({"plug": (LENGTH, "bleu = plug:LENGTH")}, "bleu", "chrf")
    assert clash.startswith("bleu METRIC_CLASH metric 'bleu' is offered by lorauter itself and by plug")
    assert other == "chrf 1"
