"""Nothing is believed of a server: what it does not have, or has wrongly, is never served under its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from lorauter.lora.servers import tgi as tgi_server
from lorauter.routing.model import Adapter, Backend, Manifest, ManifestEntry, Serving
from tests.integration.gateway_servers.conftest import TASKS, Shelf
from tests.integration.gateway_servers.load import expected
from tests.integration.gateway_servers.stand import (
    Background,
    Gateway,
    TaskTexts,
    World,
    gateway,
    routing,
    until,
)
from tests.protocol_servers.process import Running
from tests.protocol_servers.tgi import READING
from tests.protocol_servers.weights import BASE, Weights, modules_of, read_weights

PROMPT = "What is the word raven backwards?"
Serve = Callable[..., Running]


class Place:
    """A store with two good adapters and one whose keys match no layer, and gateways on it."""

    def __init__(
        self,
        shelf: Shelf,
        background: Background,
        tasks: TaskTexts,
        redis_url: str,
        folder: Path,
        stack: ExitStack,
    ) -> None:
        self.shelf = shelf
        self._background = background
        self._tasks = tasks
        self._redis_url = redis_url
        self._folder = folder
        self._stack = stack
        for name in ("one", "two"):
            shelf.make(name)
        shelf.make("foreign", rename=lambda key: key.replace("model.layers", "decoder.blocks"))

    def listed(self, *names: str) -> str:
        """Returns LORA_ADAPTERS."""
        return ",".join(f"{self.shelf.folder(name)}={self.shelf.path(name)}" for name in names)

    def manifest(self, digit: str, *names: str) -> Manifest:
        """Returns a manifest of adapters."""
        entries = (
            ManifestEntry(self.shelf.folder(name), ((self.shelf.digests[name], 1.0),), 8) for name in names
        )
        return Manifest("sha256:" + digit * 64, tuple(entries))

    def backend(self, name: str, kind: str, url: str, path: str = "") -> Backend:
        """Returns a backend."""
        path = path or str(self.shelf.store.root)
        return Backend(name, kind, url, False, adapter_slots=4, adapters_path=path)

    def gateway(self, settings: Mapping[str, str] | None = None, **world: Any) -> Gateway:
        """Runs a router that knows all adapters, and a gateway."""
        adapters = [
            Adapter(name, 1, digest, True, rank=self.shelf.rank(name))
            for name, digest in self.shelf.digests.items()
        ]
        known = World(adapters, **{"best": {}, **world})
        router = self._stack.enter_context(routing(self._background, self._tasks, known))
        log = self._folder / "gateway.log"
        return self._stack.enter_context(
            gateway(router.address, log, redis_url=self._redis_url, **settings or {})
        )

    async def text(self, name: str = "") -> str:
        """Returns what the base with an adapter really says."""
        modules = modules_of(str(self.shelf.base))
        weights: Weights = read_weights(self.shelf.path(name), READING, modules) if name else BASE
        return await expected(PROMPT, weights, 16)


@pytest.fixture
def place(
    shelf: Shelf, background: Background, tasks: TaskTexts, redis_url: str, tmp_path: Path
) -> Iterator[Place]:
    """See Place."""
    with ExitStack() as stack:
        yield Place(shelf, background, tasks, redis_url, tmp_path, stack)


@pytest.fixture
def demo_place(
    demo_shelf: Shelf, background: Background, tasks: TaskTexts, redis_url: str, tmp_path: Path
) -> Iterator[Place]:
    """The same with the demo's adapters, on the engine's store."""
    with ExitStack() as stack:
        yield Place(demo_shelf, background, tasks, redis_url, tmp_path, stack)


def pin(front: Gateway, name: str, prompt: str = PROMPT) -> Any:
    return front.post(
        "/generate", {"inputs": prompt, "parameters": {"adapter_id": name, "max_new_tokens": 16}}
    )


def check_refused_everywhere(front: Gateway, name: str) -> None:
    """No route answers under the adapter's name; each says so in its dialect."""
    whole = pin(front, name)
    assert (whole.status_code, whole.json()["error_type"]) == (422, "validation")
    assert name in whole.json()["error"]
    parameters = {"adapter_id": name, "max_new_tokens": 16}
    stream = front.post("/generate_stream", {"inputs": PROMPT, "parameters": parameters})
    assert (stream.status_code, stream.json()["error_type"]) == (422, "validation")
    for streams in (False, True):
        for path, asked in (
            ("/v1/completions", {"prompt": PROMPT}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": PROMPT}]}),
        ):
            refused = front.post(path, {"model": name, "stream": streams, **asked})
            assert refused.status_code == 412
            assert refused.json()["error"]["code"] == "adapter_not_loaded"


async def test_tgi_that_lacks_a_listed_adapter_never_answers_by_the_base_under_its_name(
    place: Place, serve: Serve
) -> None:
    tgi = serve("tgi", lora_adapters=place.listed("one"))
    front = place.gateway(
        backends=[place.backend("pod", "tgi", tgi.url)],
        manifests=[place.manifest("1", "one", "two")],
        best={TASKS[0]: ["one"], TASKS[1]: ["two", "one"], TASKS[2]: ["two"]},
    )
    assert pin(front, "one").json()["generated_text"] == await place.text("one")
    check_refused_everywhere(front, "two")
    (named,) = front.replica("pod")["quarantined"]
    assert (named["name"], named["found"]) == (place.shelf.folder("two"), "absent")
    assert tgi.counters()["by_name"].keys() <= {"", place.shelf.folder("one")}
    tgi.kill()
    tgi.start(lora_adapters=place.listed("one", "two"))
    until(lambda: pin(front, "two").status_code == 200, seconds=20)
    assert pin(front, "two").json()["generated_text"] == await place.text("two")


async def test_adapter_that_a_quick_restart_leaves_out_is_not_answered_by_the_base(
    place: Place, serve: Serve
) -> None:
    tgi = serve("tgi", lora_adapters=place.listed("one", "two"))
    front = place.gateway(
        backends=[place.backend("pod", "tgi", tgi.url)],
        manifests=[place.manifest("1", "one", "two")],
        best={TASKS[0]: ["one"], TASKS[1]: ["two", "one"], TASKS[2]: ["two"]},
        settings={"LORAUTER_PROBE_SECONDS": "30"},
    )
    assert pin(front, "two").json()["generated_text"] == await place.text("two")
    tgi.kill()
    tgi.start(lora_adapters=place.listed("one"))
    check_refused_everywhere(front, "two")
    assert pin(front, "one").json()["generated_text"] == await place.text("one")


@pytest.mark.parametrize("refuse", [False, True])
def test_decision_that_an_instance_cannot_serve_is_replaced_openly_or_refused(
    place: Place, serve: Serve, queries: dict[str, list[str]], refuse: bool
) -> None:
    tgi = serve("tgi", lora_adapters=place.listed("one"))
    front = place.gateway(
        backends=[place.backend("pod", "tgi", tgi.url)],
        manifests=[place.manifest("1", "one", "two")],
        best={TASKS[0]: ["two", "one"], TASKS[1]: ["two"]},
        serving=Serving(refuse_degraded=refuse),
    )
    for task, instead in ((TASKS[0], "one;w=1.0"), (TASKS[1], "base;w=1.0")):
        answer = front.post("/generate", {"inputs": queries[task][0]})
        if refuse:
            assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")
        else:
            assert answer.headers["x-lorauter-adapters"] == instead
            assert "two@1" in answer.headers["x-lorauter-degraded"]


async def test_pods_with_the_old_and_the_new_manifest_serve_beside_each_other(
    place: Place, serve: Serve
) -> None:
    place.shelf.make("three")
    old = serve("tgi", lora_adapters=place.listed("one", "two"))
    new = serve("tgi", lora_adapters=place.listed("two", "three"))
    front = place.gateway(
        backends=[place.backend("old", "tgi", old.url), place.backend("new", "tgi", new.url)],
        manifests=[place.manifest("2", "two", "three"), place.manifest("1", "one", "two")],
    )
    for name, pods in (("one", {"old"}), ("two", {"old", "new"}), ("three", {"new"})):
        answers = [pin(front, name) for _ in range(8)]
        assert {answer.json()["generated_text"] for answer in answers} == {await place.text(name)}
        assert {answer.headers["x-lorauter-backend"] for answer in answers} == pods


@pytest.mark.parametrize("kind", ["tgi", "vllm"])
async def test_adapter_whose_keys_match_no_layer_is_caught_by_the_canary(
    place: Place, serve: Serve, kind: str
) -> None:
    options = {"lora_adapters": place.listed("one", "foreign")} if kind == "tgi" else {"max_loras": 4}
    server = serve(kind, **options)
    front = place.gateway(
        backends=[place.backend("server", kind, server.url)],
        manifests=[place.manifest("1", "one", "foreign")] if kind == "tgi" else [],
    )
    check_refused_everywhere(front, "foreign")
    (named,) = front.replica("server")["quarantined"]
    assert named["name"] == place.shelf.folder("foreign")
    assert "as the base does" in named["reason"]
    assert front.metric("lorauter_gateway_canary_failures_total", backend="server") >= 1
    assert pin(front, "one").json()["generated_text"] == await place.text("one")
    assert pin(front, "base").json()["generated_text"] == await place.text()


@pytest.mark.parametrize("kind", ["tgi", "vllm"])
def test_wrong_adapter_under_a_name_is_caught_by_comparison_with_the_engine(
    demo_place: Place, serve: Serve, kind: str, engine_url: str, tmp_path: Path
) -> None:
    shelf, right, wrong, small = demo_place.shelf, "reverse-word-a", "dash-word-a", "sort-word-a"
    swapped = tmp_path / "swapped"
    swapped.mkdir()
    (swapped / shelf.folder(right)).symlink_to(shelf.path(wrong))
    (swapped / shelf.folder(small)).symlink_to(shelf.path(small))
    query = "Say the word raven backwards."
    listed = ",".join(f"{shelf.folder(name)}={swapped}/{shelf.folder(name)}" for name in (right, small))
    options = {"lora_adapters": listed} if kind == "tgi" else {"max_loras": 4}
    server = serve(kind, engine=engine_url, context=512, **options)
    front = demo_place.gateway(
        backends=[
            demo_place.backend("server", kind, server.url, str(swapped)),
            demo_place.backend("engine", "engine", engine_url),
        ],
        manifests=[demo_place.manifest("1", right, small)] if kind == "tgi" else [],
    )
    answers = [pin(front, right, query) for _ in range(6)]
    assert {answer.json()["generated_text"] for answer in answers} == {
        _engine_text(front, shelf.digests[right], engine_url, query)
    }
    assert {answer.headers["x-lorauter-backend"] for answer in answers} == {"engine"}
    others = {pin(front, small, query).headers["x-lorauter-backend"] for _ in range(6)}
    # TGI's kernels pad a rank of 4, which scales it wrongly; vLLM serves any rank
    assert others == ({"engine"} if kind == "tgi" else {"server"})
    named = {each["name"]: each for each in front.replica("server")["quarantined"]}
    names = (right, small) if kind == "tgi" else (right,)
    assert named.keys() == {shelf.folder(name) for name in names}
    assert {each["found"] for each in named.values()} == {"quarantined"}
    assert all("engine" in each["reason"] for each in named.values())


def _engine_text(front: Gateway, digest: str, url: str, query: str) -> str:
    adapters = [{"id": digest, "weight": 1.0}]
    body = {"inputs": query, "parameters": {"max_new_tokens": 16, "adapters": adapters}}
    return str(front.http.post(f"{url}/generate", json=body).json()["generated_text"])


def test_rank_that_tgi_pads_is_served_rightly_as_a_composite_of_one(
    demo_place: Place, serve: Serve, engine_url: str
) -> None:
    shelf, name, query = demo_place.shelf, "sort-word-a", "Sort the letters of raven."
    composite = shelf.mix({name: 1.0}, tgi_server())
    listed = f"{composite.name}={composite.folder}"
    tgi = serve("tgi", engine=engine_url, context=512, lora_adapters=listed)
    entry = ManifestEntry(composite.name, composite.members, composite.rank)
    front = demo_place.gateway(
        backends=[demo_place.backend("pod", "tgi", tgi.url)],
        manifests=[Manifest("sha256:" + "1" * 64, (entry,))],
    )
    answer = pin(front, name, query)
    assert answer.json()["generated_text"] == _engine_text(front, shelf.digests[name], engine_url, query)
    assert answer.headers["x-lorauter-adapters"] == f"{name};w=1.0"
