"""What is tracked builds anywhere, holds nothing unfinished, and stays readable."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
THIS = Path(__file__).resolve()
MOST_LINES = 400
MOST_TEST_LINES = 500
MOST_FUNCTION_LINES = 60
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
GENERATED = re.compile(r"_pb2(_grpc)?\.pyi?$")

FORBIDDEN = {
    "a path of one machine": re.compile(r"(?<![\w.])/(?:work|root|home/[a-z]+|Users/[A-Za-z]+)/\w"),
    "the host of a package registry": re.compile(
        r"pypi\.org/simple|pythonhosted\.org|registry\.npmjs\.org|download\.pytorch\.org|--(?:extra-)?index-url"
    ),
    "something left to do": re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b"),
}


def tracked(pattern: str = "*") -> list[Path]:
    """Returns the files that git knows, by name pattern."""
    command = ["git", "ls-files", "-z", "--", pattern]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    return [path for name in listing.decode().split("\0") if name and (path := ROOT / name).is_file()]


def text_of(path: Path) -> str:
    """Returns a file's text; that of a binary file is empty."""
    data = path.read_bytes()
    return "" if b"\0" in data else data.decode(errors="replace")


def hand_written_python() -> list[Path]:
    """Returns the Python files that people write."""
    return [path for path in tracked("*.py") if not GENERATED.search(path.name)]


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_tracked_file_holds(what: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in tracked()
        if path != THIS
        for number, line in enumerate(text_of(path).splitlines(), 1)
        if FORBIDDEN[what].search(line)
    ]
    assert not found, "\n".join(found)


def is_test(path: Path) -> bool:
    """Returns whether a file lies under tests/."""
    return "tests" in path.relative_to(ROOT).parts


def test_python_files_are_short() -> None:
    found = {
        str(path.relative_to(ROOT)): length
        for path in hand_written_python()
        if (length := len(text_of(path).splitlines())) > (MOST_TEST_LINES if is_test(path) else MOST_LINES)
    }
    assert not found, found


def own_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Returns a function's length without the functions inside it."""
    inner = [node for node in ast.walk(function) if isinstance(node, FUNCTION) and node is not function]
    lines = set(range(function.lineno, (function.end_lineno or 0) + 1))
    return len(lines.difference(*(range(node.lineno, (node.end_lineno or 0) + 1) for node in inner)))


def test_functions_are_short() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in hand_written_python()
        if not is_test(path)
        for node in ast.walk(ast.parse(text_of(path)))
        if isinstance(node, FUNCTION) and own_lines(node) > MOST_FUNCTION_LINES
    ]
    assert not found, "\n".join(found)


def test_python_files_say_what_they_are_for() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in hand_written_python()
        if text_of(path).strip() and not ast.get_docstring(ast.parse(text_of(path)))
    ]
    assert silent == []


def test_lock_names_exact_versions_only() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", pin)] == []
    assert pins == sorted(pins, key=lambda pin: pin.split("==")[0])
    assert not [pin for pin in pins if pin.startswith(("nvidia", "cuda", "triton"))]


def test_help_lists_exactly_the_targets_of_the_makefile() -> None:
    text = (ROOT / "Makefile").read_text()
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    listed = re.findall(r"^  make ([a-z-]+) ", shown, re.MULTILINE)
    assert sorted(listed) == sorted(re.findall(r"^([a-z-]+):", text, re.MULTILINE))
    assert sorted(listed) == sorted(re.findall(r"^\.PHONY: ([a-z-]+)$", text, re.MULTILINE))


def test_every_target_can_be_planned() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in targets:
        planned = subprocess.run(
            ["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert planned.returncode == 0, f"make {target}: {planned.stderr}"


def test_scripts_that_the_makefile_runs_are_tracked() -> None:
    used = set(re.findall(r"(?:scripts|tests)/[\w/.-]+\.py", (ROOT / "Makefile").read_text()))
    assert used
    assert used <= {str(path.relative_to(ROOT)) for path in tracked("*.py")}
