"""What is accepted as an adapter, and that everything else is refused by reason before it is stored."""

from __future__ import annotations

import json
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from lorauter.errors import FailedPrecondition, NotFound, UnprocessableRequest
from lorauter.lora.check import Limits, check_adapter, read_modules
from lorauter.lora.compose import compose_delta
from lorauter.lora.config import AdapterConfig, parse_config
from lorauter.lora.scale import module_scale
from lorauter.lora.store import AdapterStore
from lorauter.lora.weights import read_weights
from lorauter.lora.write import write_adapter

Q, V = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"
MODULES = {Q: (8, 8), V: (8, 4)}
CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "demo/base",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["q_proj", "v_proj"],
}


def _matrices(rng: np.random.Generator, rank: int = 2) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {
        name: (
            rng.normal(size=(rank, i)).astype(np.float32),
            rng.normal(size=(o, rank)).astype(np.float32),
        )
        for name, (i, o) in MODULES.items()
    }


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    config = AdapterConfig("demo/base", 2, 4.0, False, ("q_proj", "v_proj"))
    write_adapter(folder, config, _matrices(np.random.default_rng(0)))
    return folder


def _raw(tensors: dict[str, tuple[str, list[int], bytes]], extra: bytes = b"") -> bytes:
    header: dict[str, object] = {}
    data = b""
    for name, (dtype, shape, body) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(body)]}
        data += body
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data + extra


def _pair(dtype: str = "F32", rank: int = 2, width: int = 4) -> dict[str, tuple[str, list[int], bytes]]:
    prefix = f"base_model.model.{Q}"
    return {
        f"{prefix}.lora_A.weight": (dtype, [rank, 8], bytes(rank * 8 * width)),
        f"{prefix}.lora_B.weight": (dtype, [8, rank], bytes(rank * 8 * width)),
    }


def _refusal(folder: Path, **limits: int) -> str:
    with pytest.raises(UnprocessableRequest) as caught:
        check_adapter(folder, MODULES, Limits(**limits))
    assert str(folder) not in caught.value.message
    return caught.value.reason


def test_an_adapter_is_checked_when_it_is_sound(adapter: Path) -> None:
    checked = check_adapter(adapter, MODULES)
    assert checked.ranks_by_module == {Q: 2, V: 2}
    assert checked.config.base_model == "demo/base"
    assert checked.digest.startswith("sha256:")
    assert checked.size_bytes == (adapter / "adapter_model.safetensors").stat().st_size
    assert check_adapter(adapter, {}).digest == checked.digest


