"""What answers: the real demo model, by way of an engine, or texts that are derived from a hash."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Protocol

import aiohttp

from tests.protocol_servers.weights import BASE, Weights

Messages = list[dict[str, Any]]
Prompt = str | Messages
Parameters = Mapping[str, Any]
"""TGI's parameters, without adapter_id."""


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of an answer. ``reason`` is TGI's; ``text`` holds the stop text that ended it."""

    text: str
    reason: str
    generated_tokens: int
    prompt_tokens: int
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of an answer; ``finish`` is set on the last."""

    id: int
    text: str
    logprob: float
    special: bool = False
    top: Sequence[Mapping[str, Any]] = ()
    finish: Finish | None = None

    def as_tgi(self) -> dict[str, Any]:
        """Returns it as TGI writes it."""
        return {"id": self.id, "text": self.text, "logprob": self.logprob, "special": self.special}


_NOT_STREAMED = frozenset({"decoder_input_details", "return_full_text"})
_SURELY_FIT = 128
"""Characters, and new tokens, that every context has room for."""

Prefill = list[dict[str, Any]]
"""{id, text, logprob} of each token of a prompt; the first has no log-probability."""


class ModelFailed(Exception):
    """What a model cannot do. ``kind`` is TGI's error_type."""

    def __init__(self, message: str, kind: str = "generation") -> None:
        super().__init__(message)
        self.kind = kind


class Model(Protocol):
    """A base model that takes weights with each prompt. Its calls raise ModelFailed."""

    def generate(
        self, prompt: Prompt, weights: Weights, parameters: Parameters
    ) -> AsyncGenerator[Token, None]:
        """Returns the answer token by token."""
        ...

    async def check(self, prompt: Prompt, wanted: int | None) -> None:
        """Raises ModelFailed where a prompt and as many tokens do not fit."""
        ...

    async def read(self, prompt: Prompt, weights: Weights) -> Prefill:
        """Returns a prompt's tokens as they are read."""
        ...

    async def close(self) -> None:
        """Closes what it holds open."""
        ...


class HashModel:
    """Answers with words that follow from what the weights hold and what the prompt says."""

    def __init__(self, context: int, answer_tokens: int = 0) -> None:
        self._context = context
        self._answer_tokens = answer_tokens

    async def generate(
        self, prompt: Prompt, weights: Weights, parameters: Parameters
    ) -> AsyncGenerator[Token, None]:
        """See Model. It ends after 4 to 11 tokens, or after a set number."""
        text = rendered(prompt)
        prompt_tokens = len(_words(text))
        limit = room(self._context, prompt_tokens, parameters.get("max_new_tokens"))
        seed = parameters.get("seed") if parameters.get("do_sample") else None
        start = hashlib.sha256(f"{weights.key}|{seed}|{text}".encode()).digest()
        natural = self._answer_tokens or 4 + start[0] % 8
        stops = [stop for stop in parameters.get("stop") or () if stop]
        said = ""
        for number in range(1, limit + 1):
            if number > natural:
                yield Token(
                    2, "</s>", -0.01, True, (), Finish(said, "eos_token", number, prompt_tokens, seed)
                )
                return
            word = hashlib.sha256(start + number.to_bytes(4, "big")).hexdigest()
            piece = ("" if number == 1 else " ") + word[:5]
            said += piece
            reason = "stop_sequence" if any(stop in said for stop in stops) else ""
            reason = reason or ("length" if number == limit else "")
            finish = Finish(said, reason, number, prompt_tokens, seed) if reason else None
            yield Token(int(word[:4], 16), piece, -int(word[4:6], 16) / 100, False, (), finish)
            if finish:
                return

    async def check(self, prompt: Prompt, wanted: int | None) -> None:
        """See Model."""
        room(self._context, len(_words(rendered(prompt))), wanted)

    async def read(self, prompt: Prompt, weights: Weights) -> Prefill:
        """See Model."""
        read: Prefill = []
        said = ""
        for number, word in enumerate(_words(rendered(prompt))):
            said += word
            logprob = (
                -0.5 - 4 * _share(said) + (_share(f"{weights.key}|{said}") - 0.5 if weights.key else 0.0)
            )
            read.append({"id": number + 3, "text": word, "logprob": logprob if number else None})
        return read

    async def close(self) -> None:
        """See Model."""


