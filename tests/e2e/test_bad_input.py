"""Every bad input gets a typed error that says what to do, and nothing is half-stored."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import httpx
import pytest

from lorauter import Client
from lorauter.errors import LorauterError, NotFound
from lorauter.registry.v1 import registry_pb2 as pb
from lorauter_suite.seeding import POOL_DIRECTORY, POOL_ID
from lorauter_suite.suite import Addresses

MEGABYTE = 1024 * 1024


@pytest.fixture
def adapter(addresses: Addresses) -> Path:
    """A copy of a demo adapter, under a root that the registry takes adapters from."""
    source = sorted((POOL_DIRECTORY / "adapters").iterdir())[0]
    target = Path(addresses.incoming) / "copy"
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(source, target, copy_function=shutil.copyfile))


def refused(client: Client, path: Path) -> LorauterError:
    """Registers an adapter that must be refused over gRPC; returns the error."""
    with pytest.raises(LorauterError) as caught:
        client.registry.register_adapter(id="hostile", pool=POOL_ID, path=str(path))
    with pytest.raises(NotFound):
        client.registry.get_adapter(id="hostile")
    return caught.value


def assert_problem(answer: httpx.Response, status: int) -> dict[str, object]:
    """Checks that a response is problem+json without a trace of our code; returns it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert "Traceback" not in answer.text
    problem: dict[str, object] = answer.json()
    assert problem["reason"] != "INTERNAL"
    assert problem["detail"]
    return problem


@pytest.mark.parametrize(
    "route", ["/v1/pools", "/v1/tasks", "/v1/adapters", "/v1/backends", "/v1/affinities"]
)
def test_registry_answers_400_when_json_is_malformed(addresses: Addresses, route: str) -> None:
    headers = {"content-type": "application/json", **addresses.headers}
    answer = httpx.post(f"{addresses.registry_http}{route}", content=b'{"id": ', headers=headers)
    assert_problem(answer, 400)


@pytest.mark.parametrize("route", ["/v1/pools", "/v1/tasks", "/v1/adapters", "/v1/backends"])
def test_registry_names_the_field_when_one_is_missing(addresses: Addresses, route: str) -> None:
    answer = httpx.post(f"{addresses.registry_http}{route}", json={}, headers=addresses.headers)
    assert_problem(answer, 400)


@pytest.mark.parametrize(
    "route", ["/v1/pools/nil", "/v1/tasks/nil", "/v1/adapters/nil", "/v1/operations/nil"]
)
def test_registry_answers_404_when_the_id_is_unknown(addresses: Addresses, route: str) -> None:
    assert_problem(httpx.get(f"{addresses.registry_http}{route}", headers=addresses.headers), 404)


def test_registry_answers_413_when_a_body_has_50_mb(addresses: Addresses) -> None:
    body = json.dumps({"id": "x", "pool": POOL_ID, "description": "y" * 50 * MEGABYTE})
    url = f"{addresses.registry_http}/v1/tasks"
    assert_problem(httpx.post(url, content=body, headers=addresses.headers), 413)


@pytest.mark.parametrize(
    "route", ["/v1/chat/completions", "/v1/completions", "/generate", "/generate_stream"]
)
def test_gateway_answers_413_when_a_body_has_50_mb(addresses: Addresses, route: str) -> None:
    body = json.dumps({"inputs": "y" * 50 * MEGABYTE})
    answer = httpx.post(f"{addresses.gateway_http}{route}", content=body, headers=addresses.headers)
    assert answer.status_code == 413
    assert "error" in answer.json()


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/completions", "/generate"])
@pytest.mark.parametrize("body", [b"{", b"[]", b"{}", b'{"model": 3, "inputs": 4}', b"\xff\xfe"])
def test_gateway_answers_4xx_in_the_dialect_of_the_route(
    addresses: Addresses, route: str, body: bytes
) -> None:
    headers = {"content-type": "application/json", **addresses.headers}
    answer = httpx.post(f"{addresses.gateway_http}{route}", content=body, headers=headers)
    assert 400 <= answer.status_code < 500, answer.text
    assert "error" in answer.json()
    assert "Traceback" not in answer.text


def test_validation_set_is_left_alone_when_an_input_is_empty(client: Client, addresses: Addresses) -> None:
    task = next(iter(client.registry.list_tasks(pool=POOL_ID)))
    lines = [{"input": "fine", "target": "fine"}, {"input": "  ", "target": "x"}]
    url = f"{addresses.registry_http}/v1/tasks/{task.id}/validation-set"
    content = "\n".join(map(json.dumps, lines))
    problem = assert_problem(httpx.put(url, content=content, headers=addresses.headers), 400)
    assert "2" in str(problem["detail"])
    with pytest.raises(LorauterError) as caught:
        client.registry.put_validation_set(task.id, [pb.ValidationExample(**line) for line in lines])
    assert caught.value.http_status == 400
    assert client.registry.get_task(id=task.id).version == task.version


def test_adapter_is_refused_when_it_is_for_another_base(client: Client, adapter: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "somebody/else"
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    error = refused(client, adapter)
    assert error.reason == "ADAPTER_BASE_MISMATCH"
    assert "assume_base" in error.message


def test_adapter_is_refused_when_its_weights_are_truncated(client: Client, adapter: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert refused(client, adapter).reason == "ADAPTER_TRUNCATED"


def test_adapter_is_refused_when_it_holds_a_pickle(client: Client, adapter: Path) -> None:
    (adapter / "adapter_model.bin").write_bytes(b"\x80\x04\x95")
    assert refused(client, adapter).reason == "ADAPTER_PICKLE"


def test_adapter_is_refused_when_its_path_is_outside_the_roots(client: Client) -> None:
    assert refused(client, Path("/etc")).reason == "PATH_NOT_ALLOWED"


def test_grpc_errors_are_typed_when_ids_are_bad(client: Client) -> None:
    for call in (
        lambda: client.registry.get_task(id="no-such-task"),
        lambda: client.registry.create_task(id="Bad Id!", pool=POOL_ID, metric="exact_match"),
        lambda: client.registry.create_task(id="fine", pool=POOL_ID, metric="no_such_metric"),
        lambda: client.registry.create_task(id="fine", pool="no-such-pool", metric="exact_match"),
        lambda: client.registry.register_adapter(id="auto", pool=POOL_ID, path=str(POOL_DIRECTORY)),
        lambda: client.route("", pool=POOL_ID),
        lambda: client.route("hello", pool=POOL_ID, strategy="no-such-strategy"),
        lambda: client.route("nul \x00", pool=POOL_ID, max_adapters=99),
        lambda: client.generate("hello", pool="no-such-pool"),
        lambda: client.generate("hello", pool=POOL_ID, adapter="no-such-adapter"),
        lambda: client.generate("hello", pool=POOL_ID, temperature=-1.0),
    ):
        with pytest.raises(LorauterError) as caught:
            call()
        assert caught.value.reason not in ("", "INTERNAL")
        assert caught.value.http_status < 500