def test_an_adapter_is_checked_when_peft_itself_wrote_it(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=16,
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    )
    model.save_pretrained(tmp_path / "base")
    modules = read_modules(tmp_path / "base")
    assert modules[Q] == (8, 8)
    assert modules[V] == (8, 4)
    assert "model.embed_tokens" not in modules
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "down_proj"], use_rslora=True)
    get_peft_model(model, config).save_pretrained(str(tmp_path / "adapter"))
    raw = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    raw["base_model_name_or_path"] = "demo/base"
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(raw))
    checked = check_adapter(tmp_path / "adapter", modules)
    assert set(checked.ranks_by_module) == {Q, "model.layers.0.mlp.down_proj"}
    assert checked.config.rslora


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"use_dora": True}, "ADAPTER_UNSUPPORTED"),
        ({"modules_to_save": ["lm_head"]}, "ADAPTER_UNSUPPORTED"),
        ({"layer_replication": [[0, 1]]}, "ADAPTER_UNSUPPORTED"),
        ({"trainable_token_indices": [1]}, "ADAPTER_UNSUPPORTED"),
        ({"init_lora_weights": "pissa"}, "ADAPTER_UNSUPPORTED"),
        ({"init_lora_weights": "pissa_niter_16"}, "ADAPTER_UNSUPPORTED"),
        ({"init_lora_weights": "loftq"}, "ADAPTER_UNSUPPORTED"),
        ({"init_lora_weights": 1}, "ADAPTER_UNSUPPORTED"),
        ({"target_parameters": ["w"]}, "ADAPTER_UNSUPPORTED"),
        ({"megatron_config": {"a": 1}}, "ADAPTER_UNSUPPORTED"),
        ({"auto_mapping": {"base_model_class": "system", "parent_library": "os"}}, "ADAPTER_UNSUPPORTED"),
        ({"bias": "all"}, "ADAPTER_UNSUPPORTED"),
        ({"lora_bias": True}, "ADAPTER_UNSUPPORTED"),
        ({"a_setting_of_tomorrow": 1}, "ADAPTER_UNSUPPORTED"),
        ({"peft_type": "IA3"}, "ADAPTER_UNSUPPORTED"),
        ({"task_type": "SEQ_CLS"}, "ADAPTER_UNSUPPORTED"),
        ({"target_modules": "all-linear"}, "ADAPTER_UNSUPPORTED"),
        ({"target_modules": ["(a+)+$"]}, "ADAPTER_CONFIG_INVALID"),
        ({"target_modules": []}, "ADAPTER_CONFIG_INVALID"),
        ({"rank_pattern": {".*q_proj": 2}}, "ADAPTER_CONFIG_INVALID"),
        ({"rank_pattern": {"q_proj": 1000}}, "ADAPTER_CONFIG_INVALID"),
        ({"alpha_pattern": {"q_proj": -1}}, "ADAPTER_CONFIG_INVALID"),
        ({"r": 0}, "ADAPTER_CONFIG_INVALID"),
        ({"r": True}, "ADAPTER_CONFIG_INVALID"),
        ({"r": 129}, "ADAPTER_CONFIG_INVALID"),
        ({"lora_alpha": 0}, "ADAPTER_CONFIG_INVALID"),
        ({"lora_alpha": 10**400}, "ADAPTER_CONFIG_INVALID"),
        ({"base_model_name_or_path": ""}, "ADAPTER_CONFIG_INVALID"),
    ],
)
def test_a_config_is_refused_when_it_is_not_a_plain_lora(change: dict[str, object], reason: str) -> None:
    with pytest.raises(UnprocessableRequest) as caught:
        parse_config(json.dumps(CONFIG | change).encode())
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'{"r": 1, "r": 2}',
        b'{"r": NaN}',
        b'{"lora_alpha": 1e999}',
        b"\xff{}",
        b"[" * 100_000,
        b'{"a":' * 10_000,
        b'{"r": ' + b"9" * 5_000 + b"}",
        json.dumps(CONFIG).encode() + b" " * 70_000,
        json.dumps(CONFIG | {"base_model_name_or_path": "\ud800"}).encode(),
        json.dumps(CONFIG | {"base_model_name_or_path": "a\x00b"}).encode(),
        json.dumps(CONFIG | {"\udfff": 1}).encode(),
    ],
)
def test_a_config_is_refused_when_its_json_is_not_strict(data: bytes) -> None:
    with pytest.raises(UnprocessableRequest) as caught:
        parse_config(data)
    assert caught.value.reason == "ADAPTER_CONFIG_INVALID"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pickle.dumps({"a": [1] * 100}), "ADAPTER_PICKLE"),
        (b"PK\x03\x04" + bytes(100), "ADAPTER_PICKLE"),
        (b"", "ADAPTER_TRUNCATED"),
        (_raw(_pair())[:-1], "ADAPTER_TRUNCATED"),
        (_raw(_pair())[:100], "ADAPTER_TRUNCATED"),
        (_raw(_pair(), b"x"), "ADAPTER_CORRUPT"),
        (struct.pack("<Q", 2**40) + b"{}", "ADAPTER_CORRUPT"),
        (struct.pack("<Q", 6) + b"[1, 2]", "ADAPTER_CORRUPT"),
        (_raw({}), "ADAPTER_CORRUPT"),
        (_raw(_pair("F64", width=8)), "ADAPTER_UNSUPPORTED"),
        (_raw(_pair("Q4", width=4)), "ADAPTER_CORRUPT"),
        (_raw(_pair("F16", width=4)), "ADAPTER_CORRUPT"),
        (_raw(_pair(rank=3)), "ADAPTER_SHAPE_MISMATCH"),
        (_raw(dict(list(_pair().items())[:1])), "ADAPTER_SHAPE_MISMATCH"),
        (_raw({"x": ("F32", [1], bytes(4))}), "ADAPTER_UNSUPPORTED"),
        (_raw({"base_model.model.lm_head.weight": ("F32", [1], bytes(4))}), "ADAPTER_UNSUPPORTED"),
        (_raw({**_pair(), "__metadata__x": ("F32", [-1], b"")}), "ADAPTER_CORRUPT"),
    ],
)
def test_a_weights_file_is_refused_when_it_is_not_a_sound_adapter(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "adapter_model.safetensors").write_bytes(content)
    assert _refusal(tmp_path) == reason


