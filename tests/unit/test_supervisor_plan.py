"""Which processes a suite runs, and with which settings."""

from __future__ import annotations

import itertools
import os
import stat
from pathlib import Path

from lorauter.access import make_key, read_key
from lorauter_suite.services import PORTS, SERVICES, SuiteOptions, plan


def planned(tmp_path, options=None, **given):
    ports = dict(zip(PORTS, itertools.count(30_000), strict=False))
    made = plan(tmp_path, ports, options or SuiteOptions(), given)
    return {spec.name: (spec, needs) for spec, needs in made.processes}, made.addresses


def test_every_part_and_service_runs_when_nothing_is_given(tmp_path):
    processes, addresses = planned(tmp_path)
    assert set(processes) == {"postgres", "valkey", "index", "migrations", *SERVICES}
    assert addresses.registry_http == f"http://127.0.0.1:{30_000 + PORTS.index('registry')}"
    assert addresses.gateway_grpc == f"127.0.0.1:{30_000 + PORTS.index('gateway-grpc')}"


def test_all_ports_differ_when_planned(tmp_path):
    processes, _ = planned(tmp_path)
    names = ("LORAUTER_HTTP_PORT", "LORAUTER_GRPC_PORT")
    used = [spec.environment.get(name, "0") for spec, _ in processes.values() for name in names]
    listening = [port for port in used if port != "0"]
    assert len(listening) == len(set(listening)) == 10


def test_no_part_is_started_when_a_server_is_given_for_it(tmp_path):
    given = {"DATABASE_URL": "postgresql://h/d", "REDIS_URL": "redis://h/0", "QDRANT_URL": "http://h:6333"}
    processes, addresses = planned(tmp_path, **given)
    assert set(processes) == {"migrations", *SERVICES}
    assert addresses.database_url == given["DATABASE_URL"]
    for name in ("registry", "worker-index"):
        environment = processes[name][0].environment
        assert {key: environment[key] for key in given} == given


def test_no_service_touches_the_schema_before_the_migrations_when_starting(tmp_path):
    processes, _ = planned(tmp_path)
    waiting = {name for name, (_, needs) in processes.items() if "migrations" in needs}
    assert waiting == {"registry", "worker-index", "worker-matching"}


def test_the_callers_adapter_roots_are_kept_when_ours_are_added(tmp_path):
    processes, addresses = planned(tmp_path, LORAUTER_ADAPTER_ROOTS=f"/mine{os.pathsep}/yours")
    roots = processes["registry"][0].environment["LORAUTER_ADAPTER_ROOTS"].split(os.pathsep)
    assert roots[-3:] == [addresses.incoming, "/mine", "/yours"]


def test_the_callers_model_is_served_when_it_names_one(tmp_path):
    options = SuiteOptions(model=Path("/demo"), model_id="demo")
    for given, expected in (({}, "/demo"), ({"LORAUTER_MODEL": "/mine"}, "/mine")):
        processes, _ = planned(tmp_path, options, **given)
        assert processes["engine"][0].environment["LORAUTER_MODEL"] == expected


def test_each_worker_has_its_queue_when_planned(tmp_path):
    processes, _ = planned(tmp_path)
    for queue in ("index", "matching"):
        assert processes[f"worker-{queue}"][0].environment["LORAUTER_QUEUES"] == queue


def test_options_win_when_they_set_the_environment(tmp_path):
    options = SuiteOptions(environment={"LORAUTER_LEASE_SECONDS": "2"}, services=("worker-matching",))
    processes, _ = planned(tmp_path, options)
    assert set(processes) == {"postgres", "valkey", "index", "migrations", "worker-matching"}
    assert processes["worker-matching"][0].environment["LORAUTER_LEASE_SECONDS"] == "2"


def test_suite_keeps_its_keys_to_itself_and_to_those_who_need_them(tmp_path):
    processes, addresses = planned(tmp_path)
    kept = tmp_path / "api-key"
    assert kept.read_text().strip() == addresses.api_key
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert addresses.api_key not in repr(addresses)
    holders = {
        name for name, (spec, _) in processes.items() if addresses.api_key in spec.environment.values()
    }
    assert holders == {"registry"}
    gateways = processes["gateway"][0].environment["LORAUTER_API_KEY"]
    assert processes["registry"][0].environment["LORAUTER_GATEWAY_KEY"] == gateways != addresses.api_key
    assert planned(tmp_path)[1].api_key == addresses.api_key
    given = make_key()
    assert planned(tmp_path, LORAUTER_BOOTSTRAP_KEY=given)[1].api_key == given


def test_suite_makes_a_new_key_when_the_kept_one_is_none(tmp_path):
    (tmp_path / "api-key").write_text("broken")
    assert read_key(planned(tmp_path)[1].api_key)
