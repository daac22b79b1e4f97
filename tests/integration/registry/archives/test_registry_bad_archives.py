"""Archives that are damaged, contradict themselves or attack: each is refused, and nothing of it comes in."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from typing import Any

import pytest

from lorauter.lora.check import Limits
from lorauter_registry.domain.archives import framing
from lorauter_registry.domain.archives.requests import ArchiveLimits
from tests.integration.registry.archives.site import Site, files_of, refusal


def test_every_cut_archive_is_refused(archive: bytes, fresh: Site) -> None:
    for end in [0, 1, 511, 512, 513, len(archive) // 2, len(archive) - 1_536, len(archive) - 1_024 - 1]:
        assert refusal(fresh, archive[:end]).reason == "ARCHIVE_TRUNCATED", end


def test_every_flipped_bit_is_noticed(archive: bytes, fresh: Site) -> None:
    for place in range(3, len(archive) - 1_024, len(archive) // 25):
        changed = bytearray(archive)
        changed[place] ^= 1
        reason = refusal(fresh, bytes(changed)).reason
        assert reason.startswith(("ARCHIVE_", "ADAPTER_")), (place, reason)
    fresh.take(archive)


def rewritten(archive: bytes, change: Callable[[dict[str, bytes]], None]) -> bytes:
    """Returns the archive with other files in it, and with the digest that then belongs to it."""
    files = files_of(archive)
    change(files)
    if "lorauter.json" in files:
        header = json.loads(files["lorauter.json"])
        for name, data in files.items():
            if name.startswith("rows/"):
                header["rows"][name[5:-6]] = data.count(b"\n")
        files["lorauter.json"] = json.dumps(header).encode()
    content = b"".join(
        b"".join(framing.framed(name, data)) for name, data in files.items() if name != "end.json"
    )
    end = json.dumps({"sha256": hashlib.sha256(content).hexdigest()}).encode()
    return content + b"".join(framing.framed("end.json", end)) + framing.TRAILER


def edited(table: str, line: int = 0, **fields: Any) -> Callable[[dict[str, bytes]], None]:
    """Returns what gives a row other fields."""

    def change(files: dict[str, bytes]) -> None:
        name = f"rows/{table}.jsonl"
        lines = files[name].splitlines(keepends=True)
        lines[line] = json.dumps({**json.loads(lines[line]), **fields}).encode() + b"\n"
        files[name] = b"".join(lines)

    return change


def without(name: str) -> Callable[[dict[str, bytes]], None]:
    def change(files: dict[str, bytes]) -> None:
        for found in [each for each in files if each.startswith(name)]:
            del files[found]

    return change


def with_header(**fields: Any) -> Callable[[dict[str, bytes]], None]:
    def change(files: dict[str, bytes]) -> None:
        files["lorauter.json"] = json.dumps({**json.loads(files["lorauter.json"]), **fields}).encode()

    return change


def with_file(name: str, data: bytes) -> Callable[[dict[str, bytes]], None]:
    return lambda files: files.update({name: data})


def copied(table: str) -> Callable[[dict[str, bytes]], None]:
    """Returns what has a table's first row twice."""

    def change(files: dict[str, bytes]) -> None:
        name = f"rows/{table}.jsonl"
        files[name] = files[name].splitlines(keepends=True)[0] + files[name]

    return change


