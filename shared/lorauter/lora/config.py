"""Reads adapter_config.json: an allowlist of what a linear LoRA needs; everything else is refused by name."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lorauter.errors import UnprocessableRequest
from lorauter.lora.strict import parse_object, refused

MAX_CONFIG_BYTES = 64 * 1024
"""A real adapter_config.json is about 1 KiB."""

MAX_NAMES = 512
"""Most entries of target_modules and of each pattern."""

MAX_ALPHA = 1e6
"""Largest lora_alpha: far beyond use, and finite after any division by a rank."""

DROPPED: Mapping[str, str] = {
    "eva_config": "training only",
    "exclude_modules": "the tensors in the file say which modules are adapted",
    "fan_in_fan_out": "concerns merging into the base only: A is (r, in) and B is (out, r) either way",
    "inference_mode": "training only",
    "layers_pattern": "the tensors in the file say which layers are adapted",
    "layers_to_transform": "the tensors in the file say which layers are adapted",
    "lora_dropout": "training only",
    "megatron_core": "meaningless without megatron_config, which is refused",
    "peft_version": "informative only",
    "qalora_group_size": "meaningless without use_qalora, which is refused",
    "revision": "the pool pins the base model's revision",
    "runtime_config": "concerns memory only",
}
"""Keys that change nothing in what the adapter computes, with the reason."""

REFUSED: Mapping[str, str] = {
    "alora_invocation_tokens": "activated LoRA depends on the prompt",
    "arrow_config": "Arrow routes between adapters itself",
    "auto_mapping": "it names a class to import, and only a model class of transformers may stand there",
    "corda_config": "CorDA changes the base model's weights",
    "ensure_weight_tying": "it adapts weights beyond linear layers",
    "kasa_config": "KaSA changes the base model's weights",
    "layer_replication": "it changes the base model's layers",
    "loftq_config": "LoftQ changes the base model's weights",
    "lora_bias": "a bias does not compose",
    "lora_ga_config": "LoRA-GA changes the base model's weights",
    "megatron_config": "Megatron layers are not served",
    "modules_to_save": "whole replaced modules do not compose",
    "monteclora_config": "it is not linear",
    "target_parameters": "only linear layers are adapted",
    "trainable_token_indices": "changed embeddings do not compose",
    "use_bdlora": "block-diagonal LoRA has another layout",
    "use_dora": "DoRA is not linear",
    "use_qalora": "QA-LoRA pools its input",
    "velora_config": "it is not linear",
}
"""Keys that must be absent, null, false or empty, with the reason."""

_READ = frozenset(
    {
        "alpha_pattern",
        "base_model_name_or_path",
        "bias",
        "init_lora_weights",
        "lora_alpha",
        "peft_type",
        "r",
        "rank_pattern",
        "target_modules",
        "task_type",
        "use_rslora",
    }
)
_PLAIN_INITS: tuple[object, ...] = (None, True, False, "gaussian", "eva", "orthogonal")
_MODULE = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What adapter_config.json says about a linear LoRA.

    ``rank_pattern`` and ``alpha_pattern`` override ``rank`` and ``alpha`` for modules whose name is the
    key or ends in "." and the key; the first that matches wins, as in PEFT.
    """

    base_model: str
    rank: int
    alpha: float
    rslora: bool
    target_modules: tuple[str, ...]
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)


def parse_config(data: bytes, max_rank: int = 128) -> AdapterConfig:
    """Returns the configuration in ``data``, the bytes of adapter_config.json.

    Raises UnprocessableRequest: ADAPTER_CONFIG_INVALID for what is not a sound configuration,
    ADAPTER_UNSUPPORTED for a kind of adapter that does not compose linearly.
    """
    if len(data) > MAX_CONFIG_BYTES:
        raise _invalid(f"it is over {MAX_CONFIG_BYTES} bytes")
    try:
        raw = parse_object(data)
    except ValueError as error:
        raise _invalid(str(error)) from None
    _check_kind(raw)
    _check_keys(raw)
    return AdapterConfig(
        base_model=_base_model(raw.get("base_model_name_or_path")),
        rank=_rank(raw.get("r"), "r", max_rank),
        alpha=_alpha(raw.get("lora_alpha"), "lora_alpha"),
        rslora=_boolean(raw.get("use_rslora"), "use_rslora"),
        target_modules=_target_modules(raw.get("target_modules")),
        rank_pattern={k: _rank(v, f"rank_pattern.{k}", max_rank) for k, v in _pattern(raw, "rank_pattern")},
        alpha_pattern={k: _alpha(v, f"alpha_pattern.{k}") for k, v in _pattern(raw, "alpha_pattern")},
    )


