"""No regular expression of the product takes more than time in proportion, whatever it is given."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "lorauter",
    "lorauter_registry",
    "lorauter_worker",
    "lorauter_router",
    "lorauter_gateway",
    "lorauter_engine",
)
LONG = 30_000
"""Characters. In proportion that is milliseconds; by the square it is minutes."""
SECONDS = 1.0
"""Of a processor's time that one search may take before it counts as never ending."""
ANYWHERE = {"search", "sub", "findall", "finditer", "split"}
"""What tries a pattern at every place of a text; the others try it at the beginning only."""
FUNCTIONS = {"compile", "fullmatch", "match", *ANYWHERE}


class NeverEnding(Exception):
    """A search took more than SECONDS of a processor's time."""


@contextmanager
def bounded() -> Iterator[None]:
    def end(*_: object) -> None:
        raise NeverEnding

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def modules() -> list[str]:
    """Returns all modules of the product that a service runs."""
    found = []
    for package in PACKAGES:
        root = importlib.import_module(package)
        found += [each.name for each in pkgutil.walk_packages(root.__path__, f"{package}.")]
    return [name for name in found if "_pb2" not in name and "migrations" not in name]


def literals(path: Path) -> dict[str, bool]:
    """Returns the patterns that a file writes out where it uses them, and whether it does so ANYWHERE."""
    calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    found = {}
    for node in calls:
        used = node.func
        if not (
            isinstance(used, ast.Attribute) and isinstance(used.value, ast.Name) and used.value.id == "re"
        ):
            continue
        first = node.args[0] if used.attr in FUNCTIONS - {"compile"} and node.args else None
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            found[first.value] = used.attr in ANYWHERE
    return found


def patterns() -> dict[str, bool]:
    """Returns all regular expressions, compiled or written out, and whether they are used ANYWHERE."""
    found: dict[str, bool] = {}
    for name in modules():
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        source = Path(spec.origin).read_text()
        found |= literals(Path(spec.origin))
        if "re.compile(" in source:
            for held, value in vars(importlib.import_module(name)).items():
                if isinstance(value, re.Pattern):
                    is_anywhere = re.search(rf"\b{held}\.({'|'.join(ANYWHERE)})\(", source) is not None
                    found[value.pattern] = found.get(value.pattern, False) or is_anywhere
    return found


def pieces(pattern: str) -> list[str]:
    """Returns what a pattern may run on: words that it holds, and characters of all classes."""
    words = {word for word in re.findall(r"[A-Za-z_]{2,}:? ?", pattern) if len(word) < 40}
    return [
        *"a0A .,-+:_/@$%(\n\u0301é",
        *sorted(words),
        "1,",
        "a.",
        "a ",
        ". ",
        " a",
        "x=",
        "0.",
        "answer is ",
    ]


def hurtful(pattern: str) -> Iterator[str]:
    """Yields long texts: one piece again and again, after each beginning that the pattern may want."""
    beginnings = ["", *sorted(set(re.findall(r"[A-Za-z]{2,}[: ]*", pattern)))[:2]]
    for piece in pieces(pattern):
        run = piece * (LONG // len(piece))
        for beginning in beginnings:
            yield f"{beginning}{run}\x01"


PATTERNS = patterns()


def test_patterns_are_found() -> None:
    assert len(PATTERNS) > 30
    assert sum(PATTERNS.values()) > 5


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_regular_expression_ends_when_its_text_is_long_and_hurtful(pattern: str) -> None:
    compiled = re.compile(pattern)
    for text in hurtful(pattern):
        try:
            with bounded():
                compiled.fullmatch(text)
                compiled.match(text)
                if PATTERNS[pattern]:
                    sum(1 for _ in compiled.finditer(text))
        except NeverEnding:
            pytest.fail(f"{pattern!r} does not end on {text[:60]!r}…")


def test_a_regular_expression_that_takes_the_square_is_noticed() -> None:
    with pytest.raises(NeverEnding), bounded():
        sum(1 for _ in re.finditer(r"\s+$", " " * 4 * LONG + "x"))
