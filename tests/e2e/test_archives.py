"""A whole suite's registry moved to another suite: same decisions, nothing measured or encoded again."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.rebuilding import are_alike, await_routed, decisions
from lorauter import Client
from lorauter_suite.suite import Addresses, Suite, SuiteOptions
from lorauter_suite.walkthrough import sample_queries
from tests.e2e.conftest import Command, connect

EXIT_REFUSED = 1
SERVICES = ("registry", "worker-index", "worker-matching", "router")

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def archive(addresses: Addresses, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive of the matched demo pool."""
    file = tmp_path_factory.mktemp("archives") / "registry.tar"
    shown = json.loads(Command(addresses)("export", str(file), "--json").stdout)
    assert shown["rows"]["pool"] == 1
    assert shown["rows"]["measurement"] > 100
    assert shown["adapters"] >= 36
    assert file.stat().st_mode & 0o777 == 0o600
    return file


@pytest.fixture(scope="module")
def moved(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """Another suite, into which it was imported; it has no engine, so that it would measure on the first."""
    with Suite(tmp_path_factory.mktemp("moved"), SuiteOptions(services=SERVICES)) as suite:
        done = Command(suite.addresses)("import", str(archive))
        assert "validation example" in done.stdout
        with connect(suite.addresses) as client:
            await_routed(client, 100)
        yield suite


def test_decisions_are_the_same(client: Client, moved: Suite) -> None:
    with connect(moved.addresses) as there:
        queries = [query.text for query in sample_queries(3)]
        assert are_alike(decisions(there, queries), decisions(client, queries))


def test_nothing_is_measured_or_encoded_again(client: Client, moved: Suite) -> None:
    ports = json.loads((moved.data_dir / "ports.json").read_text())
    with urllib.request.urlopen(f"http://127.0.0.1:{ports['worker-index']}/metrics", timeout=5) as answer:
        metrics = answer.read().decode()
    assert re.search(r'^lorauter_projections_total\{result="published"\} [1-9]', metrics, re.MULTILINE)
    assert re.search(r"^lorauter_encoded_texts_total 0\.0$", metrics, re.MULTILINE)
    with connect(moved.addresses) as there:
        assert [one.id for one in there.registry.list_operations()] == [
            one.id for one in client.registry.list_operations()
        ]
        assert list(there.registry.list_affinities()) == list(client.registry.list_affinities())


def test_archive_of_the_moved_registry_is_the_same_byte_for_byte(moved: Suite, archive: Path) -> None:
    again = archive.with_name("again.tar")
    lorauter = Command(moved.addresses)
    lorauter("export", str(again))
    assert again.read_bytes() == archive.read_bytes()
    assert "FILE_EXISTS" in lorauter("export", str(again), status=EXIT_REFUSED).stderr
    lorauter("export", str(again), "--force", "--without-weights")
    assert again.stat().st_size < archive.stat().st_size


def test_archive_goes_through_pipes(moved: Suite, archive: Path) -> None:
    environment = Command(moved.addresses).environment
    piped = subprocess.run(
        [*Command.program, "export", "-"], env=environment, capture_output=True, timeout=60
    )
    assert piped.stdout == archive.read_bytes()


def test_import_says_what_is_wrong(moved: Suite, archive: Path, tmp_path: Path) -> None:
    lorauter = Command(moved.addresses)
    assert "REGISTRY_NOT_EMPTY" in lorauter("import", str(archive), status=EXIT_REFUSED).stderr
    assert "FILE_NOT_READ" in lorauter("import", str(tmp_path / "nowhere"), status=EXIT_REFUSED).stderr
