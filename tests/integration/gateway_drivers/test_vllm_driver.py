"""vLLM's driver: its bodies and answers, the base's name, and loading at run time."""

from __future__ import annotations

from typing import Any

import pytest

from lorauter.errors import InvalidArgument
from lorauter_gateway.adapters.kinds import KINDS
from lorauter_gateway.domain.model import FinishReason
from lorauter_gateway.ports import BackendFailed, Limits, Takes
from tests.integration.gateway_drivers.conftest import (
    BASE,
    NAME,
    VLLM_LAST,
    VLLM_USAGE,
    chat,
    raw,
    vllm_chunk,
)
from tests.integration.gateway_drivers.peer import Peer, Reply, events, whole

COMPLETIONS, CHAT, MODELS = "/v1/completions", "/v1/chat/completions", "/v1/models"
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


def model(name: str, root: str, parent: str | None = None, longest: int | None = None) -> dict:
    found = {"id": name, "object": "model", "created": 1, "owned_by": "vllm", "root": root, "parent": parent}
    return {**found, "max_model_len": longest, "permission": []}


def models(*listed: dict) -> Reply:
    return whole({"object": "list", "data": list(listed)})


def error(status: int, kind: str, message: str, param: str | None = None) -> Reply:
    return whole({"error": {"message": message, "type": kind, "param": param, "code": status}}, status)


def answer(text: str = "Hi", reason: str = "stop", stop: object = None) -> Reply:
    return whole({**vllm_chunk(text, reason, stop), "usage": VLLM_USAGE})


@pytest.fixture
def vllm(driver):
    return driver("vllm")


def test_kind() -> None:
    assert (KINDS["vllm"].takes, KINDS["vllm"].max_rank) == (Takes.LOADS, 16)


async def test_completion_asks_for_what_was_asked(vllm, peer: Peer) -> None:
    peer.play(COMPLETIONS, answer())
    settings: Any = {"top_p": 0.9, "top_k": 3, "repetition_penalty": 1.1, "frequency_penalty": 0.2}
    call = raw(max_new_tokens=5, temperature=0.5, seed=7, stop=("END",), **settings)
    await vllm.generate(call)
    assert peer.asked[0].json == {
        "model": NAME, "prompt": "Say hi", "stream": False, "max_tokens": 5, "temperature": 0.5, "seed": 7,
        "stop": ["END"], "include_stop_str_in_output": True, **settings,
    }  # fmt: skip


async def test_greedy_unless_asked(vllm, peer: Peer) -> None:
    peer.play(COMPLETIONS, answer())
    await vllm.generate(raw())
    assert peer.asked[0].json == {"model": NAME, "prompt": "Say hi", "stream": False, "temperature": 0.0}
    await vllm.generate(raw(do_sample=True, seed=2**64 - 1))
    assert (peer.asked[1].json["temperature"], peer.asked[1].json["seed"]) == (1.0, -1)


@pytest.mark.parametrize(
    ("reason", "stop", "expected"),
    [
        ("stop", None, FinishReason.EOS_TOKEN),
        ("stop", 128009, FinishReason.EOS_TOKEN),
        ("stop", "END", FinishReason.STOP_SEQUENCE),
        ("length", None, FinishReason.LENGTH),
    ],
)
async def test_reasons(vllm, peer: Peer, reason: str, stop: object, expected: FinishReason) -> None:
    peer.play(COMPLETIONS, answer("aEND", reason, stop))
    found = await vllm.generate(raw(stop=("END",)))
    assert (found.text, found.finish_reason) == ("aEND", expected)
    assert found.details == {
        "finish_reason": expected.value, "generated_tokens": 3, "input_length": 4, "seed": None,
        "prefill": [], "tokens": [],
    }  # fmt: skip