def test_a_weights_file_is_refused_when_tensors_overlap(tmp_path: Path) -> None:
    names = list(_pair())
    header = {
        names[0]: {"dtype": "F32", "shape": [2, 8], "data_offsets": [0, 64]},
        names[1]: {"dtype": "F32", "shape": [8, 2], "data_offsets": [0, 64]},
    }
    text = json.dumps(header).encode()
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(64))
    assert _refusal(tmp_path) == "ADAPTER_CORRUPT"


@pytest.mark.parametrize(
    ("dtype", "bits"), [("F32", b"\0\0\x80\x7f"), ("F16", b"\0\x7e"), ("BF16", b"\x80\xff")]
)
def test_weights_are_refused_when_one_is_not_finite(tmp_path: Path, dtype: str, bits: bytes) -> None:
    tensors = _pair(dtype, width=len(bits))
    name = list(tensors)[1]
    kind, shape, body = tensors[name]
    tensors[name] = (kind, shape, body[: -len(bits)] + bits)
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "adapter_model.safetensors").write_bytes(_raw(tensors))
    assert _refusal(tmp_path) == "ADAPTER_NOT_FINITE"


@pytest.mark.parametrize(
    "name", ["adapter_model.bin", "training_args.BIN", "x.pt", "x.pth", "x.ckpt", "x.pkl"]
)
def test_a_folder_is_refused_when_it_holds_a_pickle(adapter: Path, name: str) -> None:
    (adapter / name).write_bytes(b"")
    assert _refusal(adapter) == "ADAPTER_PICKLE"


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_file_is_refused_when_it_is_a_link_or_a_pipe_or_missing(adapter: Path, name: str) -> None:
    (adapter / name).rename(adapter.parent / name)
    assert _refusal(adapter) == "ADAPTER_NOT_FOUND"
    (adapter / name).symlink_to(adapter.parent / name)
    assert _refusal(adapter) == "ADAPTER_FILE_NOT_REGULAR"
    (adapter / name).unlink()
    os.mkfifo(adapter / name)
    assert _refusal(adapter) == "ADAPTER_FILE_NOT_REGULAR"


def test_an_adapter_is_refused_when_it_is_for_another_base(adapter: Path) -> None:
    for modules in ({Q: (8, 8)}, {Q: (8, 8), V: (8, 8)}):
        with pytest.raises(UnprocessableRequest) as caught:
            check_adapter(adapter, modules)
        assert caught.value.reason == "ADAPTER_SHAPE_MISMATCH"


def test_an_adapter_is_refused_when_it_exceeds_a_limit(adapter: Path) -> None:
    assert _refusal(adapter, max_bytes=100) == "ADAPTER_TOO_LARGE"
    assert _refusal(adapter, max_tensors=3) == "ADAPTER_TOO_LARGE"
    assert _refusal(adapter, max_rank=1) == "ADAPTER_CONFIG_INVALID"


def test_scales_follow_patterns_and_rslora() -> None:
    config = AdapterConfig("b", 4, 8.0, False, ("q_proj",), {"q_proj": 2, "0.v_proj": 16}, {"v_proj": 32.0})
    assert module_scale(config, "x.q_proj") == 4.0
    assert module_scale(config, "x.0.v_proj") == 2.0
    assert module_scale(config, "x.qq_proj") == 2.0
    rslora = AdapterConfig("b", 4, 8.0, True, ("q_proj",))
    assert module_scale(rslora, "x.q_proj") == 4.0


