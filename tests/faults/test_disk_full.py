"""No file can be written any more: the caller is told so, and nothing is left of what was tried."""

from __future__ import annotations

import resource
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.faults_changes import POOL
from lorauter.client.options import NO_RETRY
from lorauter.errors import NotFound, Unavailable

FULL_BYTES = 64
"""Files that grow beyond this are refused, as by a disk that is full (EFBIG in place of ENOSPC)."""


@contextmanager
def full_disk(pid: int) -> Iterator[None]:
    """Lets a running process write no file but the smallest."""
    soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (FULL_BYTES, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))


def test_an_adapter_is_refused_whole_and_taken_later_when_the_disk_was_full(broken) -> None:
    here, name = broken.site, f"adapter-{uuid.uuid4().hex[:8]}"
    path = str(here.files.adapter(name))
    store = Path(here.suite.data_dir / "adapters")
    before = stored(store)
    with here.suite.addresses.client(retry=NO_RETRY) as client:
        with full_disk(broken.pid("registry")):
            with pytest.raises(Unavailable) as caught:
                client.registry.register_adapter(id=name, pool=POOL, path=path, request_id=name)
            assert caught.value.reason == "ADAPTER_STORE_UNAVAILABLE"
            with pytest.raises(NotFound):
                client.registry.get_adapter(id=name)
        assert stored(store) == before
        made = client.registry.register_adapter(id=name, pool=POOL, path=path, request_id=name)
    here.ledger.adapters[name] = made
    here.ledger.note(made.generation)
    assert stored(store) > before
    broken.assert_all_arrived()


def stored(store: Path) -> set[str]:
    """The files of a store, temporary ones too."""
    return {str(path) for path in store.rglob("*") if path.is_file()}