@pytest.mark.parametrize("reason", ["abort", "error", "tool_calls"])
async def test_generation_that_vllm_gave_up(vllm, peer: Peer, reason: str) -> None:
    peer.play(COMPLETIONS, answer("a", reason))
    with pytest.raises(BackendFailed) as caught:
        await vllm.generate(raw())
    assert (caught.value.error.reason, caught.value.is_fault) == ("GENERATION_FAILED", True)


async def test_chat(vllm, peer: Peer) -> None:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "Hello", "reasoning": None, "tool_calls": []},
        "logprobs": None,
        "finish_reason": "stop",
        "stop_reason": None,
    }
    peer.play(
        CHAT,
        whole({"id": "chatcmpl-1", "object": "chat.completion", "choices": [choice], "usage": VLLM_USAGE}),
    )
    found = await vllm.generate(chat())
    assert (found.text, found.usage.completion_tokens) == ("Hello", 3)
    assert peer.asked[0].json == {
        "model": NAME,
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}],
        "stream": False,
        "temperature": 0.0,
    }


async def test_streamed_chat(vllm, peer: Peer) -> None:
    def chunk(delta: dict, reason: str | None = None) -> dict:
        return {
            "object": "chat.completion.chunk",
            "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
        }

    first = chunk({"role": "assistant", "content": ""})
    peer.play(
        CHAT,
        events(first, chunk({"content": "Hel"}), chunk({"content": "lo"}, "length"), VLLM_LAST, b"[DONE]"),
    )
    pieces = [piece async for piece in await vllm.stream(chat())]
    assert [piece.text for piece in pieces] == ["Hel", "lo", ""]
    assert (pieces[-1].finish.text, pieces[-1].finish.finish_reason) == ("Hello", FinishReason.LENGTH)
    assert peer.asked[0].json["stream_options"] == {"include_usage": True}


async def test_stream_without_its_counts_is_unfinished(vllm, peer: Peer) -> None:
    peer.play(COMPLETIONS, events(vllm_chunk("Hi", "stop"), b"[DONE]"))
    pieces = await vllm.stream(raw())
    await anext(pieces)
    with pytest.raises(BackendFailed) as caught:
        await anext(pieces)
    assert caught.value.error.reason == "STREAM_BROKEN"


async def test_tgis_parameters_that_vllm_has_too(vllm, peer: Peer) -> None:
    peer.play(COMPLETIONS, answer())
    schema = {"type": "object", "default": None}
    for told, meant in (
        ({"type": "json", "value": schema}, {"json": schema}),
        ({"type": "json_schema", "value": {"name": "a", "schema": schema}}, {"json": schema}),
        ({"type": "regex", "value": "a+"}, {"regex": "a+"}),
    ):
        await vllm.generate(raw(extra={"grammar": told, "truncate": 9, "best_of": 1, "watermark": False}))
        body = peer.asked[-1].json
        assert body["structured_outputs"] == meant
        assert (body["truncate_prompt_tokens"], body["truncation_side"]) == (9, "left")
        assert not {"grammar", "truncate", "best_of", "watermark"} & body.keys()


@pytest.mark.parametrize(
    "extra",
    [
        {"decoder_input_details": True},
        {"top_n_tokens": 2},
        {"best_of": 2},
        {"watermark": True},
        {"typical_p": 0.9},
        {"return_full_text": True},
        {"min_p": 0.1},
    ],
)
async def test_parameters_that_vllm_cannot_do_are_refused(vllm, peer: Peer, extra: dict) -> None:
    for doing in (vllm.generate, vllm.stream):
        with pytest.raises(InvalidArgument) as caught:
            await doing(raw(extra=extra))
        assert caught.value.reason == "UNSUPPORTED_FIELD"
        assert "vLLM" in caught.value.message
    assert peer.asked == []


