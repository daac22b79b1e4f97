"""TGI's driver: its bodies, its answers, and the library's second try that must not happen."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
from huggingface_hub.inference._common import (
    _UNSUPPORTED_TEXT_GENERATION_KWARGS,
    _set_unsupported_text_generation_kwargs,
)

from lorauter.errors import InvalidArgument, LorauterError, UnprocessableRequest
from lorauter_gateway.adapters.kinds import KINDS
from lorauter_gateway.domain.model import FinishReason, Usage
from lorauter_gateway.ports import BackendFailed, Limits, Takes
from tests.integration.gateway_drivers.conftest import NAME, chat, raw, tgi_answer, tgi_token
from tests.integration.gateway_drivers.peer import Peer, events, whole

NOT_USED = "The following `model_kwargs` are not used by the model: ['adapter_id']"
CHAT = "/v1/chat/completions"
CHAT_ANSWER = {
    "object": "chat.completion",
    "id": "",
    "created": 1,
    "model": "org/base",
    "system_fingerprint": "3.3.6-native",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello"},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11},
}


@pytest.fixture
def tgi(driver):
    return driver("tgi")


def chat_chunk(content: str, reason: str | None = None, usage: object = None) -> dict:
    choice = {"index": 0, "delta": {"role": "assistant", "content": content}, "finish_reason": reason}
    return {**CHAT_ANSWER, "object": "chat.completion.chunk", "choices": [choice], "usage": usage}


def test_kind() -> None:
    assert (KINDS["tgi"].takes, KINDS["tgi"].max_rank) == (Takes.LISTED, 128)
    assert (KINDS["engine"].takes, KINDS["engine"].max_rank) == (Takes.SETS, 0)


@pytest.mark.parametrize("streams", [False, True])
async def test_body_names_the_adapter_and_what_was_asked(tgi, peer: Peer, streams: bool) -> None:
    peer.play("/generate", whole(tgi_answer()))
    peer.play("/generate_stream", events(tgi_token(1, "", ends=True)))
    schema = {"type": "object", "properties": {"a": {"default": None}}}
    asked = {
        "best_of": 1, "decoder_input_details": False, "grammar": {"type": "json", "value": schema},
        "return_full_text": True, "top_n_tokens": 2, "truncate": 7, "typical_p": 0.9, "watermark": True,
    }  # fmt: skip
    settings: Any = {
        "max_new_tokens": 5, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "repetition_penalty": 1.1,
        "frequency_penalty": 0.2, "seed": 2**63, "stop": ("END",),
    }  # fmt: skip
    call = raw(**settings, extra=asked)
    await (tgi.stream(call) if streams else tgi.generate(call))
    assert peer.asked[0].json == {
        "inputs": "Say hi",
        "parameters": {
            **asked,
            **settings,
            "stop": ["END"],
            "do_sample": True,
            "details": True,
            "adapter_id": NAME,
            "grammar": {"type": "json", "value": json.dumps(schema)},
        },
    }


async def test_base_has_no_adapter(tgi, peer: Peer) -> None:
    peer.play("/generate", whole(tgi_answer()))
    peer.play(CHAT, whole(CHAT_ANSWER))
    await tgi.generate(raw(""))
    await tgi.generate(chat(""))
    assert peer.asked[0].json["parameters"] == {"details": True, "do_sample": False}
    assert peer.asked[1].json["model"] == "tgi"


async def test_chat_is_greedy_at_temperature_zero(tgi, peer: Peer) -> None:
    peer.play(CHAT, whole(CHAT_ANSWER))
    answer = await tgi.generate(chat(max_new_tokens=4, stop=("x",)))
    assert peer.asked[0].json == {
        "model": NAME,
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}],
        "stream": False,
        "temperature": 0.0,
        "max_tokens": 4,
        "stop": ["x"],
    }
    assert (answer.text, answer.usage, answer.finish_reason) == (
        "Hello", Usage(9, 2), FinishReason.EOS_TOKEN,
    )  # fmt: skip


async def test_chat_is_streamed(tgi, peer: Peer) -> None:
    usage = CHAT_ANSWER["usage"]
    last = {**chat_chunk(""), "choices": [], "usage": usage}
    peer.play(
        CHAT, events(chat_chunk("Hel"), chat_chunk("lo"), chat_chunk("", "stop_sequence"), last, b"[DONE]")
    )
    pieces = [piece async for piece in await tgi.stream(chat())]
    assert [piece.text for piece in pieces] == ["Hel", "lo", ""]
    assert pieces[-1].finish.finish_reason is FinishReason.STOP_SEQUENCE
    assert (pieces[-1].finish.text, pieces[-1].finish.usage) == ("Hello", Usage(9, 2))
    assert peer.asked[0].json["stream_options"] == {"include_usage": True}


async def test_chat_without_its_counts_is_unfinished(tgi, peer: Peer) -> None:
    peer.play(CHAT, events(chat_chunk("Hel"), chat_chunk("", "stop"), b"[DONE]"))
    pieces = await tgi.stream(chat())
    await anext(pieces)
    with pytest.raises(BackendFailed) as caught:
        await anext(pieces)
    assert caught.value.error.reason == "STREAM_BROKEN"


async def test_prompt_tokens_are_the_headers_or_the_prefills(tgi, peer: Peer) -> None:
    peer.play("/generate", whole(tgi_answer(), X_Prompt_Tokens="12"))
    assert (await tgi.generate(raw())).usage.prompt_tokens == 12
    prefill = [{"id": 1, "text": "a", "logprob": None}, {"id": 2, "text": "b", "logprob": -1.0}]
    peer.play("/generate", whole(tgi_answer(prefill=prefill)))
    answer = await tgi.generate(raw(extra={"decoder_input_details": True}))
    assert answer.usage.prompt_tokens == 2
    assert answer.details == tgi_answer(prefill=prefill)["details"]


async def test_details_are_tgis_own(tgi, peer: Peer) -> None:
    sequence = {
        "generated_text": "x",
        "finish_reason": "length",
        "generated_tokens": 1,
        "prefill": [],
        "tokens": [],
    }
    top = [[{"id": 1, "text": "a", "logprob": -0.5, "special": False}]]
    sent = tgi_answer(seed=2**64 - 1, top_tokens=top, best_of_sequences=[{**sequence, "seed": None}])
    peer.play("/generate", whole(sent))
    found = json.loads(json.dumps((await tgi.generate(raw())).details))
    assert found["seed"] == 2**64 - 1
    assert found["top_tokens"] == top
    assert found["best_of_sequences"][0].items() >= sequence.items()


async def test_top_tokens_of_a_stream(tgi, peer: Peer) -> None:
    top = [{"id": 1, "text": "a", "logprob": -0.5, "special": False}]
    peer.play(
        "/generate_stream", events({**tgi_token(1, "Hi"), "top_tokens": top}, tgi_token(2, "</s>", ends=True))
    )
    pieces = [piece async for piece in await tgi.stream(raw())]
    assert pieces[0].top_tokens == top
    assert pieces[0].token["logprob"] == -0.25
    assert pieces[1].text == ""  # a special token is no text


@pytest.mark.parametrize("extra", [{"adapter_source": "hub"}, {"min_p": 0.1}, {"max_tokens": 3}])
async def test_parameters_that_tgi_would_ignore_are_refused(tgi, peer: Peer, extra: dict) -> None:
    for doing in (tgi.generate, tgi.stream):
        with pytest.raises(InvalidArgument) as caught:
            await doing(raw(extra=extra))
        assert caught.value.reason == "UNSUPPORTED_FIELD"
        assert next(iter(extra)) in caught.value.message
    assert peer.asked == []


@pytest.mark.parametrize(
    "extra",
    [
        {"grammar": "regex"},
        {"grammar": {"type": "regex", "value": {}}},
        {"truncate": {"a": None}},
        {"typical_p": float("nan")},
    ],
)
async def test_parameters_of_a_wrong_shape_are_the_callers_fault(tgi, peer: Peer, extra: dict) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await tgi.generate(raw(extra=extra))
    assert caught.value.reason == "INVALID_FIELD"
    assert peer.asked == []


@pytest.mark.parametrize("settings", [{"top_k": 3}, {"repetition_penalty": 1.2}, {"extra": {"truncate": 3}}])
async def test_tgis_chat_would_ignore_these(tgi, peer: Peer, settings: dict) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await tgi.generate(chat(**settings))
    assert caught.value.reason == "UNSUPPORTED_FIELD"
    assert peer.asked == []


@pytest.mark.parametrize("call", [raw(), chat()])
async def test_a_400_is_not_asked_again_without_the_adapter(tgi, peer: Peer, call) -> None:
    good = {"/generate": whole(tgi_answer()), CHAT: whole(CHAT_ANSWER)}
    for path, answer in good.items():
        peer.play(path, whole({"error": NOT_USED}, 400), answer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InvalidArgument) as caught:
            await tgi.generate(call)
    assert caught.value.message == NOT_USED
    assert len(peer.asked) == 1
    assert not any(_UNSUPPORTED_TEXT_GENERATION_KWARGS.values())
    await tgi.generate(call)
    body = peer.asked[1].json
    assert NAME in (body.get("model"), body.get("parameters", {}).get("adapter_id"))


async def test_what_the_library_remembers_drops_no_adapter(
    tgi, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer.play("/generate", whole(tgi_answer()))
    monkeypatch.setattr("huggingface_hub.inference._common._UNSUPPORTED_TEXT_GENERATION_KWARGS", {})
    _set_unsupported_text_generation_kwargs(f"{peer.url}/generate", ["adapter_id"])
    with (
        pytest.raises(BackendFailed) as caught,
        pytest.warns(UserWarning, match="is not served via TGI") as warned,
    ):
        await tgi.generate(raw())
    assert "adapter_id" in str(warned[0].message)
    assert caught.value.error.reason == "REQUEST_ALTERED"
    assert peer.asked == []


@pytest.mark.parametrize(
    ("status", "kind", "error", "reason"),
    [
        (422, "validation", UnprocessableRequest, "REFUSED_BY_BACKEND"),
        (422, "template_error", UnprocessableRequest, "REFUSED_BY_BACKEND"),
        (424, "generation", BackendFailed, "GENERATION_FAILED"),
        (429, "overloaded", BackendFailed, "BACKEND_OVERLOADED"),
        (500, "incomplete_generation", BackendFailed, "BACKEND_FAILED"),
        (503, "healthcheck", BackendFailed, "BACKEND_UNAVAILABLE"),
    ],
)
async def test_errors_are_told_apart(
    tgi, peer: Peer, status: int, kind: str, error: type[Exception], reason: str
) -> None:
    body = {"error": "it is so", "error_type": kind}
    peer.play("/generate", whole(body, status))
    peer.play("/generate_stream", events(body))
    for doing in (tgi.generate, tgi.stream):
        with pytest.raises(error) as caught:
            await doing(raw())
        told = caught.value
        found = told.error if isinstance(told, BackendFailed) else told
        assert isinstance(found, LorauterError)
        assert found.reason == reason


async def test_error_of_a_chats_stream_carries_its_status(tgi, peer: Peer) -> None:
    peer.play(CHAT, events({"error": {"message": "template error: no system", "http_status_code": 422}}))
    with pytest.raises(UnprocessableRequest):
        await tgi.stream(chat())
    peer.play(CHAT, events({"error": {"message": "Model is overloaded", "http_status_code": 429}}))
    with pytest.raises(BackendFailed) as caught:
        await tgi.stream(chat())
    assert (caught.value.retry_after_seconds, caught.value.try_elsewhere) == (1.0, True)


async def test_reading_gives_the_prefills_logprobs(tgi, peer: Peer) -> None:
    prefill = [{"id": n, "text": "a", "logprob": logprob} for n, logprob in enumerate((None, -1.0, -2.5))]
    peer.play("/generate", whole(tgi_answer(prefill=prefill)))
    assert await tgi.read("a b c", [], NAME, "org/base") == [-1.0, -2.5]
    assert peer.asked[0].json == {
        "inputs": "a b c",
        "parameters": {
            "decoder_input_details": True,
            "details": True,
            "do_sample": False,
            "max_new_tokens": 1,
            "adapter_id": NAME,
        },
    }
    await tgi.read("a b c", [], "", "org/base")
    assert "adapter_id" not in peer.asked[1].json["parameters"]


@pytest.mark.parametrize("prefill", [[], [{"logprob": None}], [{"logprob": None}, {"logprob": None}]])
async def test_reading_without_logprobs_is_no_reading(tgi, peer: Peer, prefill: list) -> None:
    peer.play("/generate", whole(tgi_answer(prefill=prefill)))
    with pytest.raises(BackendFailed) as caught:
        await tgi.read("a", [], NAME, "org/base")
    assert caught.value.error.reason == "BACKEND_PROTOCOL"


async def test_limits_are_infos(tgi, peer: Peer) -> None:
    info = {"model_id": "m", "max_concurrent_requests": 128, "max_best_of": 2, "max_input_tokens": 1023}
    peer.play("/info", whole({**info, "max_total_tokens": 1024}))
    assert await tgi.limits() == Limits(1023, 1024, 2, 128)
    peer.play("/info", whole({**info, "max_total_tokens": None}))
    assert await tgi.limits() == Limits(1023, 0, 2, 128)
