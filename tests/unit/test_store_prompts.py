"""Prompts: one way from a task's input to a request, and its digest."""

from __future__ import annotations

from lorauter.prompts import GenerationSpec, PromptSpec, build_input, prompt_digest


def test_input_is_the_prompt_when_format_is_raw() -> None:
    assert build_input(PromptSpec(), "2+2?") == {"prompt": "2+2?"}


def test_input_is_the_users_message_when_format_is_chat() -> None:
    spec = PromptSpec("CHAT", "Be brief.")
    assert build_input(spec, "2+2?") == {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    }
    assert build_input(PromptSpec("CHAT"), "x") == {"messages": [{"role": "user", "content": "x"}]}


def test_digest_covers_prompt_and_settings() -> None:
    base = prompt_digest(PromptSpec(), GenerationSpec())
    assert base == prompt_digest(PromptSpec.from_json({}), GenerationSpec.from_json({"max_new_tokens": 0}))
    others = {
        prompt_digest(PromptSpec("CHAT"), GenerationSpec()),
        prompt_digest(PromptSpec("CHAT", "x"), GenerationSpec()),
        prompt_digest(PromptSpec(), GenerationSpec(65)),
        prompt_digest(PromptSpec(), GenerationSpec(64, ("\n",))),
    }
    assert len({base, *others}) == 5
    assert base.startswith("sha256:")


def test_specs_survive_json() -> None:
    spec, settings = PromptSpec("CHAT", "s"), GenerationSpec(7, ("a", "b"))
    assert PromptSpec.from_json(spec.to_json()) == spec
    assert GenerationSpec.from_json(settings.to_json()) == settings
