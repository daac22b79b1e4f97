"""The canary on the demo's adapters and two real engines: half precision against single precision."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from safetensors.numpy import load_file, save_file

from lorauter.canary import CANARY_TEXT, Reading, agrees, effect, has_effect
from lorauter.lora.store import AdapterStore
from lorauter_suite.embedded.ports import LOOPBACK, free_port
from lorauter_suite.embedded.probes import http_ready
from lorauter_suite.embedded.process import ProcessSpec, running
from tests.budgets import tries

ADAPTERS = tries(36, 12)
SCALED = "sort-word-a"
WEIGHTS = "adapter_model.safetensors"
Readings = dict[str, Reading]


@pytest.fixture(scope="module")
def readings(demo_pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Readings]]:
    """What each engine makes of the text, by dtype and adapter; the base has no name."""
    folder = tmp_path_factory.mktemp("canary")
    store = AdapterStore(folder / "store")
    paths = sorted((demo_pool / "adapters").iterdir())[:ADAPTERS]
    digests = {path.name: store.put(path) for path in {*paths, demo_pool / "adapters" / SCALED}}
    for factor in (0.0, 0.01, 0.35, 2.8):
        digests[f"times-{factor:g}"] = store.put(scaled(demo_pool, folder / f"{factor:g}", factor))
    with ExitStack() as engines:
        urls = {
            dtype: engines.enter_context(engine(demo_pool, store, dtype)) for dtype in ("float32", "bfloat16")
        }
        client = engines.enter_context(httpx.Client(timeout=60, trust_env=False))
        yield {
            dtype: {name: read(client, url, digest) for name, digest in {"": "", **digests}.items()}
            for dtype, url in urls.items()
        }


def scaled(pool: Path, folder: Path, factor: float) -> Path:
    """Writes an adapter with its B times a factor."""
    shutil.copytree(pool / "adapters" / SCALED, folder)
    weights = load_file(folder / WEIGHTS)
    for name, value in weights.items():
        weights[name] = value.astype("float32") * (factor if "lora_B" in name else 1.0)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


@contextmanager
def engine(pool: Path, store: AdapterStore, dtype: str) -> Iterator[str]:
    """Runs an engine on the demo's base; yields its address."""
    port = free_port()
    environment = {
        "LORAUTER_MODEL": str(pool / "base"),
        "LORAUTER_ADAPTER_STORE": str(store.root),
        "LORAUTER_DEVICE": "cpu",
        "LORAUTER_DTYPE": dtype,
        "LORAUTER_HTTP_PORT": str(port),
        "LORAUTER_LOG_LEVEL": "error",
    }
    command = [sys.executable, "-m", "lorauter_engine.main"]
    with running(ProcessSpec("engine", command, environment, probe=lambda: http_ready(port))):
        yield f"http://{LOOPBACK}:{port}"


def read(client: httpx.Client, url: str, digest: str) -> Reading:
    """Has an adapter, or the base, read the text."""
    parameters = {"max_new_tokens": 1, "details": True, "decoder_input_details": True}
    adapter = {"adapter_id": digest} if digest else {}
    body = {"inputs": CANARY_TEXT, "parameters": parameters | adapter}
    answer = client.post(f"{url}/generate", json=body).raise_for_status().json()
    return [token["logprob"] for token in answer["details"]["prefill"]]


def shipped(readings: Readings) -> list[str]:
    """The names of the demo's own adapters."""
    return [name for name in readings if name and not name.startswith("times-")]


def agree(readings: dict[str, Readings], served: str, wanted: str) -> bool | None:
    """Whether what the engine in half precision serves is what the other one has under a name."""
    half, single = readings["bfloat16"], readings["float32"]
    return agrees(half[""], half[served], single[""], single[wanted])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_adapter_of_the_demo_has_an_effect(readings, dtype) -> None:
    read = readings[dtype]
    assert len(shipped(read)) >= ADAPTERS
    assert {has_effect(read[""], read[name]) for name in shipped(read)} == {True}
    assert min(effect(read[""], read[name]) for name in shipped(read)) > 0.5
    assert has_effect(read[""], read["times-0"]) is False


def test_every_adapter_agrees_with_itself_and_with_no_other_one(readings) -> None:
    names = shipped(readings["float32"])
    found = {(a, b): agree(readings, a, b) for a in names for b in names}
    assert [pair for pair, told in found.items() if told is not (pair[0] == pair[1])] == []


def test_the_base_or_another_scale_does_not_agree(readings) -> None:
    assert agree(readings, "", SCALED) is False
    for factor in ("0", "0.01", "0.35", "2.8"):
        assert agree(readings, f"times-{factor}", SCALED) is False
    assert agree(readings, "times-2.8", "times-2.8") is True


def test_an_effect_below_the_difference_of_precisions_raises_no_alarm(readings) -> None:
    assert agree(readings, "times-0.01", "times-0.01") is None
    assert agree(readings, "times-0", "times-0") is None
