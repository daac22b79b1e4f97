"""Adapters that change while they are looked at, and files that only somebody else may read."""

from __future__ import annotations

import fcntl
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from lorauter.errors import LorauterError, UnprocessableRequest
from lorauter.lora.check import CONFIG_FILE, WEIGHTS_FILE, Limits, check_adapter, check_source
from lorauter.lora.config import AdapterConfig
from lorauter.lora.store import AdapterStore
from lorauter.lora.strict import open_regular, pinned
from lorauter.lora.weights import read_weights
from lorauter.lora.write import write_adapter
from lorauter_registry.adapters.folders import RootedFolders
from tests.security.adapters import Scene
from tests.security.adapters.model import DATA, MODULES, weights_bytes, write
from tests.security.conftest import make_scene
from tests.security.watching import Watch

TRIES = 200
ROOT = Path(__file__).parents[2]


@contextmanager
def meanwhile(act: Callable[[], None]) -> Iterator[None]:
    """Does something over and over in a thread; what it raises fails the test."""
    stop = threading.Event()
    failed: list[BaseException] = []

    def work() -> None:
        try:
            while not stop.is_set():
                act()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert not failed, failed


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return make_scene(tmp_path.resolve())


def outcomes(store: AdapterStore, scene: Scene, path: Path, least: int = 1) -> dict[str, int]:
    """Registers a path over and over as the registry does, until ``least`` outcomes were seen.

    Returns how often each reason came; that of a success is "".
    """
    folders = RootedFolders([scene.root])
    found: dict[str, int] = {}
    deadline = time.monotonic() + 60
    for tried in itertools.count():
        if tried >= TRIES and (len(found) >= least or time.monotonic() > deadline):
            break
        reason = ""
        try:
            with folders.opened(str(path)) as folder:
                store.admit(folder, MODULES)
        except LorauterError as error:
            reason = error.reason
        found[reason] = found.get(reason, 0) + 1
    return found


def test_a_folder_that_becomes_a_link_leads_nowhere(scene: Scene) -> None:
    """A link out takes the folder's place, and gives it back, as fast as it can."""
    folder, link, aside = scene.root / "a", scene.root / "link", scene.root / "aside"
    write(folder)
    # Another adapter than the canary's, which is therefore recognised if it is stored.
    (folder / WEIGHTS_FILE).write_bytes(weights_bytes(data=bytes(64) + DATA[64:]))
    own = check_adapter(folder, MODULES).digest
    link.symlink_to(scene.canary / "adapter")
    watch = Watch(scene.canary)

    def swap() -> None:
        folder.rename(aside)
        link.rename(folder)
        folder.rename(link)
        aside.rename(folder)

    store = AdapterStore(scene.root.parent / "store")
    with meanwhile(swap):
        found = outcomes(store, scene, folder)
    events = watch.events()
    watch.close()
    assert set(found) <= {"", "PATH_NOT_ALLOWED", "PATH_NOT_FOUND"}, found
    assert events == []
    assert set(store.digests()) <= {own}


def test_a_pinned_folder_stays_itself(scene: Scene) -> None:
    """What the race above tries, in one certain order; and that the plain path would have led out."""
    folder = scene.root / "a"
    write(folder)
    with pinned(folder) as held:
        folder.rename(scene.root / "aside")
        folder.symlink_to(scene.canary / "adapter")
        assert (held / CONFIG_FILE).samefile(scene.root / "aside" / CONFIG_FILE)
        assert (folder / CONFIG_FILE).samefile(scene.canary / "adapter" / CONFIG_FILE)
    with pytest.raises(OSError, match="Not a directory"), pinned(folder):
        pytest.fail("a link was followed")


def test_no_descriptor_is_left_behind(scene: Scene) -> None:
    write(scene.root / "a")
    (scene.root / "l").symlink_to("a")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for name in ("a", "l", "missing"):
        for _ in range(5):
            try:
                with pinned(scene.root / name) as folder:
                    check_source(folder, MODULES, Limits())
            except OSError:
                continue
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_what_is_stored_was_checked_though_the_source_flickers(scene: Scene) -> None:
    """The weights are sound, then NaN, then cut, then longer, as fast as they can be."""
    folder = scene.root / "a"
    write(folder)
    states = [
        weights_bytes(),
        weights_bytes(data=DATA[:-4] + b"\0\0\xc0\x7f"),
        weights_bytes(data=DATA[:-1]),
        weights_bytes(data=DATA + bytes(4096)),
        weights_bytes(length=2**63),
    ]
    descriptor = os.open(folder / WEIGHTS_FILE, os.O_WRONLY)

    def flicker() -> None:
        for state in states:
            os.pwrite(descriptor, state, 0)
            os.ftruncate(descriptor, len(state))

    store = AdapterStore(scene.root.parent / "store")
    with meanwhile(flicker):
        found = outcomes(store, scene, folder, least=2)
    os.close(descriptor)
    known = {
        "",
        "ADAPTER_CORRUPT",
        "ADAPTER_TRUNCATED",
        "ADAPTER_NOT_FINITE",
        "ADAPTER_SHAPE_MISMATCH",
    }
    assert set(found) <= known, found
    assert len(found) >= 2
    for digest in store.digests():
        assert check_adapter(store.verify(digest), MODULES).digest == digest
    assert not list(store.root.glob(".staging-*"))


