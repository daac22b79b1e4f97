"""Each guard of the verifier is needed: without it, the attack that it is for is no longer refused so."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lorauter.errors import LorauterError
from lorauter.lora import check, config, header
from lorauter.lora.store import AdapterStore
from tests.security.adapters import ATTACKS
from tests.security.adapters.model import MODULES
from tests.security.conftest import make_scene

GUARDS: dict[str, tuple[Any, str, Any]] = {
    "beside-bin": (check, "check_entries", lambda _: None),
    "beside-module": (check, "check_entries", lambda _: None),
    "beside-link-out": (check, "check_entries", lambda _: None),
    "name-escape": (check, "check_entries", lambda _: None),
    "weights-hard-link": (check, "open_regular", lambda path, _: path.open("rb")),
    "archive-within-tensors": (check, "ends_as_archive", lambda _: False),
    "tensors-nan": (check, "_check_finite", lambda *_: None),
    "tensors-module-in-another-case": (check, "_check_pair", lambda *_: 2),
    "header-overlap": (header, "_check_layout", lambda *_: None),
    "header-bytes-after-the-last": (header, "_check_layout", lambda *_: None),
    "header-duplicate-tensors": (header, "parse_object", json.loads),
    "config-duplicate-keys": (config, "parse_object", json.loads),
    "config-nan": (config, "parse_object", json.loads),
    "config-dora": (config, "_check_keys", lambda _: None),
    "config-tokenizer-kwargs": (config, "_check_keys", lambda _: None),
    "config-imports-os": (config, "_names_transformers_class", lambda _: True),
    "config-other-kind": (config, "_check_kind", lambda _: None),
    "config-rank-pattern-regex": (config, "_MODULE", re.compile(".*")),
    "config-rank-over-budget": (config, "_rank", lambda value, *_: value),
    "config-alpha-huge": (config, "_alpha", lambda value, _: value),
    "config-base-terminal-escape": (config, "_base_model", lambda value: value),
}


def outcome(folder: Path, store: AdapterStore) -> str:
    try:
        store.admit(folder, MODULES)
    except LorauterError as error:
        return error.reason
    return ""


@pytest.mark.parametrize("name", GUARDS)
def test_guard_is_needed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attack = next(attack for attack in ATTACKS if attack.name == name)
    scene, store = make_scene(tmp_path), AdapterStore(tmp_path / "store")
    folder = scene.root / name
    attack.make(scene, folder)
    assert outcome(folder, store) == attack.reason
    monkeypatch.setattr(*GUARDS[name])
    assert outcome(folder, store) != attack.reason
