"""Where the embedded parts lie, which ports they get, and what their logs may grow to."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from lorauter_suite.addresses import choose_ports
from lorauter_suite.embedded.identity import Identity
from lorauter_suite.embedded.places import reaches
from lorauter_suite.embedded.ports import free_port, is_free
from lorauter_suite.embedded.postgres import clear_stale_pid
from lorauter_suite.logs import LogFolder

STRANGER = Identity("user", 65534, 65534)


def test_reaches_is_false_when_a_folder_above_is_private(tmp_path):
    (tmp_path / "private" / "inner").mkdir(parents=True)
    (tmp_path / "private").chmod(0o700)
    assert not reaches(tmp_path / "private" / "inner", STRANGER)
    assert reaches(tmp_path / "private" / "inner", Identity())


def test_ports_stay_the_same_when_chosen_again(tmp_path):
    first = choose_ports(tmp_path / "ports.json", ("a", "b"), {})
    assert choose_ports(tmp_path / "ports.json", ("b", "a"), {}) == first
    assert len(set(first.values())) == 2


def test_a_port_is_replaced_when_somebody_else_listens_on_it(tmp_path, monkeypatch):
    monkeypatch.setattr("lorauter_suite.addresses._PATIENCE_SECONDS", 0.0)
    first = choose_ports(tmp_path / "ports.json", ("a", "b"), {})
    with socket.create_server(("127.0.0.1", first["a"])):
        second = choose_ports(tmp_path / "ports.json", ("a", "b"), {})
    assert second["a"] != first["a"]
    assert second["b"] == first["b"]


def test_a_wanted_port_wins_when_another_was_kept(tmp_path):
    choose_ports(tmp_path / "ports.json", ("a", "b"), {})
    wanted = free_port()
    assert choose_ports(tmp_path / "ports.json", ("a", "b"), {"b": wanted})["b"] == wanted


@pytest.mark.parametrize("text", ["", "not json", "[]", '{"a": "high", "b": 70000}'])
def test_ports_are_chosen_anew_when_the_file_is_damaged(tmp_path, text):
    (tmp_path / "ports.json").write_text(text)
    assert all(is_free(port) for port in choose_ports(tmp_path / "ports.json", ("a", "b"), {}).values())


@pytest.mark.parametrize(("ephemeral", "bounds"), [(30_000, (20_000, 29_999)), (1024, (1024, 65535))])
def test_a_free_port_is_none_that_the_kernel_lends_when_there_is_room(monkeypatch, ephemeral, bounds):
    monkeypatch.setattr("lorauter_suite.embedded.ports._first_ephemeral_port", lambda: ephemeral)
    port = free_port()
    assert bounds[0] <= port <= bounds[1]
    assert is_free(port)


@pytest.mark.parametrize(
    "content",
    ["", "gibberish\nx\n", "999999999\n/x\n", f"{os.getpid()}\n/x\n"],
    ids=["empty", "gibberish", "dead", "another"],
)
def test_a_stale_pid_file_is_removed_when_no_server_of_the_cluster_has_that_pid(tmp_path, content):
    (tmp_path / "postmaster.pid").write_text(content)
    clear_stale_pid(tmp_path)
    assert not (tmp_path / "postmaster.pid").exists()


def test_an_orphan_is_ended_when_it_still_works_in_the_cluster(tmp_path):
    orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], cwd=tmp_path)
    (tmp_path / "postmaster.pid").write_text(f"{orphan.pid}\n")
    clear_stale_pid(tmp_path)
    assert orphan.wait(5) != 0


def test_a_log_is_cut_when_it_is_too_long_and_its_writer_goes_on(tmp_path):
    logs = LogFolder(tmp_path / "logs", max_bytes=100)
    with logs.path("part").open("ab", buffering=0) as writer:
        writer.write(b"x" * 101)
        logs.trim()
        writer.write(b"after\n")
    assert logs.path("part").read_bytes() == b"after\n"
    assert (tmp_path / "logs" / "part.log.1").stat().st_size == 101


def test_the_tail_has_whole_lines_when_the_log_is_long(tmp_path):
    logs = LogFolder(tmp_path)
    logs.path("part").write_text("\n".join(f"line {number:05}" for number in range(1000)))
    assert logs.tail("part").splitlines()[-1] == "line 00999"
    assert all(line.startswith("line ") for line in logs.tail("part").splitlines())
    assert logs.tail("part", since=logs.size("part") - 10) == "line 00999"
    assert logs.tail("nothing") == ""
