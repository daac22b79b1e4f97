"""A manifest of the demo pool by commands: proposed, published, known to routers, told to TGI's launcher."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lorauter.lora.check import read_modules
from lorauter.lora.layout import read_layout
from lorauter.lora.servers import tgi
from lorauter.manifests import Footprints, Member
from lorauter_suite.seeding import POOL_ID
from lorauter_suite.suite import Addresses

EXIT_REFUSED = 1
MEMORY = "700kB"
"""Room for some of the demo's adapters, which take 0.02 to 0.16 MB each."""

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def store(addresses: Addresses) -> Path:
    """The suite's adapter store."""
    return Path(addresses.incoming).parent / "adapters"


def test_a_manifest_is_proposed_published_and_rendered(
    lorauter: Command, store: Path, demo_pool: Path
) -> None:
    lorauter("manifest", "render", POOL_ID, status=EXIT_REFUSED)
    proposed = json.loads(lorauter("manifest", "propose", POOL_ID, "--memory", MEMORY, "--json").stdout)
    names = [entry["name"] for entry in proposed["entries"]]
    assert 0.3 < proposed["expected_share"] < 1
    assert proposed["expected_share"] > proposed["published_share"] + 0.1
    assert int(proposed["size_bytes"]) <= 700_000
    assert proposed["left_out"]
    shown = lorauter("manifest", "show", POOL_ID, proposed["digest"][:15]).stdout
    for part in (names[0][:16], proposed["entries"][0]["members"][0]["adapter_id"], "left out", "bytes, and"):
        assert part in shown
    published = lorauter("manifest", "publish", POOL_ID, proposed["digest"]).stdout
    assert "known to routers" in published
    (row,) = lorauter("manifest", "list", POOL_ID).stdout.splitlines()[1:2]
    assert row.startswith(f"*  {proposed['digest'][:23]}")

    listed = ",".join(f"{name}=/adapters/{name}" for name in names)
    environment = lorauter("manifest", "render", POOL_ID).stdout.splitlines()
    assert environment == [f"LORA_ADAPTERS={listed}", "CUDA_GRAPHS=0"]
    flags = shlex.split(lorauter("manifest", "render", POOL_ID, "--format", "args").stdout)
    assert flags == ["--lora-adapters", listed, "--cuda-graphs", "0"]
    path = ("--adapters-path", str(store), "--store", str(store))
    values = json.loads(lorauter("manifest", "render", POOL_ID, "--format", "json", *path).stdout)
    assert (values["digest"], values["adapters"]) == (proposed["digest"], names)
    loads_without_padding(values["environment"]["LORA_ADAPTERS"], demo_pool)
    lorauter("manifest", "render", POOL_ID, "--adapters-path", "/a,b", status=EXIT_REFUSED)
    refused = lorauter(
        "manifest", "render", POOL_ID, "--store", str(store.parent / "incoming"), status=EXIT_REFUSED
    )
    assert "MANIFEST_ADAPTER_MISSING" in refused.stderr
    assert names[0] in refused.stderr
    written = store.parent / "tgi.env"
    lorauter("manifest", "render", POOL_ID, "--store", str(store), "--output", str(written))
    assert written.read_text().splitlines() == environment
    lorauter("manifest", "publish", POOL_ID, "sha256:no", status=EXIT_REFUSED)


def loads_without_padding(listed: str, demo_pool: Path) -> None:
    """Checks that every folder is there, and is what TGI's kernels take as it is."""
    footprints = Footprints(read_modules(demo_pool / "base"), tgi())
    for entry in listed.split(","):
        name, folder = entry.split("=")
        found = footprints.candidate([(Member(name, 1, "sha256:" + "0" * 64), read_layout(Path(folder)))])
        assert found.as_is, entry
