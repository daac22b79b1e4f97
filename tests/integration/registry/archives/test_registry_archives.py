"""A whole registry, exported and imported on real PostgreSQL: nothing is lost."""

from __future__ import annotations

import json
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlmodel import select

from lorauter.errors import FailedPrecondition, NotFound, PermissionDenied
from lorauter.identifiers import decode_generation
from lorauter.lora.store import AdapterStore
from lorauter.store import tables
from lorauter_registry.api.convert import checked
from lorauter_registry.domain.archives.framing import ArchiveReader
from lorauter_registry.domain.archives.requests import ImportRegistry
from lorauter_registry.domain.archives.rows import ROWS
from tests.integration.registry.archives.site import TIME, Site, files_of, put, refusal

UNSAID = {"generation", "outbox", "operation_part", "idempotent_write", "decision", "audit_entry"}
"""Tables that are work under way, or logs."""


def test_every_table_is_exported_in_all_its_columns_or_left_out_on_purpose() -> None:
    for name, table in tables.Generation.metadata.tables.items():
        assert (name in ROWS) != (name in UNSAID), name
        if name in ROWS:
            derived = {"tenant", "write_time"}  # manifests' files are written anew
            assert set(ROWS[name].model_fields) == set(table.c.keys()) - derived, name


def test_archive_of_an_import_is_the_same_byte_for_byte(full: Site, archive: bytes, fresh: Site) -> None:
    contents = fresh.take(archive)
    assert contents.rows == json.loads(files_of(archive)["lorauter.json"])["rows"]
    assert all(contents.rows.values())
    assert (contents.rows["operation"], contents.rows["task_version"], contents.adapters) == (1, 3, 5)
    assert fresh.export() == archive
    assert contents.generation == fresh.generation()
    assert (
        decode_generation(contents.generation, fresh.tenant)
        == json.loads(files_of(archive)["lorauter.json"])["generation"]
    )
    assert fresh.store.digests() == full.store.digests()


def test_import_takes_pieces_that_end_anywhere(full: Site, fresh: Site) -> None:
    archive = full.export(without_weights=True)
    shared = fresh.with_context(store=full.store)
    shared.take(archive, piece=97)
    assert shared.export(without_weights=True) == archive


def test_import_leaves_index_work_for_every_pool_and_wakes_a_worker(archive: bytes, fresh: Site) -> None:
    fresh.take(archive)
    assert fresh.heard() == ["index"]
    with fresh.registry.reading() as session:
        owed = session.exec(select(tables.Outbox).where(tables.Outbox.tenant == fresh.tenant)).all()
        assert [(row.topic, row.key) for row in owed] == [("index", "p")]


def test_embeddings_and_weights_are_left_out_when_asked(full: Site, fresh: Site) -> None:
    names = files_of(full.export(without_weights=True, without_embeddings=True))
    assert not [name for name in names if name.startswith("adapters/")]
    assert "rows/cached_embedding.jsonl" not in names
    slim = full.export(without_embeddings=True)
    fresh.take(slim)
    assert fresh.export() != slim
    assert fresh.export(without_embeddings=True) == slim


def test_archive_without_weights_is_refused_where_the_store_lacks_them(full: Site, fresh: Site) -> None:
    archive = full.export(without_weights=True)
    assert refusal(fresh, archive).reason == "ARCHIVE_INCONSISTENT"
    assert "export with weights" in refusal(fresh, archive).message


def test_registry_that_holds_something_is_refused(full: Site, archive: bytes, fresh: Site) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        full.take(archive)
    assert caught.value.reason == "REGISTRY_NOT_EMPTY"
    with fresh.calling(), ExitStack() as stack:
        first, second = (
            stack.enter_context(closing(fresh.registry.begin_import(ImportRegistry()))) for _ in range(2)
        )
        for importing in (first, second):
            importing.feed_archive(archive)
        first.finish_import()
        with pytest.raises(FailedPrecondition, match="already"):
            second.finish_import()
    assert fresh.export() == archive


def test_import_is_repeated_by_its_request_id(archive: bytes, fresh: Site) -> None:
    assert fresh.take(archive, request_id="r") == fresh.take(archive, request_id="r")
    assert fresh.export() == archive


def test_keys_are_exported_and_imported_only_when_both_are_told_to(archive: bytes, fresh: Site) -> None:
    assert "rows/api_key.jsonl" not in files_of(archive)
    fresh.take(archive)
    key: dict[str, Any] = {
        "id": "0" * 16,
        "scopes": ["admin"],
        "digest": bytes(range(32)),
        "any_tenant": True,
    }
    put(fresh.registry, tables.ApiKey(tenant=fresh.tenant, create_time=TIME, **key))
    with_keys = fresh.export(with_keys=True)
    with fresh.registry.context.engine.begin() as connection:
        connection.execute(text("DELETE FROM api_key"))
    weak = replace(fresh, tenant="weak", any_tenant=False)
    with pytest.raises(PermissionDenied, match="nothing was imported"):
        weak.take(with_keys, with_keys=True)
    assert "api_key" not in weak.take(with_keys).rows
    other = replace(fresh, tenant="other")
    assert other.take(with_keys, with_keys=True).rows["api_key"] == 1
    assert other.export(with_keys=True) == with_keys
    assert weak.export() == other.export() == archive


def test_empty_registry_has_nothing_to_export(fresh: Site) -> None:
    with pytest.raises(NotFound) as caught:
        fresh.export()
    assert caught.value.reason == "REGISTRY_EMPTY"


def test_export_says_which_adapter_is_gone_from_the_store(full: Site, tmp_path: Path) -> None:
    bare = full.with_context(store=AdapterStore(tmp_path))
    with pytest.raises(FailedPrecondition, match=r"of adapter '[ab]', sha256:") as caught:
        bare.export()
    assert caught.value.reason == "ADAPTER_NOT_STORED"
    assert bare.export(without_weights=True) == full.export(without_weights=True)


class Counting:
    """A sink that counts."""

    def __init__(self) -> None:
        self.bytes = 0

    def begin(self, name: str, size: int, before: str) -> None: ...

    def data(self, piece: bytes) -> None:
        self.bytes += len(piece)

    def finish(self) -> None: ...


def test_archive_is_a_tar_that_other_programs_read(archive: bytes) -> None:
    sink = Counting()
    reader = ArchiveReader(sink)
    reader.feed(archive)
    reader.close()
    files = files_of(archive)
    assert sink.bytes == sum(map(len, files.values()))
    assert list(files)[:2] == ["lorauter.json", "rows/pool.jsonl"]
    assert list(files)[-1] == "end.json"
    assert checked(ROWS["pool"], json.loads(files["rows/pool.jsonl"])).model_dump()["id"] == "p"
