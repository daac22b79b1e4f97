"""A Prometheus of one's own beside an embedded suite, and what it is asked."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from benchmarks.dashboards_rules import RULES, alerts
from lorauter_suite.embedded.ports import free_port

SCRAPE_SECONDS = 2
STEP_SECONDS = 4
_RATE_SECONDS = 20
"""What Grafana would put for $__rate_interval is four scrapes at least; here some more, for calm lines."""

_START_SECONDS = 30.0
_RULES_SECONDS = 120.0
JOBS = {
    "registry": ("registry",),
    "worker": ("worker-index", "worker-matching"),
    "router": ("router",),
    "gateway": ("gateway",),
    "engine": ("engine",),
}
"""As in deploy/observability/prometheus.yml; ports by their names in a suite."""


@dataclass(frozen=True, slots=True)
class Series:
    """A line of a panel: its name, and (Unix seconds, value) pairs."""

    name: str
    points: Sequence[tuple[float, float]]


class Prometheus:
    """Asks the server at ``url``; ``since`` is when it began, in Unix seconds."""

    def __init__(self, url: str, since: float) -> None:
        self._http = httpx.Client(base_url=url, timeout=30)
        self._since = since

    def range(self, expression: str, legend: str) -> list[Series]:
        """Returns what an expression gives since the server began; lines of NaN alone are none."""
        query = expression.replace("$__rate_interval", f"{_RATE_SECONDS}s")
        parameters = {"query": query, "start": self._since, "end": time.time(), "step": STEP_SECONDS}
        result = self._get("/api/v1/query_range", **parameters)["result"]
        found = [Series(_named(legend, each["metric"]), _points(each["values"])) for each in result]
        return [series for series in found if series.points]

    def rules(self) -> list[dict[str, Any]]:
        """Returns all rules with how they do."""
        return [rule for group in self._get("/api/v1/rules")["groups"] for rule in group["rules"]]

    def await_rules(self) -> None:
        """Returns once every rule was evaluated; raises TimeoutError."""
        deadline = time.monotonic() + _RULES_SECONDS
        while any(rule["health"] == "unknown" for rule in self.rules()) or not self._has_drift():
            if time.monotonic() > deadline:
                raise TimeoutError("Prometheus did not evaluate all rules in time")
            time.sleep(1)

    def broken_rules(self) -> Mapping[str, str]:
        """Returns the errors of rules by name."""
        return {rule["name"]: rule.get("lastError", "") for rule in self.rules() if rule["health"] != "ok"}

    def firing(self) -> set[str]:
        """Returns the alerts that wait to fire, or fire."""
        names = {alert["alert"] for alert in alerts()}
        return {
            rule["name"] for rule in self.rules() if rule["name"] in names and rule["state"] != "inactive"
        }

    def is_ready(self) -> bool:
        """Whether it answers."""
        try:
            return self._http.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def _has_drift(self) -> bool:
        return bool(self._get("/api/v1/query", query="lorauter:router_typicality:drift")["result"])

    def _get(self, path: str, **parameters: Any) -> Any:
        answer = self._http.get(path, params=parameters)
        answer.raise_for_status()
        return answer.json()["data"]


@contextmanager
def running(folder: Path, ports: Path) -> Iterator[Prometheus]:
    """Runs a Prometheus that scrapes the suite of a ports.json, with the real rules."""
    folder.mkdir()
    (folder / "alerts.yaml").write_text(RULES.read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "prometheus.yml").write_text(yaml.safe_dump(_configuration(ports)), encoding="utf-8")
    port = free_port()
    command = [
        *("prometheus", f"--config.file={folder / 'prometheus.yml'}"),
        *(f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"),
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)  # noqa: S603
    try:
        server = Prometheus(f"http://127.0.0.1:{port}", time.time())
        deadline = time.monotonic() + _START_SECONDS
        while not server.is_ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Prometheus did not start: {(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.1)
        yield server
    finally:
        process.terminate()
        process.wait(20)


def _configuration(ports: Path) -> dict[str, Any]:
    known = json.loads(ports.read_text(encoding="utf-8"))
    jobs = [
        {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{known[name]}" for name in names]}]}
        for job, names in JOBS.items()
    ]
    every = {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": f"{SCRAPE_SECONDS}s"}
    return {"global": every, "rule_files": ["alerts.yaml"], "scrape_configs": jobs}


def _named(legend: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), legend).strip()


def _points(values: Sequence[tuple[float, str]]) -> list[tuple[float, float]]:
    points = [(float(at), float(value)) for at, value in values]
    return [(at, value) for at, value in points if value == value]  # NaN: nothing to divide