async def test_base_is_asked_for_as_the_server_lists_it(vllm, peer: Peer) -> None:
    adapter = model(NAME, f"/adapters/{NAME}", "llama")
    peer.play(MODELS, models(adapter, model("llama", "/models/llama"), model("other", "/models/llama")))
    peer.play(COMPLETIONS, answer())
    await vllm.generate(raw(""))
    await vllm.generate(raw(""))
    assert peer.paths() == [MODELS, COMPLETIONS, COMPLETIONS]
    assert [asked.json["model"] for asked in peer.asked[1:]] == ["llama", "llama"]


async def test_pools_own_name_of_the_base_is_taken_where_it_is_listed(vllm, peer: Peer) -> None:
    peer.play(MODELS, models(model("llama", "/m"), model(BASE, "/m")))
    peer.play(COMPLETIONS, answer())
    await vllm.generate(raw(""))
    assert peer.asked[-1].json["model"] == BASE


@pytest.mark.parametrize("streams", [False, True])
async def test_base_that_has_another_name_now_is_found_again(vllm, peer: Peer, streams: bool) -> None:
    gone = error(404, "NotFoundError", "The model `llama` does not exist.", "model")
    peer.play(MODELS, models(model("llama", "/m")), models(model("llama-2", "/m")))
    good = events(vllm_chunk("Hi", "stop"), VLLM_LAST, b"[DONE]") if streams else answer()
    peer.play(COMPLETIONS, gone, good)
    found = await (vllm.stream(raw("")) if streams else vllm.generate(raw("")))
    assert found is not None
    assert [asked.json["model"] for asked in peer.asked if asked.path == COMPLETIONS] == ["llama", "llama-2"]


async def test_server_that_lists_no_base(vllm, peer: Peer) -> None:
    peer.play(MODELS, models())
    with pytest.raises(BackendFailed) as caught:
        await vllm.generate(raw(""))
    assert caught.value.error.reason == "BACKEND_PROTOCOL"


@pytest.mark.parametrize(
    "said",
    [
        error(404, "NotFoundError", f"The model `{NAME}` does not exist.", "model"),
        error(404, "NotFoundError", f"LoRA adapter {NAME} does not exist"),
        error(400, "BadRequestError", f"LoRA adapter '{NAME}' was found but could not be loaded."),
    ],
)
async def test_adapter_that_is_not_loaded(vllm, peer: Peer, said: Reply) -> None:
    peer.play(COMPLETIONS, said)
    for doing in (vllm.generate(raw()), vllm.stream(raw()), vllm.read("a", [], NAME, BASE)):
        with pytest.raises(BackendFailed) as caught:
            await doing
        failed = caught.value
        assert (failed.error.reason, failed.is_missing, failed.try_elsewhere, failed.is_fault) == (
            "ADAPTER_NOT_SERVABLE", True, True, False,
        )  # fmt: skip
    assert peer.paths() == [COMPLETIONS] * 3


async def test_page_that_is_not_there_is_no_missing_adapter(vllm, peer: Peer) -> None:
    with pytest.raises(BackendFailed) as caught:
        await vllm.generate(raw())
    assert (caught.value.error.reason, caught.value.is_missing) == ("BACKEND_FAILED", False)


async def test_other_refusals_are_the_callers(vllm, peer: Peer) -> None:
    peer.play(COMPLETIONS, error(400, "BadRequestError", "top_k must be 0 (disable), or at least 1"))
    with pytest.raises(InvalidArgument) as caught:
        await vllm.generate(raw())
    assert caught.value.reason == "REFUSED_BY_BACKEND"


async def test_error_in_a_stream_carries_its_status(vllm, peer: Peer) -> None:
    said = {
        "error": {"message": "engine is dead", "type": "ServiceUnavailableError", "param": None, "code": 503}
    }
    peer.play(COMPLETIONS, events(said, b"[DONE]"))
    with pytest.raises(BackendFailed) as caught:
        await vllm.stream(raw())
    assert (caught.value.error.reason, caught.value.try_elsewhere) == ("BACKEND_UNAVAILABLE", True)