def test_a_file_that_grows_without_end_is_bounded(scene: Scene) -> None:
    folder = scene.root / "a"
    write(folder)
    descriptor = os.open(folder / WEIGHTS_FILE, os.O_WRONLY | os.O_APPEND)
    store = AdapterStore(scene.root.parent / "store")

    def grow() -> None:
        os.write(descriptor, bytes(4096))
        if os.fstat(descriptor).st_size > 2**26:
            os.ftruncate(descriptor, 0)

    with meanwhile(grow):
        found = outcomes(store, scene, folder)
    os.close(descriptor)
    assert set(found) <= {"", "ADAPTER_CORRUPT", "ADAPTER_TRUNCATED", "ADAPTER_TOO_LARGE"}, found
    assert len(store.digests()) <= 1
    assert not list(store.root.glob(".staging-*"))


def test_a_file_under_a_lease_keeps_nobody_waiting(scene: Scene) -> None:
    """Its holder would be asked first, and an open without O_NONBLOCK would wait for the answer."""
    folder = scene.root / "a"
    write(folder)
    descriptor = os.open(folder / WEIGHTS_FILE, os.O_RDWR)
    fcntl.fcntl(descriptor, fcntl.F_SETSIG, 0)
    former = signal.signal(signal.SIGIO, signal.SIG_IGN)
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    try:
        with pytest.raises(UnprocessableRequest) as caught:
            check_adapter(folder, MODULES)
    finally:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        os.close(descriptor)
        signal.signal(signal.SIGIO, former)
    assert caught.value.reason == "ADAPTER_FILE_NOT_REGULAR"


@pytest.mark.parametrize("place", ["/dev/zero", "/dev/null", "/dev/random"])
def test_a_device_is_not_even_opened(place: str) -> None:
    with pytest.raises(PermissionError, match="not a regular file"):
        open_regular(Path(place))


AS_NOBODY = """
import os, sys
from pathlib import Path
from lorauter.errors import UnprocessableRequest
from lorauter.lora.check import check_adapter
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
try:
    check_adapter(Path(sys.argv[1]), {})
except UnprocessableRequest as error:
    print(error.reason)
"""


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_file_that_may_not_be_read_is_refused(name: str) -> None:
    """In a process that is not root, whom nothing is forbidden."""
    with tempfile.TemporaryDirectory() as home:
        Path(home).chmod(0o755)
        folder = Path(home) / "a"
        write(folder)
        (folder / name).chmod(0)
        command = [sys.executable, "-c", AS_NOBODY, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.stdout == "ADAPTER_FILE_NOT_REGULAR\n", done.stderr


def test_a_folder_that_may_not_be_read_is_not_found() -> None:
    with tempfile.TemporaryDirectory() as home:
        write(Path(home) / "a")
        Path(home).chmod(0o711)
        (Path(home) / "a").chmod(0)
        command = [sys.executable, "-c", AS_NOBODY, str(Path(home) / "a")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
        (Path(home) / "a").chmod(0o755)
    assert done.stdout == "ADAPTER_NOT_FOUND\n", done.stderr


def test_weights_are_of_the_digest_or_not_loaded(tmp_path: Path) -> None:
    """A change between the check and the load, in either file, though both states are sound adapters."""
    draw = np.random.default_rng(0)
    name = next(iter(MODULES))

    def put(alpha: float, weights: bytes = b"") -> None:
        matrices = (
            draw.normal(size=(2, 8)).astype(np.float32),
            draw.normal(size=(8, 2)).astype(np.float32),
        )
        write_adapter(tmp_path, AdapterConfig("tiny/base", 2, alpha, False, ("q_proj",)), {name: matrices})
        if weights:
            (tmp_path / WEIGHTS_FILE).write_bytes(weights)

    put(4.0)
    digest = check_adapter(tmp_path, MODULES).digest
    weights = (tmp_path / WEIGHTS_FILE).read_bytes()
    assert set(read_weights(tmp_path, digest=digest)) == {name}
    for change in (lambda: put(4.0), lambda: put(8.0, weights)):
        change()
        assert set(read_weights(tmp_path)) == {name}
        with pytest.raises(UnprocessableRequest) as caught:
            read_weights(tmp_path, digest=digest)
        assert caught.value.reason == "ADAPTER_CORRUPT"
    put(4.0, weights)
    assert set(read_weights(tmp_path, digest=digest)) == {name}
