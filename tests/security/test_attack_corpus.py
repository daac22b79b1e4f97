"""Hostile adapters are refused for what they are, by the registry, by the verifier and by the engine."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lorauter.errors import UnprocessableRequest
from lorauter.lora.check import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Limits,
    check_adapter,
    check_source,
    combine_digest,
)
from lorauter.lora.store import AdapterStore
from lorauter_engine.model.network import Placement
from lorauter_engine.service.residency import Residency
from tests.security.adapters import ATTACKS, Attack, Scene
from tests.security.adapters.model import MODULES, write
from tests.security.conftest import Struck, make_scene
from tests.security.watching import Watch, census

VERIFIED = [attack for attack in ATTACKS if attack.verifier_reason]
CONTAINED = [attack for attack in ATTACKS if attack.contained]


def _sound(_: Scene, folder: Path) -> dict[str, str]:
    write(folder)
    return {"path": str(folder)}


SOUND = Attack("sound", "", _sound)


def named(attack: Attack) -> str:
    return attack.name


@pytest.mark.parametrize("attack", ATTACKS, ids=named)
def test_registry_refuses(attack: Attack, struck: Struck) -> None:
    answer = struck.answers[attack.name]
    assert answer.json()["reason"] == attack.reason, answer.text
    assert 400 <= answer.status_code < 500
    assert "Traceback" not in answer.text
    assert "a secret" not in answer.text


def test_corpus_is_of_many_kinds() -> None:
    assert len(ATTACKS) >= 40
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)


def test_nothing_outside_the_folders_was_touched(struck: Struck) -> None:
    assert struck.events == []
    assert struck.after == struck.before
    assert not (struck.scene.canary / "owned").exists()


def test_nothing_is_stored_or_registered(struck: Struck) -> None:
    assert struck.stored == []
    assert struck.adapters == []


def test_the_same_registry_takes_a_sound_adapter(struck: Struck) -> None:
    """Or the refusals would prove nothing."""
    assert struck.sound.status_code == 201, struck.sound.text


def test_the_registrys_memory_is_bounded(struck: Struck) -> None:
    assert struck.grown_mib < 96


@pytest.mark.parametrize("attack", VERIFIED, ids=named)
def test_verifier_refuses(attack: Attack, struck: Struck, tmp_path: Path) -> None:
    folder = struck.folders[attack.name]
    checks: list[Callable[[], object]] = [lambda: AdapterStore(tmp_path).admit(folder, MODULES)]
    if attack.reason != "ADAPTER_NOT_FINITE":
        # Weights are looked at in the store's own copy.
        checks.append(lambda: check_source(folder, MODULES, Limits()))
    if attack.contained:
        checks.append(lambda: check_adapter(folder, MODULES))
    for check in checks:
        with pytest.raises(UnprocessableRequest) as caught:
            check()
        assert caught.value.reason == attack.verifier_reason, caught.value.message
    assert list(tmp_path.iterdir()) == []


def planted(attack: Attack, root: Path) -> str:
    """Writes an attack where an engine's store would hold it; returns its digest."""
    scene = make_scene(root)
    store = root / "store"
    store.mkdir()
    attack.make(scene, store / "new")
    digest = "sha256:" + "0" * 64
    files = [store / "new" / name for name in (CONFIG_FILE, WEIGHTS_FILE)]
    if all(path.exists() and stat.S_ISREG(path.lstat().st_mode) for path in files):
        config, weights = (b"" if path.stat().st_size > 2**24 else path.read_bytes() for path in files)
        digest = combine_digest(hashlib.sha256(config).hexdigest(), hashlib.sha256(weights).hexdigest())
    (store / "new").rename(store / digest.removeprefix("sha256:"))
    return digest


def residency(root: Path) -> Residency:
    placement = Placement(torch.device("cpu"), torch.float32)
    return Residency(AdapterStore(root), MODULES, placement, max_bytes=2**20, max_count=8, max_rank=128)


@pytest.mark.parametrize("attack", CONTAINED, ids=named)
def test_engine_loads_none_even_from_its_own_store(attack: Attack, tmp_path: Path) -> None:
    digest = planted(attack, tmp_path)
    engine = residency(tmp_path / "store")
    with pytest.raises(UnprocessableRequest) as caught:
        engine.acquire([(digest, 1.0)])
    # What is no pair of regular files is not in the store at all.
    assert caught.value.reason in (attack.reason, "ADAPTER_UNKNOWN")
    assert (engine.resident(), engine.size_bytes()) == ([], 0)


def test_engine_loads_a_sound_adapter(tmp_path: Path) -> None:
    """Or the refusals would prove nothing."""
    digest = planted(SOUND, tmp_path)
    engine = residency(tmp_path / "store")
    assert len(engine.acquire([(digest, 1.0)])) == 1
    assert engine.resident() == [digest]


IN_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
from lorauter.errors import LorauterError
from lorauter.lora.check import Limits, check_adapter, check_source
from tests.security.adapters.model import MODULES
from tests.security.fuzz_verifier import bounded

refused = 0
with bounded(int(sys.argv[2])):
    for folder in sorted(Path(sys.argv[1]).iterdir()):
        for check in check_source, check_adapter:
            try:
                check(folder, MODULES, Limits())
            except LorauterError:
                refused += 1
    try:
        bytearray(2 * int(sys.argv[2]))
    except MemoryError:
        print(refused)
"""


def test_verifier_stays_within_64_mib(struck: Struck) -> None:
    """Under RLIMIT_AS, where one byte more raises MemoryError; the last line shows that it would."""
    command = [sys.executable, "-c", IN_LITTLE_MEMORY, str(struck.scene.root), str(64 * 2**20)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > len(VERIFIED)


def test_the_watch_sees_an_open_a_write_and_a_link(tmp_path: Path) -> None:
    """The control: what the corpus did not cause is seen when it is caused."""
    scene = make_scene(tmp_path)
    before, watch = census(scene.canary), Watch(scene.canary)
    assert watch.events() == []
    acts: list[Callable[[], object]] = [
        lambda: (scene.canary / "secret").read_text(),
        lambda: (scene.canary / "owned").write_text("owned"),
        lambda: os.link(scene.canary / "adapter" / CONFIG_FILE, tmp_path / "link"),
        lambda: list((scene.canary / "adapter").iterdir()),
    ]
    for act in acts:
        act()
        assert watch.events() != []
    watch.close()
    assert census(scene.canary) != before
