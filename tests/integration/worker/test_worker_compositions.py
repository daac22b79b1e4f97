"""Compositions of registered adapters become composites that the engine serves as it serves the set."""

from __future__ import annotations

import json
import math
import urllib.request

import numpy as np
import pytest

from lorauter.errors import FailedPrecondition, LorauterError, NotFound, UnprocessableRequest
from lorauter.lora.check import read_modules
from lorauter.lora.composites import CompositeStore
from lorauter.lora.servers import tgi, vllm
from lorauter.store import tables, write
from lorauter_worker.service.compositions import Compositions, Member

POOL = "main"
NAMES = ("reverse-word-a", "sort-word-a", "dash-word-a")
MEMBERS = [Member("reverse-word-a", 1, 0.5), Member("sort-word-a", 1, 0.75), Member("dash-word-a", 1, -0.25)]


@pytest.fixture
def demo(registry, demo_engine):
    """The demo's base and three of its adapters, registered; digests by name."""
    modules = {name: list(shape) for name, shape in read_modules(demo_engine.pool / "base").items()}
    registry.add_pool(modules=modules, weights_digest="sha256:demo")
    digests = {name: demo_engine.adapter(name) for name in NAMES}
    for name, digest in digests.items():
        registry.add_version(name, digest)
    return digests


@pytest.fixture
def compositions(registry, demo_engine) -> Compositions:
    return Compositions(registry.engine, CompositeStore(demo_engine.store), registry.tenant)


def logprobs(engine, adapters: list[dict[str, object]]) -> np.ndarray:
    """What the engine gives the targets of some examples."""
    examples = [example for task in ("reverse-word", "sort-word") for example in engine.examples(task, 8)]
    items = [{"prompt": text, "target": target, "adapters": adapters} for text, target in examples]
    body = json.dumps({"items": items}).encode()
    call = urllib.request.Request(f"{engine.url}/score", body, {"content-type": "application/json"})
    with urllib.request.urlopen(call, timeout=60) as answer:
        return np.array([item["logprob"] for item in json.load(answer)["items"]])


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.1)])
def test_a_composite_answers_as_the_weighted_set_does(
    demo, compositions, demo_engine, precision, tolerance
) -> None:
    composite = compositions.ensure(POOL, MEMBERS, tgi(), precision)
    assert composite.members == tuple(sorted((demo[m.adapter_id], m.weight) for m in MEMBERS))
    assert demo_engine.store.put(composite.folder) == composite.digest
    base = logprobs(demo_engine, [])
    natively = logprobs(demo_engine, [{"id": demo[m.adapter_id], "weight": m.weight} for m in MEMBERS])
    composed = logprobs(demo_engine, [{"id": composite.digest, "weight": 1.0}])
    assert np.abs(natively - base).max() > 1
    assert np.abs(composed - natively).max() < tolerance
    config = json.loads((composite.folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "test/base"


def test_a_composite_is_the_same_when_it_is_asked_for_again(demo, compositions) -> None:
    first = compositions.ensure(POOL, MEMBERS, vllm(64))
    assert compositions.ensure(POOL, MEMBERS[::-1], vllm(64)) == first
    assert compositions.ensure(POOL, MEMBERS, tgi()).name != first.name
    assert first.name in compositions.store.names()


def refused(compositions: Compositions, kind: type[LorauterError], *members: Member, **options) -> list[str]:
    """Returns reason and field of the error; nothing is written."""
    before = compositions.store.names()
    with pytest.raises(kind) as caught:
        compositions.ensure(options.pop("pool", POOL), members, options.pop("server", tgi()), **options)
    assert compositions.store.names() == before
    return [caught.value.reason, caught.value.metadata["field"]]


def test_a_composition_is_refused_with_the_field_that_is_wrong(demo, compositions, registry) -> None:
    one = MEMBERS[0]
    unprocessable = UnprocessableRequest
    assert refused(compositions, NotFound, one, pool="none") == ["POOL_NOT_FOUND", "pool"]
    assert refused(compositions, NotFound, one, Member("none", 1, 1.0)) == ["UNKNOWN_ADAPTER", "adapters[1]"]
    assert refused(compositions, NotFound, Member(NAMES[0], 2, 1.0)) == [
        "UNKNOWN_ADAPTER_VERSION",
        "adapters[0]",
    ]
    assert refused(compositions, unprocessable) == ["NO_ADAPTERS", "adapters"]
    for weight in (math.nan, math.inf):
        answer = refused(compositions, unprocessable, one, Member(NAMES[1], 1, weight))
        assert answer == ["INVALID_WEIGHT", "adapters[1].weight"]
    answer = refused(compositions, unprocessable, *MEMBERS, server=vllm(8))
    assert answer == ["COMPOSITE_RANK_TOO_LARGE", "adapters"]
    assert refused(compositions, unprocessable, one, truncate_to=0) == ["INVALID_FIELD", "truncate_to"]
    assert compositions.ensure(POOL, MEMBERS, vllm(8), truncate_to=8).error > 0


def test_a_composition_is_refused_when_an_adapter_is_of_another_pool(demo, compositions, registry) -> None:
    with write(registry.engine, registry.tenant) as tx:
        own = {"tenant": registry.tenant, "generation": tx.generation}
        tx.session.add(tables.Pool(id="other", base_model="other/base", **own))
        tx.session.flush()
        tx.session.add(tables.Adapter(id="foreign", pool="other", **own))
    answer = refused(compositions, UnprocessableRequest, MEMBERS[0], Member("foreign", 1, 0.5))
    assert answer == ["ADAPTER_BASE_MISMATCH", "adapters[1]"]


@pytest.mark.parametrize("state", ["DRAINING", "RETIRED", "QUARANTINED"])
def test_a_composition_is_refused_when_an_adapter_is_recalled(
    demo, compositions, registry, state: str
) -> None:
    compositions.ensure(POOL, MEMBERS, tgi())
    registry.execute(
        "UPDATE adapter_version SET state = :state WHERE tenant = :tenant AND adapter_id = :id",
        state=state,
        tenant=registry.tenant,
        id=NAMES[2],
    )
    assert refused(compositions, FailedPrecondition, *MEMBERS) == [f"ADAPTER_{state}", "adapters[2]"]
    assert compositions.ensure(POOL, MEMBERS[:2], tgi()).members == tuple(
        sorted((demo[member.adapter_id], member.weight) for member in MEMBERS[:2])
    )
