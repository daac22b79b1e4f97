"""What cannot be composed is refused, also where only the tensors, the tokenizer or a new PEFT tell."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from peft import LoraConfig
from safetensors.numpy import save_file

from lorauter.errors import UnprocessableRequest
from lorauter.lora import config as reading
from lorauter.lora.chat_format import MAX_BYTES, ChatFormat, check_chat_format, read_chat_format
from lorauter.lora.check import WEIGHTS_FILE, check_adapter
from lorauter.lora.config import AdapterConfig, parse_config
from lorauter.lora.write import write_adapter

Q = "model.layers.0.self_attn.q_proj"
PLAIN = {
    "peft_type": "LORA",
    "base_model_name_or_path": "b",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["q_proj"],
}


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    matrices = {Q: (np.ones((2, 8), np.float32), np.ones((8, 2), np.float32))}
    write_adapter(tmp_path / "a", AdapterConfig("b", 2, 4.0, False, ("q_proj",)), matrices)
    return tmp_path / "a"


def test_every_setting_of_the_installed_peft_is_read_dropped_or_refused() -> None:
    settings = {field.name for field in dataclasses.fields(LoraConfig)}
    assert settings <= {*reading._READ, *reading.DROPPED, *reading.REFUSED}
    assert not set(reading.DROPPED) & set(reading.REFUSED)


@pytest.mark.parametrize("key", sorted(reading.REFUSED))
def test_a_setting_that_does_not_compose_is_refused_by_name(key: str) -> None:
    neutrals: list[object] = [None, False, {}, []]
    for neutral in neutrals:
        parse_config(json.dumps(PLAIN | {key: neutral}).encode())
    for value in (True, 1, "x", ["x"], {"x": 1}):
        with pytest.raises(UnprocessableRequest) as caught:
            parse_config(json.dumps(PLAIN | {key: value}).encode())
        assert (caught.value.reason, caught.value.metadata) == ("ADAPTER_UNSUPPORTED", {"field": key})


@pytest.mark.parametrize("key", sorted(reading.DROPPED))
def test_a_setting_of_training_changes_nothing(key: str) -> None:
    plain = parse_config(json.dumps(PLAIN).encode())
    for value in (None, 1, "x", ["x"], {"x": 1}):
        assert parse_config(json.dumps(PLAIN | {key: value}).encode()) == plain


@pytest.mark.parametrize(
    "init",
    [
        "pissa",
        "pissa_niter_4",
        "olora",
        "loftq",
        "corda",
        "lora_ga",
        "mica",
        "PISSA",
        "",
        "a way of tomorrow",
    ],
)
def test_an_init_that_changes_the_base_is_refused(init: str) -> None:
    with pytest.raises(UnprocessableRequest) as caught:
        parse_config(json.dumps(PLAIN | {"init_lora_weights": init}).encode())
    assert caught.value.metadata == {"field": "init_lora_weights"}


@pytest.mark.parametrize(
    "name",
    [
        f"base_model.model.{Q}.lora_magnitude_vector",
        f"base_model.model.{Q}.lora_B.bias",
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.model.embed_tokens.weight",
        "base_model.model.lm_head.weight",
        "base_model.model.score.modules_to_save.weight",
        f"base_model.model.{Q}.lora_A.default.weight",
        f"{Q}.lora_A.weight",
    ],
)
def test_a_tensor_is_refused_when_it_is_no_linear_layers_though_the_config_is_plain(
    adapter: Path, name: str
) -> None:
    check_adapter(adapter, {Q: (8, 8)})
    matrices = {
        f"base_model.model.{Q}.lora_{side}.weight": np.ones(s, np.float32) for side, s in SHAPES.items()
    }
    save_file({**matrices, name: np.ones((8, 8), np.float32)}, adapter / WEIGHTS_FILE)
    with pytest.raises(UnprocessableRequest) as caught:
        check_adapter(adapter, {Q: (8, 8)})
    assert caught.value.reason == "ADAPTER_UNSUPPORTED"
    assert repr(name) in caught.value.message


SHAPES = {"A": (2, 8), "B": (8, 2)}
CONFIG = {"chat_template": "{{ a }}", "eos_token": "</s>", "model_max_length": 10**30}
BASE = ChatFormat("6b0ae6ce7b3d4b8ff9a4c5ee4d5f1d8b", "</s>")


def saved(folder: Path, config: object = None, template: str | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    if config is not None:
        text = config if isinstance(config, str) else json.dumps(config)
        (folder / "tokenizer_config.json").write_text(text)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def refusal(folder: Path, base: ChatFormat) -> tuple[str, str]:
    with pytest.raises(UnprocessableRequest) as caught:
        check_chat_format(folder, base)
    assert str(folder) not in caught.value.message
    return caught.value.reason, caught.value.metadata.get("field", "")


def test_a_chat_format_is_the_same_wherever_the_tokenizer_keeps_it(tmp_path: Path) -> None:
    base = read_chat_format(saved(tmp_path / "base", CONFIG))
    assert base is not None
    assert base.eos == "</s>"
    assert len(base.template) == 64
    check_chat_format(saved(tmp_path / "1", {"eos_token": {"content": "</s>"}}, "{{ a }}\n"), base)
    check_chat_format(saved(tmp_path / "2", {"chat_template": None}), base)
    check_chat_format(saved(tmp_path / "3"), base)
    assert read_chat_format(tmp_path / "3") is None
    named = [{"name": "default", "template": "x"}, {"name": "tools", "template": "y"}]
    first = read_chat_format(saved(tmp_path / "4", {"chat_template": named}))
    assert first == read_chat_format(saved(tmp_path / "5", {"chat_template": named[::-1]}))
    assert first != ChatFormat()


def test_an_adapter_is_refused_when_its_chats_or_ends_are_others(tmp_path: Path) -> None:
    base = read_chat_format(saved(tmp_path / "base", CONFIG))
    assert base is not None
    other = "ADAPTER_CHAT_FORMAT_MISMATCH"
    assert refusal(saved(tmp_path / "1", template="{{ b }}"), base) == (other, "chat_template")
    assert refusal(saved(tmp_path / "2", CONFIG | {"chat_template": "{{ b }}"}), base) == (
        other,
        "chat_template",
    )
    assert refusal(saved(tmp_path / "3", CONFIG | {"eos_token": "<|im_end|>"}), base) == (other, "eos_token")
    assert refusal(tmp_path / "1", ChatFormat("", "</s>")) == (other, "chat_template")
    check_chat_format(tmp_path / "3", ChatFormat(base.template, ""))


def test_a_tokenizers_files_are_refused_when_they_cannot_be_read(tmp_path: Path) -> None:
    invalid = ("ADAPTER_CONFIG_INVALID", "")
    for number, text in enumerate(["", "{", "[]", "[" * 100_000, " " * (MAX_BYTES + 1)]):
        assert refusal(saved(tmp_path / str(number), text), BASE) == invalid
    (saved(tmp_path / "bytes") / "chat_template.jinja").write_bytes(b"\xff")
    assert refusal(tmp_path / "bytes", BASE) == invalid
    base = saved(tmp_path / "base", CONFIG)
    (saved(tmp_path / "link") / "tokenizer_config.json").symlink_to(base / "tokenizer_config.json")
    assert refusal(tmp_path / "link", BASE) == invalid
    assert read_chat_format(tmp_path / "link", follow_links=True) == read_chat_format(base)
