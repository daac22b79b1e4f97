"""What cannot be served is refused with the field's name, and the rows beside it never notice."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from lorauter.lora.store import AdapterStore
from tests.budgets import LONG

UNKNOWN = "sha256:" + "0" * 64
MAX_RANK = 8
PATHS = ("/generate", "/generate_stream")


@pytest.fixture(scope="module")
def client(launch: Any) -> Iterator[httpx.Client]:
    with (
        launch(LORAUTER_MAX_RANK=str(MAX_RANK)) as address,
        httpx.Client(base_url=address, timeout=60, trust_env=False) as made,
    ):
        yield made


def with_set(*adapters: tuple[str, Any]) -> dict[str, Any]:
    return {"adapters": [{"id": name, "weight": weight} for name, weight in adapters]}


@pytest.fixture(scope="module")
def bad_requests(pool, tiny_pools, tmp_path_factory) -> list[tuple[str, dict[str, Any], str]]:
    """What each is, inputs and parameters, and the field that is at fault."""
    folder = tmp_path_factory.mktemp("bad")
    store = AdapterStore(pool.store.root)
    foreign = store.put(tiny_pools(folder).adapter("foreign", width=12))
    torn = store.put(tiny_pools(folder).adapter("torn", width=16))
    weights = store.path(torn) / "adapter_model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-7])
    plain, wide = pool.adapters["plain"], pool.adapters["wide"]
    hundred = [(f"sha256:{number:064x}", 0.01) for number in range(100)]
    return [
        ("NaN", {"parameters": with_set((plain, float("nan")))}, "parameters.adapters.0.weight"),
        ("infinite", {"parameters": with_set((plain, 1), (wide, 1e400))}, "parameters.adapters.1.weight"),
        ("minus infinite", {"parameters": with_set((plain, -1e400))}, "parameters.adapters.0.weight"),
        ("no number", {"parameters": with_set((plain, "much"))}, "parameters.adapters.0.weight"),
        ("infinite together", {"parameters": with_set((plain, 1e308), (plain, 1e308))}, "adapters"),
        ("a hundred adapters", {"parameters": with_set(*hundred)}, "adapters"),
        ("unknown", {"parameters": with_set((plain, 0.5), (UNKNOWN, 0.5))}, "adapters"),
        ("unknown alone", {"parameters": {"adapter_id": UNKNOWN}}, "adapters"),
        ("no digest", {"parameters": with_set(("../../etc/passwd", 1))}, "adapters"),
        ("of another base", {"parameters": with_set((foreign, 1))}, "adapters"),
        ("torn file", {"parameters": with_set((torn, 1))}, "adapters"),
        ("rank above the limit", {"parameters": with_set((wide, 1))}, "adapters"),
        ("prompt beyond the context", {"inputs": "the " * 300}, "inputs"),
        ("empty prompt", {"inputs": ""}, "inputs"),
        ("no new tokens", {"parameters": {"max_new_tokens": 0}}, "parameters.max_new_tokens"),
        ("fewer than none", {"parameters": {"max_new_tokens": -1}}, "parameters.max_new_tokens"),
        ("too many new tokens", {"parameters": {"max_new_tokens": 100_000}}, "max_new_tokens"),
    ]


def test_each_is_refused_with_its_field_and_rows_beside_it_say_the_same(client, pool, bad_requests) -> None:
    good = {
        "inputs": "the cat sat",
        "parameters": {"max_new_tokens": 40, **with_set((pool.adapters["plain"], 0.7))},
    }
    quiet = client.post("/generate_stream", json=good).text
    for number, (name, change, field) in enumerate(bad_requests):
        for path in PATHS if LONG else PATHS[number % 2 :][:1]:
            body = {"inputs": "the", **change}
            body["parameters"] = {"max_new_tokens": 4, **change.get("parameters", {})}
            with client.stream("POST", "/generate_stream", json=good) as running:
                chunks = running.iter_raw()
                heard = next(chunks)
                # json.dumps writes NaN and Infinity, which JSON does not have, as careless clients do.
                refused = client.post(path, content=json.dumps(body))
                heard += b"".join(chunks)
            answer = refused.json()
            assert (refused.status_code, answer["error_type"]) == (422, "validation"), (name, answer)
            assert answer["field"] == field, (name, answer)
            assert field.rpartition(".")[2] in answer["error"] or field == "adapters", (name, answer)
            assert heard.decode() == quiet, name


@pytest.mark.parametrize("path", ["/score", "/generate_batch"])
def test_bulk_items_are_refused_with_their_place(client, pool, bad_requests, path) -> None:
    good = {"prompt": "the cat", "target": " sat"}
    for name, change, field in bad_requests:
        if "max_new_tokens" in field or "adapter_id" in change.get("parameters", {}):
            continue
        bad = {**good, **change.get("parameters", {})}
        if "inputs" in change:
            bad["prompt"] = change["inputs"]
        response = client.post(path, content=json.dumps({"items": [good, bad]}))
        assert response.status_code == 422, (name, response.text)
        named: Callable[[str], bool] = response.json()["field"].startswith
        assert named("items.1") or named("adapters"), (name, response.text)
    assert client.post(path, json={"items": [good, good]}).is_success
