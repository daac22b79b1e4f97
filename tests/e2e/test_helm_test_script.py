"""The script of `helm test`, as the chart renders it, against a suite of real processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lorauter import Client
from lorauter.errors import NotFound
from lorauter_suite.seeding import POOL_ID
from tests.deploy.charts import LEAST, of_kind, rendered, variables


@pytest.fixture
def container() -> dict[str, Any]:
    """The container of the pod that tests a release."""
    (pod,) = of_kind(rendered(LEAST), "Pod")
    (only,) = pod["spec"]["containers"]
    return dict(only)


def run(
    container: dict[str, Any], given: dict[str, str], folder: Path, **changes: str
) -> subprocess.CompletedProcess[str]:
    """Runs the script with the command `lorauter` of this environment."""
    fixed = {name: value for name, value in variables(container).items() if isinstance(value, str)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**fixed, **given, "PATH": path, "TMPDIR": str(folder), **changes}
    command = [*container["command"], *container["args"]]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110)


def test_a_task_is_registered_routed_to_answered_and_removed(
    lorauter: Any, client: Client, container: dict[str, Any], tmp_path: Path
) -> None:
    assert variables(container)["POOL"] == POOL_ID
    done = run(container, lorauter.environment, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "helm test: registered, routed and generated"
    (task,) = set(re.findall(r"helm-test-\d+", done.stdout))
    with pytest.raises(NotFound):
        client.registry.get_task(id=task)


def test_it_fails_and_says_why_where_the_pool_is_missing(
    lorauter: Any, container: dict[str, Any], tmp_path: Path
) -> None:
    done = run(container, lorauter.environment, tmp_path, POOL="no-such-pool")
    assert done.returncode != 0
    assert "no-such-pool" in done.stderr