async def test_reading_gives_the_prompts_logprobs(vllm, peer: Peer) -> None:
    def token(number: int, logprob: float) -> dict:
        return {str(number): {"logprob": logprob, "rank": 4, "decoded_token": "a"}}

    told = [None, token(5, -1.0), token(9, -2.5)]
    body = vllm_chunk("x", "length")
    body["choices"][0]["prompt_logprobs"] = told
    peer.play(COMPLETIONS, whole({**body, "usage": VLLM_USAGE}))
    assert await vllm.read("a b c", [], NAME, BASE) == [-1.0, -2.5]
    assert peer.asked[0].json == {
        "model": NAME, "prompt": "a b c", "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0,
    }  # fmt: skip


async def test_reading_without_logprobs_is_no_reading(vllm, peer: Peer) -> None:
    peer.play(COMPLETIONS, answer())
    with pytest.raises(BackendFailed) as caught:
        await vllm.read("a", [], NAME, BASE)
    assert caught.value.error.reason == "BACKEND_PROTOCOL"


async def test_what_is_loaded_and_how_long_prompts_may_be(vllm, peer: Peer) -> None:
    peer.play(MODELS, models(model("llama", "/m", longest=4096), model(NAME, f"/a/{NAME}", "llama")))
    assert await vllm.loaded() == {NAME: f"/a/{NAME}"}
    assert await vllm.limits() == Limits(max_total_tokens=4096)


async def test_loading_and_unloading(vllm, peer: Peer) -> None:
    peer.play(LOAD, whole(f"Success: LoRA adapter '{NAME}' added successfully.".encode()))
    peer.play(UNLOAD, whole(f"Success: LoRA adapter '{NAME}' removed successfully.".encode()))
    await vllm.load(NAME, f"/a/{NAME}")
    await vllm.unload(NAME)
    assert [asked.json for asked in peer.asked] == [
        {"lora_name": NAME, "lora_path": f"/a/{NAME}"}, {"lora_name": NAME},
    ]  # fmt: skip


async def test_loading_twice_and_unloading_what_is_not_there(vllm, peer: Peer) -> None:
    twice = f"The lora adapter '{NAME}' has already been loaded. If you want to load the adapter"
    peer.play(LOAD, error(400, "InvalidUserInput", twice))
    peer.play(UNLOAD, error(404, "NotFoundError", f"The lora adapter '{NAME}' cannot be found."))
    await vllm.load(NAME, f"/a/{NAME}")
    await vllm.unload(NAME)
    assert peer.paths() == [LOAD, UNLOAD]


@pytest.mark.parametrize(
    ("said", "reason", "message"),
    [
        (error(404, "NotFoundError", "No adapter found for /a/x"), "LOAD_REFUSED", "No adapter found"),
        (
            error(500, "InternalServerError", "LoRA rank 64 is greater than max_lora_rank"),
            "LOAD_REFUSED",
            "rank 64",
        ),
        (error(400, "InvalidUserInput", "Both 'lora_name' and"), "LOAD_REFUSED", "Both"),
        (whole({"detail": "Not Found"}, 404), "LOAD_REFUSED", "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"),
        (error(503, "ServiceUnavailableError", "dead"), "BACKEND_UNAVAILABLE", "dead"),
    ],
)
async def test_loading_that_fails(vllm, peer: Peer, said: Reply, reason: str, message: str) -> None:
    peer.play(LOAD, said)
    with pytest.raises(BackendFailed) as caught:
        await vllm.load(NAME, f"/a/{NAME}")
    assert caught.value.error.reason == reason
    assert message in caught.value.error.message
    assert caught.value.is_fault == (reason == "BACKEND_UNAVAILABLE")


async def test_unloading_where_there_is_no_such_page_is_an_error(vllm, peer: Peer) -> None:
    with pytest.raises(BackendFailed) as caught:
        await vllm.unload(NAME)
    assert caught.value.error.reason == "LOAD_REFUSED"