class EngineModel:
    """The model of a lorauter engine; it knows adapters by what their folders in the store say."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(None), trust_env=False)

    async def generate(
        self, prompt: Prompt, weights: Weights, parameters: Parameters
    ) -> AsyncGenerator[Token, None]:
        """See Model."""
        adapters = _adapters(weights)
        if isinstance(prompt, str):
            given = {name: value for name, value in parameters.items() if name not in _NOT_STREAMED}
            body: dict[str, Any] = {
                "inputs": prompt,
                "parameters": {**given, "details": True, "adapters": adapters},
            }
            tokens = _raw_tokens(self._events("/generate_stream", body))
        else:
            events = self._events("/v1/chat/completions", _chat(prompt, adapters, parameters))
            tokens = self._stopped(_chat_tokens(events), prompt, parameters.get("stop") or ())
        async with aclosing(tokens):
            async for token in tokens:
                yield token

    async def _stopped(
        self, tokens: AsyncGenerator[Token, None], messages: Messages, stops: Sequence[str]
    ) -> AsyncGenerator[Token, None]:
        """Ends a chat with its first stop text, which the engine's chats would leave out without a word."""
        said = ""
        async with aclosing(tokens):
            async for number, token in _counted(tokens):
                said += token.text
                ends = [said.find(stop) + len(stop) for stop in stops if stop in said]
                if not ends:
                    yield token
                    continue
                prompt = (await self._asked("/chat_tokenize", {"messages": messages}))["tokenize_response"]
                end = Finish(said[: min(ends)], "stop_sequence", number, len(prompt))
                yield replace(token, finish=end)
                return

    async def check(self, prompt: Prompt, wanted: int | None) -> None:
        """See Model. Only what may be too long is put to the engine."""
        if 0 < len(rendered(prompt)) < _SURELY_FIT and (wanted or 0) < _SURELY_FIT:
            return
        async with aclosing(self.generate(prompt, BASE, {"max_new_tokens": wanted or 1})) as tokens:
            await anext(tokens)

    async def read(self, prompt: Prompt, weights: Weights) -> Prefill:
        """See Model."""
        if not isinstance(prompt, str):
            prompt = (await self._asked("/chat_tokenize", {"messages": prompt}))["templated_text"]
        parameters = {"max_new_tokens": 1, "decoder_input_details": True, "adapters": _adapters(weights)}
        answer = await self._asked("/generate", {"inputs": prompt, "parameters": parameters})
        return list(answer["details"]["prefill"])

    async def close(self) -> None:
        """See Model."""
        await self._http.close()

    async def _asked(self, path: str, body: object) -> Any:
        async with self._http.post(self._url + path, json=body) as response:
            answer = await response.json()
            if response.status != 200:
                raise ModelFailed(answer["error"], answer["error_type"])
            return answer

    async def _events(self, path: str, body: object) -> AsyncGenerator[dict[str, Any], None]:
        async with self._http.post(self._url + path, json=body) as response:
            if response.status != 200:
                answer = await response.json()
                raise ModelFailed(answer["error"], answer["error_type"])
            async for line in response.content:
                if line.startswith(b"data:") and b"[DONE]" not in line:
                    event = json.loads(line[5:])
                    if "error" in event:
                        raise ModelFailed(str(event["error"]))
                    yield event


async def _raw_tokens(events: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[Token, None]:
    async with aclosing(events):
        async for event in events:
            details = event["details"]
            finish = details and Finish(
                event["generated_text"],
                details["finish_reason"],
                details["generated_tokens"],
                details["input_length"],
                details["seed"],
            )
            yield Token(**event["token"], top=event.get("top_tokens") or (), finish=finish)


async def _chat_tokens(events: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[Token, None]:
    said, last, reason = "", None, ""
    async with aclosing(events):
        async for event in events:
            if event.get("usage") and last:
                usage = event["usage"]
                end = Finish(said, reason, usage["completion_tokens"], usage["prompt_tokens"])
                yield Token(last.id, last.text, last.logprob, last.special, last.top, end)
            for choice in event["choices"]:
                piece, logprobs = choice["delta"]["content"], choice["logprobs"]["content"]
                said += piece
                first: dict[str, Any] = logprobs[0] if logprobs else {"logprob": 0.0, "top_logprobs": []}
                token = Token(0, piece, first["logprob"], not piece, first["top_logprobs"])
                if choice["finish_reason"]:
                    last = token
                    reason = "length" if choice["finish_reason"] == "length" else "eos_token"
                else:
                    yield token


async def _counted(tokens: AsyncGenerator[Token, None]) -> AsyncGenerator[tuple[int, Token], None]:
    number = 0
    async for token in tokens:
        number += 1
        yield number, token


def _chat(messages: Messages, adapters: list[dict[str, Any]], parameters: Parameters) -> dict[str, Any]:
    names = ("top_p", "top_k", "seed", "frequency_penalty", "repetition_penalty")
    top = parameters.get("top_n_tokens")
    return {
        "model": "tgi",
        "messages": messages,
        "adapters": adapters,
        "stream": True,
        "stream_options": {"include_usage": True},
        "logprobs": True,
        "max_tokens": parameters.get("max_new_tokens"),
        "temperature": (parameters.get("temperature") or 1.0) if parameters.get("do_sample") else 0.0,
        **({"top_logprobs": top} if top else {}),
        **{name: parameters[name] for name in names if parameters.get(name) is not None},
    }


def _adapters(weights: Weights) -> list[dict[str, Any]]:
    if not weights.key:
        return []
    if not weights.members:
        raise ModelFailed(f"{weights.path} is not of the engine's store")
    return [{"id": digest, "weight": weight} for digest, weight in weights.members]


def rendered(prompt: Prompt) -> str:
    """Returns a prompt as one text, conversations by a template of no model's."""
    if isinstance(prompt, str):
        return prompt
    return "".join(f"{each.get('role')}: {each.get('content')}\n" for each in prompt)


def room(context: int, prompt_tokens: int, wanted: int | None) -> int:
    """Returns how many tokens may be generated; raises ModelFailed in TGI's words."""
    if not prompt_tokens:
        raise ModelFailed("`inputs` cannot be empty", "validation")
    if prompt_tokens >= context:
        raise ModelFailed(
            f"`inputs` must have less than {context - 1} tokens. Given: {prompt_tokens}", "validation"
        )
    if wanted is not None and prompt_tokens + wanted > context:
        raise ModelFailed(
            f"`inputs` tokens + `max_new_tokens` must be <= {context}. "
            f"Given: {prompt_tokens} `inputs` tokens and {wanted} `max_new_tokens`",
            "validation",
        )
    return wanted or context - prompt_tokens


async def collected(tokens: AsyncGenerator[Token, None]) -> tuple[list[Token], Finish]:
    """Returns a whole answer; raises ModelFailed, also where it has no end."""
    async with aclosing(tokens):
        found = [token async for token in tokens]
    if not found or found[-1].finish is None:
        raise ModelFailed("Incomplete generation", "incomplete_generation")
    return found, found[-1].finish


def _words(text: str) -> list[str]:
    return re.findall(r"\s*\S+|\s+$", text)


def _share(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32