def _check_kind(raw: Mapping[str, Any]) -> None:
    if raw.get("peft_type") != "LORA":
        raise _unsupported("peft_type", "only LORA is served")
    if raw.get("task_type") not in (None, "CAUSAL_LM"):
        raise _unsupported("task_type", "only CAUSAL_LM is served")
    if raw.get("bias", "none") != "none":
        raise _unsupported("bias", "a bias does not compose")
    init = raw.get("init_lora_weights")
    if not any(init is plain or (isinstance(init, str) and init == plain) for plain in _PLAIN_INITS):
        raise _unsupported("init_lora_weights", "this way of beginning changes the base model's weights")


def _check_keys(raw: Mapping[str, Any]) -> None:
    for key, value in raw.items():
        if key in _READ or key in DROPPED:
            continue
        # PEFT writes every field, also those of newer versions, with these neutral values.
        if value is None or value is False or value in ({}, []):
            continue
        if key == "auto_mapping" and _names_transformers_class(value):
            continue
        raise _unsupported(key[:80], REFUSED.get(key, "this setting is not known"))


def _names_transformers_class(value: Any) -> bool:
    # PEFT writes this whenever no task_type was given. Nothing here imports what it names.
    return (
        isinstance(value, dict)
        and set(value) == {"base_model_class", "parent_library"}
        and all(isinstance(text, str) for text in value.values())
        and re.fullmatch(r"[A-Z][A-Za-z0-9]{0,80}", value["base_model_class"]) is not None
        and re.fullmatch(r"transformers\.models(\.[a-z0-9_]{1,40}){2}", value["parent_library"]) is not None
    )


def _base_model(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 512:
        raise _invalid("base_model_name_or_path must name the base model (at most 512 characters)")
    if not value.isprintable():
        # It is shown to people, whose terminals obey control characters.
        raise _invalid("base_model_name_or_path holds characters that cannot be printed")
    return value


def _rank(value: Any, where: str, max_rank: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= max_rank:
        raise _invalid(f"{where} must be a whole number from 1 to {max_rank}")
    return value


def _alpha(value: Any, where: str) -> float:
    # The upper bound also keeps float() from failing on a huge whole number.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_ALPHA:
        raise _invalid(f"{where} must be a number over 0 and at most {MAX_ALPHA:g}")
    if not math.isfinite(value):
        raise _invalid(f"{where} must be finite")
    return float(value)


def _boolean(value: Any, where: str) -> bool:
    if value is None:
        return False
    if not isinstance(value, bool):
        raise _invalid(f"{where} must be true or false")
    return value


def _target_modules(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        raise _unsupported("target_modules", "a pattern is not accepted: list the modules' names")
    if not isinstance(value, list) or not 0 < len(value) <= MAX_NAMES:
        raise _invalid(f"target_modules must list 1 to {MAX_NAMES} module names")
    return tuple(sorted({_module_name(name, "target_modules") for name in value}))


def _pattern(raw: Mapping[str, Any], key: str) -> list[tuple[str, Any]]:
    value = raw.get(key)
    if value is None:
        return []
    if not isinstance(value, dict) or len(value) > MAX_NAMES:
        raise _invalid(f"{key} must be an object of at most {MAX_NAMES} module names")
    return [(_module_name(name, key), entry) for name, entry in value.items()]


def _module_name(value: Any, where: str) -> str:
    if not isinstance(value, str) or len(value) > 256 or not _MODULE.fullmatch(value):
        raise _invalid(f"{where} may hold literal module names only (letters, digits, '_' and '.')")
    return value


def _invalid(message: str) -> UnprocessableRequest:
    return refused("ADAPTER_CONFIG_INVALID", f"adapter_config.json: {message}")


def _unsupported(key: str, why: str) -> UnprocessableRequest:
    return refused(
        "ADAPTER_UNSUPPORTED",
        f"adapter_config.json: {key} is not supported: {why}; train a plain LoRA on linear layers",
        field=key,
    )
