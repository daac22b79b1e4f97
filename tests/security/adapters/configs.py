"""Configs that name code, patterns, other adapters' kinds or numbers beyond the budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.security.adapters.model import Collected, Scene, config_bytes, write

INVALID, UNSUPPORTED, MISMATCH = "ADAPTER_CONFIG_INVALID", "ADAPTER_UNSUPPORTED", "ADAPTER_BASE_MISMATCH"
_all = Collected()

TEXTS: dict[str, bytes] = {
    "nested-deeply": b'{"r":' + b"[" * 60_000,
    "nested-objects": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "large": config_bytes(lora_dropout="x" * 1024 * 1024),
    "duplicate-keys": config_bytes()[:-1] + b', "r": 2}',
    "duplicate-keys-escaped": config_bytes()[:-1] + b', "\\u0072": 2}',
    "number-beyond-floats": config_bytes()[:-1] + b', "alpha_pattern": {"q_proj": 1e999}}',
    "nan": config_bytes()[:-1] + b', "lora_dropout": NaN}',
    "digits": config_bytes()[:-1] + b', "lora_dropout": ' + b"9" * 5_000 + b"}",
    "not-utf8": config_bytes()[:-1] + b', "peft_version": "\xff"}',
    "utf16": config_bytes().decode().encode("utf-16"),
    "byte-order-mark": b"\xef\xbb\xbf" + config_bytes(),
    "two-documents": config_bytes() + config_bytes(),
    "list": b"[" + config_bytes() + b"]",
    "empty": b"",
    "surrogate": config_bytes()[:-1] + b', "peft_version": "\\ud800"}',
    "nul": config_bytes()[:-1] + b', "peft_version": "\\u0000"}',
}
for _name, _text in TEXTS.items():
    _all.files(f"config-{_name}", INVALID, _text, None)

CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "rank-over-budget": (INVALID, {"r": 129}),
    "rank-absurd": (INVALID, {"r": 10**9}),
    "rank-negative": (INVALID, {"r": -1}),
    "rank-true": (INVALID, {"r": True}),
    "rank-pattern-over-budget": (INVALID, {"rank_pattern": {"q_proj": 129}}),
    "rank-pattern-traversal": (INVALID, {"rank_pattern": {"../q_proj": 2}}),
    "rank-pattern-regex": (INVALID, {"rank_pattern": {"(a+)+$": 2}}),
    "alpha-huge": (INVALID, {"lora_alpha": 1e300}),
    "alpha-pattern-zero": (INVALID, {"alpha_pattern": {"q_proj": 0}}),
    "target-regex": (UNSUPPORTED, {"target_modules": "(.*a){25}q_proj"}),
    "target-regex-listed": (INVALID, {"target_modules": ["(a+)+$"]}),
    "target-traversal": (INVALID, {"target_modules": ["../../q_proj"]}),
    "target-nul": (INVALID, {"target_modules": ["q_proj\x00"]}),
    "target-line-end": (INVALID, {"target_modules": ["q_proj\n"]}),
    "target-homoglyph": (INVALID, {"target_modules": ["q_pr\u043ej"]}),
    "targets-many": (INVALID, {"target_modules": [f"m{n}" for n in range(513)]}),
    "base-right-to-left": (INVALID, {"base_model_name_or_path": "tiny/\u202eesab"}),
    "base-terminal-escape": (INVALID, {"base_model_name_or_path": "tiny/base\x1b]0;owned\x07"}),
    "base-long": (INVALID, {"base_model_name_or_path": "x" * 513}),
    "base-list": (INVALID, {"base_model_name_or_path": ["tiny/base"]}),
    "dora": (UNSUPPORTED, {"use_dora": True}),
    "bias": (UNSUPPORTED, {"bias": "all"}),
    "bias-lora": (UNSUPPORTED, {"lora_bias": True}),
    "modules-to-save": (UNSUPPORTED, {"modules_to_save": ["lm_head"]}),
    "activated": (UNSUPPORTED, {"alora_invocation_tokens": [1, 2]}),
    "qalora": (UNSUPPORTED, {"use_qalora": True, "qalora_group_size": 16}),
    "block-diagonal": (UNSUPPORTED, {"use_bdlora": {"nblocks": 2}}),
    "arrow": (UNSUPPORTED, {"arrow_config": {"top_k": 3}}),
    "layer-replication": (UNSUPPORTED, {"layer_replication": [[0, 10_000_000]]}),
    "target-parameters": (UNSUPPORTED, {"target_parameters": ["experts.weight"]}),
    "token-indices": (UNSUPPORTED, {"trainable_token_indices": [0]}),
    "pissa": (UNSUPPORTED, {"init_lora_weights": "pissa"}),
    "loftq": (UNSUPPORTED, {"loftq_config": {"loftq_bits": 4}}),
    "other-kind": (UNSUPPORTED, {"peft_type": "VERA"}),
    "prompt-tuning": (
        UNSUPPORTED,
        {
            "peft_type": "PROMPT_TUNING",
            "tokenizer_name_or_path": "evil/tokenizer",
            "tokenizer_kwargs": {"trust_remote_code": True},
        },
    ),
    "classifier": (UNSUPPORTED, {"task_type": "SEQ_CLS"}),
    "imports-os": (UNSUPPORTED, {"auto_mapping": {"parent_library": "os", "base_model_class": "system"}}),
    "imports-like-transformers": (
        UNSUPPORTED,
        {"auto_mapping": {"parent_library": "transformers.models.x.y\n", "base_model_class": "Popen"}},
    ),
    "imports-deeper": (
        UNSUPPORTED,
        {"auto_mapping": {"parent_library": "transformers.utils", "base_model_class": "Popen"}},
    ),
    "imports-megatron": (UNSUPPORTED, {"megatron_config": {"a": 1}, "megatron_core": "evil.module"}),
    "imports-by-auto-map": (UNSUPPORTED, {"auto_map": {"AutoModel": "modeling_evil.Model"}}),
    "remote-code": (UNSUPPORTED, {"trust_remote_code": True}),
    "tokenizer-kwargs": (UNSUPPORTED, {"tokenizer_kwargs": {"trust_remote_code": True}}),
    "setting-of-tomorrow": (UNSUPPORTED, {"run_this": "x"}),
    "setting-with-a-path": (UNSUPPORTED, {"../../x": 1}),
}


def _vouched(change: Mapping[str, Any]) -> Callable[[Scene, Path], object]:
    """The caller vouches for the base: what is refused is refused all the same."""

    def make(_: Scene, folder: Path) -> dict[str, Any]:
        write(folder, config_bytes(**change))
        return {"path": str(folder), "assume_base": True}

    return make


def _of_base(name: str) -> Callable[[Scene, Path], object]:
    def make(scene: Scene, folder: Path) -> None:
        write(folder, config_bytes(base_model_name_or_path=name.format(canary=scene.canary)))

    return make


for _name, (_reason, _change) in CHANGES.items():
    _all.add(f"config-{_name}", _reason, _vouched(_change))

BASES = {
    "url": "http://169.254.169.254/latest/meta-data/",
    "file-url": "file://{canary}/adapter",
    "path": "{canary}/adapter",
    "path-upwards": "../../canary/adapter",
    "homoglyph": "tiny/b\u0430se",
    "case": "Tiny/Base",
    "padded": "tiny/base ",
    "revision": "tiny/base@main",
}
for _name, _base in BASES.items():
    _all.add(f"base-{_name}", MISMATCH, _of_base(_base), at_verifier="", contained=False)

CONFIGS = tuple(_all.attacks)