def test_weights_are_read_as_float32_when_stored_as_bf16(tmp_path: Path) -> None:
    values = np.array([[1.0, -2.5, 0.125, 3.0, 0, 0, 0, 1e-20], [0.5] * 8], dtype=np.float32)
    upper = (values.view(np.uint32) >> 16).astype("<u2")
    tensors = _pair("BF16", width=2)
    name = next(iter(tensors))
    tensors[name] = ("BF16", [2, 8], upper.tobytes())
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "adapter_model.safetensors").write_bytes(_raw(tensors))
    weights = read_weights(tmp_path)[Q]
    assert weights.a.dtype == np.float32
    assert np.allclose(weights.a, values, rtol=2**-7)
    assert weights.scale == 2.0


def test_composition_sums_the_deltas_when_adapters_target_different_modules(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    first, second = _matrices(rng, 2), _matrices(rng, 3)
    second.pop(V)
    write_adapter(tmp_path / "1", AdapterConfig("b", 2, 1.0, False, ("q_proj", "v_proj")), first)
    write_adapter(tmp_path / "2", AdapterConfig("b", 3, 3.0, True, ("q_proj",)), second)
    deltas = compose_delta([(0.5, read_weights(tmp_path / "1")), (-2.0, read_weights(tmp_path / "2"))])
    a1, b1 = (m.astype(np.float64) for m in first[Q])
    a2, b2 = (m.astype(np.float64) for m in second[Q])
    assert np.allclose(deltas[Q], 0.5 * 0.5 * b1 @ a1 - 2.0 * 3.0 / np.sqrt(3) * b2 @ a2, rtol=1e-12)
    assert deltas[V].shape == (4, 8)


def test_the_store_holds_an_adapter_once_when_it_is_put_twice(adapter: Path, tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "store")
    digest = store.put(adapter)
    assert store.put(adapter) == digest == check_adapter(adapter, MODULES).digest
    assert store.admit(adapter, MODULES).digest == digest
    assert store.digests() == [digest]
    assert sorted(p.name for p in store.root.iterdir()) == [digest.removeprefix("sha256:")]
    folder = store.verify(digest)
    assert sorted(p.name for p in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert all(p.stat().st_mode & 0o222 == 0 for p in folder.iterdir())


def test_the_store_refuses_and_heals_when_its_content_was_changed(adapter: Path, tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "store")
    digest = store.put(adapter)
    weights = store.path(digest) / "adapter_model.safetensors"
    weights.chmod(0o644)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(UnprocessableRequest) as caught:
        store.verify(digest)
    assert caught.value.reason == "ADAPTER_CORRUPT"
    assert store.put(adapter) == digest
    store.verify(digest)


def test_the_store_is_left_empty_when_an_adapter_is_refused(adapter: Path, tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "store")
    (adapter / "adapter_model.safetensors").write_bytes(b"short")
    with pytest.raises(UnprocessableRequest):
        store.admit(adapter, MODULES)
    assert store.digests() == []
    assert not store.root.exists() or list(store.root.iterdir()) == []


def test_the_store_says_not_found_when_a_digest_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as caught:
        AdapterStore(tmp_path).path("sha256:" + "0" * 64)
    assert caught.value.reason == "ADAPTER_NOT_STORED"


def test_modules_are_read_transposed_when_the_base_is_gpt2(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=2)).save_pretrained(
        tmp_path
    )
    modules = read_modules(tmp_path)
    assert modules["transformer.h.0.attn.c_attn"] == (8, 24)
    assert modules["transformer.h.0.mlp.c_proj"] == (32, 8)
    assert not any("wte" in name for name in modules)


def test_modules_are_refused_when_the_base_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        read_modules(tmp_path)
    assert caught.value.reason == "BASE_UNREADABLE"
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(FailedPrecondition) as caught:
        read_modules(tmp_path)
    assert caught.value.reason == "BASE_UNSUPPORTED"