BAD: dict[str, tuple[Callable[[dict[str, bytes]], None], str]] = {
    "an id with a slash": (edited("pool", id="../p"), "ARCHIVE_ROW_INVALID"),
    "a reserved id": (edited("adapter", id="base"), "ARCHIVE_ROW_INVALID"),
    "a text with U+0000": (edited("task", description="\x00"), "ARCHIVE_ROW_INVALID"),
    "a long text": (edited("task", description="x" * 5_000), "ARCHIVE_ROW_INVALID"),
    "a field of no table": (edited("task", more=1), "ARCHIVE_ROW_INVALID"),
    "a wrong type": (edited("task", tags="x"), "ARCHIVE_ROW_INVALID"),
    "a url with a password": (edited("backend", url="http://u:p@h:1"), "ARCHIVE_ROW_INVALID"),
    "a score over 1": (edited("affinity", score=1.5), "ARCHIVE_ROW_INVALID"),
    "a NaN": (edited("affinity", score=float("nan")), "ARCHIVE_ROW_INVALID"),
    "a vector of 3 bytes": (edited("cached_embedding", vector="AAAA"), "ARCHIVE_ROW_INVALID"),
    "an unfinished operation": (edited("operation", state="RUNNING"), "ARCHIVE_ROW_INVALID"),
    "unequal arrays": (edited("measurement", keys=[1]), "ARCHIVE_ROW_INVALID"),
    "a line that is not JSON": (with_file("rows/pool.jsonl", b"{\n"), "ARCHIVE_ROW_INVALID"),
    "a deep line": (with_file("rows/pool.jsonl", b"[" * 100_000 + b"\n"), "ARCHIVE_ROW_INVALID"),
    "a line without an end": (with_file("rows/operation.jsonl", b"{}"), "ARCHIVE_ROW_INVALID"),
    "a later generation": (edited("pool", generation=10**6), "ARCHIVE_INCONSISTENT"),
    "an unknown pool": (edited("task", pool="q"), "ARCHIVE_INCONSISTENT"),
    "an alias of no version": (edited("adapter", aliases={"x": 9}), "ARCHIVE_INCONSISTENT"),
    "a wrong newest version": (edited("adapter", latest_version=9), "ARCHIVE_INCONSISTENT"),
    "another prompt": (edited("task", 1, prompt={"format": "CHAT", "system": "x"}), "ARCHIVE_INCONSISTENT"),
    "another example": (edited("validation_example", target="x"), "ARCHIVE_INCONSISTENT"),
    "an empty example": (edited("validation_example", input=" "), "ARCHIVE_INCONSISTENT"),
    "an example apart": (edited("validation_example", 1, position=7), "ARCHIVE_INCONSISTENT"),
    "no examples": (with_file("rows/validation_example.jsonl", b""), "ARCHIVE_INCONSISTENT"),
    "a pinned profile that is away": (edited("pool", pinned_profile="sha256:q"), "ARCHIVE_INCONSISTENT"),
    "a score of no adapter": (edited("affinity", 0, adapter_id="zz"), "ARCHIVE_INCONSISTENT"),
    "a score of no version": (edited("affinity", 0, task_version=2**31 - 1), "ARCHIVE_INCONSISTENT"),
    "a row twice": (copied("measurement"), "ARCHIVE_INCONSISTENT"),
    "a pool twice": (copied("pool"), "ARCHIVE_INCONSISTENT"),
    "another rank than the files'": (edited("adapter_version", rank=3), "ARCHIVE_INCONSISTENT"),
    "other modules than the files'": (edited("pool", modules={"other": [8, 8]}), "ADAPTER_SHAPE_MISMATCH"),
    "a newer format": (with_header(version=2, lorauter="9.8.7"), "ARCHIVE_VERSION"),
    "another format": (with_header(format="zip"), "ARCHIVE_MALFORMED"),
    "an unknown table": (with_file("rows/spoons.jsonl", b""), "ARCHIVE_MALFORMED"),
    "a table less": (without("rows/affinity"), "ARCHIVE_MALFORMED"),
    "no header": (without("lorauter.json"), "ARCHIVE_MALFORMED"),
    "a large header": (with_header(lorauter="x" * 70_000), "ARCHIVE_TOO_LARGE"),
    "adapters less": (without("adapters/"), "ARCHIVE_MALFORMED"),
    "a path out of the archive": (with_file("../../evil", b"x"), "ARCHIVE_MALFORMED"),
    "an absolute path": (with_file("/tmp/evil", b"x"), "ARCHIVE_MALFORMED"),
    "a file that adapters do not have": (with_file(f"adapters/{'f' * 64}/x.bin", b""), "ARCHIVE_MALFORMED"),
    "an adapter that nobody names": (
        with_file(f"adapters/{'f' * 64}/adapter_config.json", b"{}"),
        "ARCHIVE_INCONSISTENT",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_archive_is_refused_that_holds(archive: bytes, fresh: Site, name: str) -> None:
    change, reason = BAD[name]
    error = refusal(fresh, rewritten(archive, change))
    assert error.reason == reason, error.message
    if name == "a newer format":
        assert "written by lorauter 9.8.7" in error.message


def test_untouched_rewriting_is_taken(archive: bytes, fresh: Site) -> None:
    fresh.take(rewritten(archive, lambda files: None))


def test_links_and_other_members_of_a_tar_are_refused(archive: bytes, fresh: Site) -> None:
    for kind in (
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.DIRTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.XHDTYPE,
    ):
        info = tarfile.TarInfo("lorauter.json")
        info.type, info.linkname = kind, "/etc/passwd"
        assert refusal(fresh, info.tobuf() + bytes(1_024)).reason == "ARCHIVE_MALFORMED"
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("lorauter.json")
        info.pax_headers = {"size": "-1", "path": "x" * 10_000}
        tar.addfile(info)
    assert refusal(fresh, made.getvalue()).reason == "ARCHIVE_MALFORMED"


def test_bombs_are_refused_by_what_they_say_before_they_come(archive: bytes, fresh: Site) -> None:
    tight = fresh.with_context(archive_limits=ArchiveLimits(1_000, 1_000))
    error = refusal(tight, archive)
    assert (error.reason, "LORAUTER_MAX_ARCHIVE_BYTES" in error.message) == ("ARCHIVE_TOO_LARGE", True)
    tight = fresh.with_context(limits=Limits(max_bytes=100))
    assert refusal(tight, archive).reason == "ARCHIVE_TOO_LARGE"
    tight = fresh.with_context(archive_limits=ArchiveLimits(10**6, 10))
    assert refusal(tight, archive).reason == "ARCHIVE_INCONSISTENT"
