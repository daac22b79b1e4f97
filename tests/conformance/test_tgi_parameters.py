"""Every field of TGI's GenerateParameters: what it does, or that it is refused by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

PROMPT = 'Repeat the number "5555555555"'
WORD = 'Write the word "raven" backwards:'
HOT: dict[str, Any] = {"temperature": 9.0, "max_new_tokens": 8}
Server = Any
Answer = dict[str, Any]


def generated(server: Server, prompt: str = PROMPT, **parameters: Any) -> Answer:
    """The checked answer of /generate with details."""
    given = {"max_new_tokens": 24, "details": True, "do_sample": False, **parameters}
    response = server.ask("/generate", {"inputs": prompt, "parameters": given})
    assert response.status_code == 200, response.text
    return {**response.json(), "prompt_tokens": int(response.headers["x-prompt-tokens"])}


def text(server: Server, prompt: str = PROMPT, **parameters: Any) -> str:
    return str(generated(server, prompt, **parameters)["generated_text"])


def mean_logprob(sequence: Answer) -> float:
    return sum(token["logprob"] for token in sequence["tokens"]) / sequence["generated_tokens"]


def adapter_id(server: Server) -> None:
    assert (text(server, WORD), text(server, WORD, adapter_id=server.adapter)) == ("raven", "RAVEN")
    assert text(server, WORD, adapter_id=None) == "raven"


def best_of(server: Server) -> None:
    assert text(server, best_of=1) == text(server)
    answer = generated(server, WORD, best_of=3, temperature=0.5)
    best, others = answer["details"], answer["details"]["best_of_sequences"]
    assert best["tokens"][0]["logprob"] <= 0
    assert len({found["seed"] for found in (best, *others)}) == 3
    assert all(mean_logprob(best) >= mean_logprob(other) for other in others)
    assert "best_of_sequences" not in generated(server)["details"]


def decoder_input_details(server: Server) -> None:
    answer = generated(server, decoder_input_details=True)
    prefill = answer["details"]["prefill"]
    assert len(prefill) == answer["prompt_tokens"]
    assert prefill[0]["logprob"] is None
    assert all(token["logprob"] <= 0 for token in prefill[1:])
    assert "prefill" in generated(server, details=False, decoder_input_details=True)["details"]
    assert generated(server)["details"]["prefill"] == []


def details(server: Server) -> None:
    answer = generated(server)
    assert answer["details"]["generated_tokens"] == len(answer["details"]["tokens"]) > 0
    assert generated(server, details=False).get("details") is None


def do_sample(server: Server) -> None:
    assert generated(server)["details"]["seed"] is None
    assert generated(server, do_sample=True, seed=7)["details"]["seed"] == 7


def frequency_penalty(server: Server) -> None:
    assert len(text(server, frequency_penalty=2.0)) < len(text(server, frequency_penalty=0.0))


def max_new_tokens(server: Server) -> None:
    found = generated(server, max_new_tokens=3)["details"]
    assert (found["generated_tokens"], found["finish_reason"]) == (3, "length")


def repetition_penalty(server: Server) -> None:
    assert text(server, repetition_penalty=5.0) != text(server, repetition_penalty=1.0) == text(server)


def return_full_text(server: Server) -> None:
    assert text(server, return_full_text=True) == PROMPT + text(server, return_full_text=False)


def seed(server: Server) -> None:
    answers = [generated(server, seed=seed, **HOT) for seed in (1, 1, 2)]
    first, again, other = (answer["generated_text"] for answer in answers)
    assert first == again != other
    assert [answer["details"]["seed"] for answer in answers] == [1, 1, 2]


def stop(server: Server) -> None:
    answer = generated(server, WORD, stop=["q", "av"])
    assert (answer["generated_text"], answer["details"]["finish_reason"]) == ("rav", "stop_sequence")


def temperature(server: Server) -> None:
    assert text(server, seed=3, **HOT) != text(server, max_new_tokens=8)
    assert generated(server, temperature=0.5)["details"]["seed"] is not None


def top_k(server: Server) -> None:
    assert text(server, top_k=1, **HOT) == text(server, max_new_tokens=8)


def top_n_tokens(server: Server) -> None:
    found = generated(server, top_n_tokens=3)["details"]
    assert [len(top) for top in found["top_tokens"]] == [3] * found["generated_tokens"]
    assert [top[0]["id"] for top in found["top_tokens"]] == [token["id"] for token in found["tokens"]]
    assert "top_tokens" not in generated(server)["details"]


def top_p(server: Server) -> None:
    assert text(server, top_p=1e-6, **HOT) == text(server, max_new_tokens=8)


def truncate(server: Server) -> None:
    whole = generated(server, decoder_input_details=True)["details"]["prefill"]
    cut = generated(server, truncate=4, decoder_input_details=True)
    assert cut["prompt_tokens"] == 4
    assert [token["id"] for token in cut["details"]["prefill"]] == [token["id"] for token in whole[-4:]]


def typical_p(server: Server) -> None:
    typical = [text(server, typical_p=1e-6, seed=seed, temperature=2.0) for seed in (1, 2)]
    assert typical[0] == typical[1] != text(server, seed=1, temperature=2.0)
    assert generated(server, typical_p=0.9, seed=7)["details"]["seed"] == 7


def watermark(server: Server) -> None:
    assert text(server, watermark=False) == text(server)


def grammar(server: Server) -> None:
    assert text(server, grammar=None) == text(server)


HONOURED: dict[str, Callable[[Server], None]] = {
    check.__name__: check
    for check in (
        *(adapter_id, best_of, decoder_input_details, details, do_sample, frequency_penalty, grammar),
        *(max_new_tokens, repetition_penalty, return_full_text, seed, stop, temperature, top_k),
        *(top_n_tokens, top_p, truncate, typical_p, watermark),
    )
}

REFUSED = [
    ("adapter_id", "no-such-adapter"),
    ("adapter_id", 7),
    ("best_of", 0),
    ("best_of", 2),
    ("best_of", 5),
    ("decoder_input_details", "often"),
    ("details", 3),
    ("do_sample", "often"),
    ("frequency_penalty", 2.5),
    ("frequency_penalty", "x"),
    ("grammar", {"type": "json", "value": {"type": "object"}}),
    ("grammar", {"type": "json_schema", "value": {"schema": {}}}),
    ("grammar", {"type": "regex", "value": "[0-9]+"}),
    ("max_new_tokens", 0),
    ("max_new_tokens", 100_000),
    ("max_new_tokens", 1.5),
    ("repetition_penalty", 0),
    ("return_full_text", "often"),
    ("seed", -1),
    ("seed", 2**64),
    ("stop", ["a", "b", "c", "d", "e"]),
    ("stop", [""]),
    ("stop", "a"),
    ("temperature", 0),
    ("top_k", 0),
    ("top_n_tokens", 21),
    ("top_n_tokens", -1),
    ("top_p", 0),
    ("top_p", 1.5),
    ("truncate", 0),
    ("typical_p", 0),
    ("typical_p", 1.5),
    ("watermark", True),
]
ROUTES = ("/generate", "/generate_stream", "/")


def test_no_field_is_forgotten(document: Any) -> None:
    fields = set(document.properties("GenerateParameters"))
    assert set(HONOURED) == fields
    assert {name for name, _ in REFUSED} == fields


@pytest.mark.parametrize("field", HONOURED)
def test_field_does_what_tgi_says(server: Server, field: str) -> None:
    HONOURED[field](server)


@pytest.mark.parametrize(("field", "value"), REFUSED, ids=lambda value: str(value)[:24])
@pytest.mark.parametrize("path", ROUTES)
def test_field_is_refused_by_its_name(
    server: Server, document: Any, path: str, field: str, value: object
) -> None:
    response = server.ask(path, {"inputs": PROMPT, "parameters": {field: value}})
    assert response.status_code == 422, response.text
    error = document.check_response(response)
    assert error["error_type"] == "validation"
    named = "adapter" if field == "adapter_id" else field
    assert named in error["error"]


@pytest.mark.parametrize("name", ["best_of", "decoder_input_details"])
def test_streams_refuse_what_tgi_does_not_stream(server: Server, document: Any, name: str) -> None:
    value = {"best_of": 2, "decoder_input_details": True}[name]
    response = server.ask("/generate_stream", {"inputs": PROMPT, "parameters": {name: value}})
    assert response.status_code == 422
    assert name in document.check_response(response)["error"]


def test_sampling_without_parameters_is_as_documented(engine: Server, gateway: Server) -> None:
    """TGI samples if there are no parameters at all; the gateway is greedy, as adapters were measured."""
    answers = {
        server.name: {server.ask("/generate", {"inputs": "a"}).json().get("generated_text") for _ in range(8)}
        for server in (engine, gateway)
    }
    assert len(answers["engine"]) > 1
    assert len(answers["gateway"]) == 1
