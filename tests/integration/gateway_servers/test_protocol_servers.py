"""The servers that stand for TGI and vLLM do what those do."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from lorauter.lora.servers import tgi as tgi_server
from tests.protocol_servers.process import ROOT, Running

Serve = Callable[..., Running]
PROMPT = "What is the word raven backwards?"


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """Returns the events of a stream that has ended."""
    lines = [line[5:] for line in response.text.splitlines() if line.startswith("data:")]
    return [json.loads(line) for line in lines if line.strip() != "[DONE]"]


def tgi_text(server: Running, adapter: str = "", **parameters: Any) -> str:
    named = {"adapter_id": adapter} if adapter else {}
    response = server.post("/generate", {"inputs": PROMPT, "parameters": {**named, **parameters}})
    assert response.status_code == 200, response.text
    return str(response.json()["generated_text"])


def vllm_text(server: Running, model: str) -> str:
    response = server.post("/v1/completions", {"model": model, "prompt": PROMPT, "temperature": 0})
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["text"])


def load(server: Running, name: str, path: str, **more: Any) -> httpx.Response:
    return server.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": path, **more})


def until(holds: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)


def start_tgi(serve: Serve, shelf: Any, **options: Any) -> Running:
    """A TGI with an adapter of rank 8, one of rank 4 and one for another model."""
    shelf.make("eight")
    shelf.make("four", rank=4)
    shelf.make("foreign", rename=lambda key: key.replace("model.layers", "decoder.blocks"))
    listed = ",".join(f"{name}={shelf.path(name)}" for name in ("eight", "four", "foreign"))
    return serve("tgi", lora_adapters=listed, **options)


def test_tgi_answers_by_the_base_when_it_does_not_know_the_adapter(serve: Serve, shelf: Any) -> None:
    tgi = start_tgi(serve, shelf)
    base = tgi_text(tgi)
    assert tgi_text(tgi, "eight") != base
    assert tgi_text(tgi, "nobody") == base
    assert tgi_text(tgi, "foreign") == base, "tensors that match no layer are left out"
    assert tgi.counters()["by_name"] == {"": 2, "eight": 1, "foreign": 1}
    chat = {"model": "nobody", "messages": [{"role": "user", "content": PROMPT}], "temperature": 0}
    assert tgi.post("/v1/chat/completions", chat).json()["model"] == "nobody"
    whole = tgi.post("/v1/completions", {"model": "eight", "prompt": PROMPT, "temperature": 0}).json()
    assert (whole["model"], whole["choices"][0]["text"]) == ("lorauter/demo-base", tgi_text(tgi, "eight"))
    assert [model["id"] for model in tgi.get("/v1/models")["data"]] == ["lorauter/demo-base"]


def test_tgi_scales_a_rank_wrongly_when_its_kernels_pad_it(serve: Serve, shelf: Any) -> None:
    shelf.make("four", rank=4)
    padded = shelf.mix({"four": 1.0}, tgi_server())
    both = f"four={shelf.path('four')},padded={padded.folder}"
    one = serve("tgi", lora_adapters=both)
    shards = serve("tgi", lora_adapters=both, num_shard=2)
    assert len({tgi_text(one, "four"), tgi_text(one, "padded"), tgi_text(shards, "padded")}) == 3
    assert tgi_text(shards, "four") != tgi_text(one, "padded")


@pytest.mark.parametrize(
    "listed", ["a=b=c", "a@1@2", "=/path", ",", "a=/nowhere", "hub/id", "a=/nowhere@main"]
)
def test_tgi_does_not_start_when_its_adapters_are_not_as_its_grammar_has_them(listed: str) -> None:
    command = [sys.executable, "-m", "tests.protocol_servers.tgi", "--lora-adapters", listed]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "LoadError" in ended.stderr or "Invalid LoRA adapter format" in ended.stderr


def test_tgi_stream_says_under_status_200_what_goes_wrong(serve: Serve) -> None:
    tgi = serve("tgi", max_concurrent_requests=1, context=16)
    ask = {"inputs": PROMPT, "parameters": {"max_new_tokens": 3, "details": True}}
    *before, last = events(tgi.post("/generate_stream", ask))
    assert [event["index"] for event in before] == [1, 2]
    assert last["details"] == {
        "finish_reason": "length",
        "generated_tokens": 3,
        "seed": None,
        "input_length": 6,
    }
    assert last["generated_text"] == "".join(event["token"]["text"] for event in (*before, last))
    for body, status, kind in (
        ({"inputs": "", "parameters": {}}, 422, "validation"),
        ({"inputs": PROMPT * 5, "parameters": {}}, 422, "validation"),
        ({"inputs": PROMPT, "parameters": {"max_new_tokens": 99}}, 422, "validation"),
    ):
        stream, whole = tgi.post("/generate_stream", body), tgi.post("/generate", body)
        assert (stream.status_code, whole.status_code) == (200, status)
        assert events(stream) == [whole.json()]
        assert whole.json()["error_type"] == kind
    tgi.fault(stall_after=1)
    with ThreadPoolExecutor(1) as pool, httpx.Client() as held:
        running = pool.submit(held.post, tgi.url + "/generate", json=ask)
        until(lambda: tgi.counters()["running"] == 1)
        refused = tgi.post("/generate", ask)
        assert (refused.status_code, refused.json()["error_type"]) == (429, "overloaded")
        assert events(tgi.post("/generate_stream", ask)) == [refused.json()]
        tgi.kill()
        assert isinstance(running.exception(), httpx.TransportError)


def test_tgi_refuses_a_body_in_plain_words_when_it_cannot_be_read(serve: Serve) -> None:
    tgi = serve("tgi")
    response = httpx.post(tgi.url + "/generate", content=b"{")
    assert (response.status_code, response.headers["content-type"][:10]) == (400, "text/plain")
    missing = tgi.post("/generate", {"parameters": {}})
    assert (missing.status_code, missing.headers["content-type"][:10]) == (422, "text/plain")


def test_vllm_serves_an_adapter_while_its_name_is_loaded(serve: Serve, shelf: Any) -> None:
    vllm = serve("vllm", max_loras=2, max_cpu_loras=4)
    names = [shelf.make("one"), shelf.make("two")]
    unknown = vllm.post("/v1/completions", {"model": names[0], "prompt": PROMPT})
    assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "NotFoundError")
    for name in names:
        assert load(vllm, name, f"{shelf.store.root}/{name}").text.startswith("Success: LoRA adapter")
    again = load(vllm, names[0], f"{shelf.store.root}/{names[0]}")
    assert (again.status_code, again.json()["error"]["type"]) == (400, "InvalidUserInput")
    texts = {vllm_text(vllm, name) for name in ("lorauter/demo-base", *names)}
    assert len(texts) == 3
    base, *cards = vllm.get("/v1/models")["data"]
    assert (base["parent"], base["max_model_len"]) == (None, 4096)
    assert [(card["id"], card["root"], card["parent"]) for card in cards] == [
        (name, f"{shelf.store.root}/{name}", "lorauter/demo-base") for name in names
    ]
    assert vllm.post("/v1/unload_lora_adapter", {"lora_name": names[0]}).status_code == 200
    assert vllm.post("/v1/unload_lora_adapter", {"lora_name": names[0]}).status_code == 404
    assert vllm.post("/v1/unload_lora_adapter", {}).status_code == 400
    assert vllm.post("/v1/completions", {"model": names[0], "prompt": PROMPT}).status_code == 404


def test_vllm_refuses_to_load_what_it_cannot_serve(serve: Serve, shelf: Any) -> None:
    vllm = serve("vllm", max_lora_rank=8)
    shelf.make("large", rank=16)
    shelf.make("strange", rename=lambda key: key.replace("q_proj", "qq"))
    for path, status, words in (
        (shelf.path("large"), 500, "greater than max_lora_rank"),
        (shelf.path("strange"), 500, "expected target modules"),
        ("/nowhere", 404, "No adapter found"),
        ("", 400, "must be provided"),
    ):
        refused = load(vllm, "name", path)
        assert (refused.status_code, words in refused.json()["error"]["message"]) == (status, True)


def test_vllm_adapter_has_no_effect_when_its_keys_match_no_layer(serve: Serve, shelf: Any) -> None:
    vllm = serve("vllm")
    shelf.make("foreign", rename=lambda key: key.replace("model.layers", "decoder.blocks"))
    assert load(vllm, "foreign", shelf.path("foreign")).status_code == 200
    assert vllm_text(vllm, "foreign") == vllm_text(vllm, "lorauter/demo-base")


def test_vllm_goes_on_with_old_weights_when_a_name_is_loaded_in_place(
    serve: Serve, shelf: Any, tmp_path: Any
) -> None:
    vllm = serve("vllm")
    link = tmp_path / "adapter"
    shelf.make("old")
    shelf.make("new")
    link.symlink_to(shelf.path("old"))
    load(vllm, "name", str(link))
    old = vllm_text(vllm, "name")
    link.unlink()
    link.symlink_to(shelf.path("new"))
    assert load(vllm, "name", str(link), load_inplace=True).status_code == 200
    assert vllm_text(vllm, "name") == old
    load(vllm, "other", shelf.path("new"))
    assert vllm_text(vllm, "other") != old


def test_vllm_cache_evicts_the_least_recent_and_keeps_forgotten_ones(serve: Serve, shelf: Any) -> None:
    vllm = serve("vllm", max_loras=1, max_cpu_loras=2)
    for name in ("a", "b", "c"):
        shelf.make(name)
    load(vllm, "a", shelf.path("a"))
    vllm.post("/v1/unload_lora_adapter", {"lora_name": "a"})
    load(vllm, "b", shelf.path("b"))
    load(vllm, "c", shelf.path("c"))
    assert vllm.counters()["evicted"] == {}, "the forgotten one left first"
    load(vllm, "a", shelf.path("a"))
    assert vllm.counters()["evicted"] == {"b": 1}
    vllm_text(vllm, "b")
    counters = vllm.counters()
    assert counters["read_again"] == {"b": 1}
    assert counters["loads"] == {"a": 2, "b": 1, "c": 1}


def test_vllm_lets_requests_wait_when_too_many_run(serve: Serve, shelf: Any) -> None:
    vllm = serve("vllm", max_loras=1, max_cpu_loras=2, max_num_seqs=2, token_seconds=0.02)
    for name in ("a", "b"):
        load(vllm, shelf.make(name), shelf.path(name))
    models = [shelf.folder("a"), shelf.folder("b"), "lorauter/demo-base"] * 4
    with ThreadPoolExecutor(len(models)) as pool:
        texts = list(pool.map(lambda model: vllm_text(vllm, model), models))
    assert len(set(texts)) == 3
    assert vllm.counters()["most_running"] <= 2


def test_vllm_resolves_a_name_when_its_folder_is_there(serve: Serve, shelf: Any) -> None:
    name = shelf.make("one")
    vllm = serve("vllm", resolver_dir=shelf.store.root)
    assert vllm_text(vllm, name) != vllm_text(vllm, "lorauter/demo-base")
    assert vllm.post("/v1/completions", {"model": "other", "prompt": PROMPT}).status_code == 404


def test_vllm_speaks_openai_s_dialect(serve: Serve) -> None:
    vllm = serve("vllm", context=64)
    ask: dict[str, Any] = {"prompt": PROMPT, "temperature": 0, "max_tokens": 4}
    whole = vllm.post("/v1/completions", {**ask, "prompt_logprobs": 0, "logprobs": 0, "echo": True}).json()
    choice = whole["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["text"].startswith(PROMPT)
    assert choice["prompt_logprobs"][0] is None
    assert len(choice["prompt_logprobs"]) == whole["usage"]["prompt_tokens"] == 6
    assert len(choice["logprobs"]["tokens"]) == 10
    chat = {"messages": [{"role": "user", "content": PROMPT}], "temperature": 0}
    said = vllm.post("/v1/chat/completions", chat).json()["choices"][0]["message"]["content"]
    usage = {"stream_options": {"include_usage": True}}
    first, *chunks, last = events(vllm.post("/v1/chat/completions", {**chat, "stream": True, **usage}))
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == said
    assert (last["choices"], last["usage"]["prompt_tokens"]) == ([], 8)
    stop = said[7:10]
    stopped = events(vllm.post("/v1/chat/completions", {**chat, "stream": True, "stop": [stop]}))
    assert "".join(each["choices"][0]["delta"]["content"] for each in stopped) == said[: said.index(stop)]
    long = vllm.post("/v1/completions", {**ask, "prompt": PROMPT * 20})
    assert (long.status_code, "maximum context length" in long.text) == (400, True)


@pytest.mark.parametrize("kind", ["tgi", "vllm"])
def test_faults_come_as_often_as_they_are_wanted_and_are_counted(
    kind: str, serve: Serve, tmp_path: Any
) -> None:
    server = serve(kind, journal=tmp_path / "journal", answer_tokens=4)
    path, asked = ("/generate", "inputs") if kind == "tgi" else ("/v1/completions", "prompt")

    def ask(number: int) -> httpx.Response:
        return server.post(path, {asked: f"Go #{number}#"})

    server.fault(status=503, count=2)
    assert [ask(number).status_code for number in range(3)] == [503, 503, 200]
    server.fault(garbage=True, count=1)
    assert ask(3).text == "<html>"
    server.fault(cut_after=2, count=1)
    with pytest.raises(httpx.TransportError):
        ask(4)
    server.fault(error_after=2, count=1)
    assert ask(5).status_code == (424 if kind == "tgi" else 500)
    server.fault(is_healthy=False)
    assert httpx.get(server.url + "/health").status_code == 503
    server.fault(stall_after=1)
    with pytest.raises(httpx.TimeoutException):
        httpx.post(server.url + path, json={asked: "Go #6#"}, timeout=httpx.Timeout(30, read=0.3))
    until(lambda: server.counters()["cancelled"] == 1)
    lives = server.counters()["requests"]
    assert {number: life["begun"] for number, life in lives.items()} == {"2": 1, "4": 1, "5": 1, "6": 1}
    assert lives["2"] == {"begun": 1, "first": 1, "finished": 1, "cancelled": 0, "failed": 0}
    assert lives["6"]["cancelled"] == 1
    assert lives["4"]["failed"] == lives["5"]["failed"] == 1
    journal = (tmp_path / "journal").read_text().splitlines()
    assert journal[:3] == ["begun 2 -", "first 2 -", "finished 2 -"]


def test_server_starts_again_on_its_port_when_it_was_killed(serve: Serve) -> None:
    server = serve("vllm")
    server.kill()
    with pytest.raises(httpx.TransportError):
        server.get("/v1/models")
    server.start()
    assert server.get("/v1/models")["data"]
