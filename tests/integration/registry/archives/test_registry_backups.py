"""PostgreSQL is the truth: what its own tools saved and restored is the registry, to the byte."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorauter.store import create_engine
from lorauter_registry.domain.adapter_requests import RegisterAdapter
from lorauter_registry.service import Registry
from lorauter_suite.embedded.identity import database_identity
from lorauter_suite.embedded.places import programs
from tests.integration.registry.archives.site import Site


def test_restored_dump_holds_the_same_registry(
    full: Site, archive: bytes, postgres_server: Any, tmp_path: Path
) -> None:
    found = programs(database_identity())
    saved = str(tmp_path / "registry.dump")
    url = full.registry.context.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    subprocess.run(
        [str(found / "pg_dump"), "--format=custom", f"--file={saved}", url], check=True, timeout=60
    )
    with postgres_server.database() as target:
        restore = [str(found / "pg_restore"), "--no-owner", "--exit-on-error", f"--dbname={target}", saved]
        subprocess.run(restore, check=True, timeout=60)
        engine = create_engine(target)
        restored = full.with_context(engine=engine)
        assert restored.export() == archive
        assert restored.generation() == full.generation()
        assert replace(restored, tenant="nobody").count() == 0
        engine.dispose()


def test_lost_files_come_back_when_the_same_adapter_is_registered_again(
    ready: Registry, tiny_pool: Any
) -> None:
    (digest,) = ready.context.store.digests()
    shutil.rmtree(ready.context.store.path(digest))
    assert ready.context.store.digests() == []
    again = RegisterAdapter(id="a", pool="p", path=str(tiny_pool.adapter("a")))
    assert ready.register_adapter(again).latest.version == 1
    assert ready.context.store.verify(digest)
