"""An engine reads a damaged adapter once, says why it is refused, and takes it back when it is mended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lorauter.errors import UnprocessableRequest
from lorauter.lora.check import WEIGHTS_FILE
from lorauter.lora.store import AdapterStore
from lorauter_engine.model.network import Placement
from lorauter_engine.service import quarantine
from lorauter_engine.service.quarantine import Quarantine
from lorauter_engine.service.residency import Residency
from tests.security.adapters.model import MODULES, write
from tests.security.watching import Watch


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    write(tmp_path / "a")
    return AdapterStore(tmp_path / "store")


@pytest.fixture
def watched(store: AdapterStore, tmp_path: Path) -> Iterator[tuple[str, Watch]]:
    """A damaged adapter in the store: its digest, and a watch on its files."""
    digest = store.put(tmp_path / "a")
    damage(store, digest)
    watch = Watch(store.path(digest))
    yield digest, watch
    watch.close()


def damage(store: AdapterStore, digest: str) -> None:
    weights = store.path(digest) / WEIGHTS_FILE
    weights.chmod(0o644)
    data = bytearray(weights.read_bytes())
    data[-4] ^= 1
    weights.write_bytes(data)


def engine_on(store: AdapterStore) -> Residency:
    placement = Placement(torch.device("cpu"), torch.float32)
    return Residency(store, MODULES, placement, max_bytes=2**20, max_count=8, max_rank=128)


def refusal(engine: Residency, digest: str) -> UnprocessableRequest:
    with pytest.raises(UnprocessableRequest) as caught:
        engine.acquire([(digest, 1.0)])
    return caught.value


def test_damaged_adapter_is_read_once_and_refused_with_its_reason(
    store: AdapterStore, watched: tuple[str, Watch]
) -> None:
    digest, watch = watched
    engine = engine_on(store)
    first = refusal(engine, digest)
    assert watch.events() != []
    again = refusal(engine, digest)
    assert watch.events() == []
    assert (first.reason, first.message) == (again.reason, again.message)
    assert engine.quarantined() == {digest: "ADAPTER_CORRUPT"}


def test_mended_adapter_is_taken_back(
    store: AdapterStore, watched: tuple[str, Watch], tmp_path: Path
) -> None:
    digest, _ = watched
    engine = engine_on(store)
    refusal(engine, digest)
    assert store.put(tmp_path / "a") == digest
    assert len(engine.acquire([(digest, 1.0)])) == 1
    assert engine.quarantined() == {}


def test_adapter_that_changes_in_quarantine_is_looked_at_again(
    store: AdapterStore, watched: tuple[str, Watch]
) -> None:
    digest, watch = watched
    engine = engine_on(store)
    refusal(engine, digest)
    (store.path(digest) / WEIGHTS_FILE).write_bytes(b"short")
    watch.events()
    assert refusal(engine, digest).reason == "ADAPTER_TRUNCATED"
    assert watch.events() != []


def test_quarantine_is_bounded(store: AdapterStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "MAX_KEPT", 3)
    kept = Quarantine()
    for number in range(5):
        with pytest.raises(UnprocessableRequest), kept.guarding(f"{number}", tmp_path / "a"):
            raise UnprocessableRequest("ADAPTER_CORRUPT", "x")
    assert list(kept.reasons()) == ["2", "3", "4"]
