"""The metrics' registry and exact match."""

import subprocess
import sys

import pytest

from lorauter.errors import InvalidArgument
from lorauter.metrics import METRIC_NAMES, metric


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


def test_metric_names_the_known_ones_when_unknown():
    with pytest.raises(InvalidArgument) as caught:
        metric("bleurt")
    assert caught.value.reason == "UNKNOWN_METRIC"
    assert all(name in caught.value.message for name in METRIC_NAMES)


def test_metrics_import_nothing_heavy_when_imported():
    code = "import sys, lorauter.metrics; print([m for m in ('numpy', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
