"""A tenant's registry that is exported and imported, and one with a row in every table."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import func, insert, select
from sqlmodel import SQLModel

from lorauter.access import acting, open_caller
from lorauter.errors import LorauterError
from lorauter.lora.store import AdapterStore
from lorauter.store import tables
from lorauter_registry.domain.adapter_requests import (
    DisableAdapter,
    GetGeneration,
    RegisterAdapter,
    RetireAdapter,
    SetAdapterAlias,
)
from lorauter_registry.domain.archives.requests import ExportRegistry, ImportRegistry, RegistryContents
from lorauter_registry.domain.examples import ExampleSet
from lorauter_registry.domain.requests import (
    CreatePool,
    CreateTask,
    PutValidationSet,
    RegisterBackend,
    UpdateTask,
)
from lorauter_registry.service import Registry

TIME = datetime(2026, 5, 1, 12, 30, 0, 123_456, tzinfo=UTC)
TENANT = "default"
COMPOSED = "mix-0123456789abcdef"


class Heard:
    """Wake-ups that were sent, in order."""

    def __init__(self) -> None:
        self.topics: list[str] = []

    def wake(self, topics: Collection[str]) -> None:
        self.topics.extend(topics)


@dataclass(frozen=True)
class Site:
    """A tenant's registry."""

    registry: Registry
    tenant: str
    any_tenant: bool = True

    def with_context(self, **changes: Any) -> Site:
        """The same tenant's registry with other parts."""
        return replace(self, registry=Registry(replace(self.registry.context, **changes)))

    @property
    def store(self) -> AdapterStore:
        return self.registry.context.store

    def heard(self) -> list[str]:
        """The wake-ups that were sent."""
        wakeups = self.registry.context.wakeups
        assert isinstance(wakeups, Heard)
        return wakeups.topics

    def calling(self) -> AbstractContextManager[None]:
        return acting(replace(open_caller(self.tenant), any_tenant=self.any_tenant))

    def export(self, **options: Any) -> bytes:
        """Returns an archive."""
        with self.calling():
            export = self.registry.export_registry(ExportRegistry(**options))
        with closing(export):
            archive = b"".join(iter(export.read_archive, b""))
        assert len(archive) == export.total_bytes
        return archive

    def take(self, archive: bytes, piece: int = 1_000_003, **options: Any) -> RegistryContents:
        """Imports an archive."""
        with self.calling(), closing(self.registry.begin_import(ImportRegistry(**options))) as importing:
            for start in range(0, len(archive), piece):
                importing.feed_archive(archive[start : start + piece])
            return importing.finish_import()

    def generation(self) -> str:
        with self.calling():
            return self.registry.get_generation(GetGeneration()).generation

    def count(self) -> int:
        """All rows of the tenant."""
        with self.registry.reading() as session:
            return sum(
                session.execute(select(func.count()).where(table.c.tenant == self.tenant)).scalar_one()
                for table in SQLModel.metadata.tables.values()
                if table.name != "audit_entry"
            )


def fill(registry: Registry, files: Any) -> None:
    base = {"id": "p", "base_model": files.base_model, "base_path": str(files.base())}
    registry.create_pool(CreatePool.model_validate(base))
    registry.create_task(CreateTask.model_validate({"id": "t", "pool": "p", "metric": "exact_match"}))
    registry.create_task(CreateTask.model_validate({"id": "empty", "pool": "p", "metric": "chrf"}))
    for answers in (["1", "2"], ["1", "2", "drei"]):
        examples = ExampleSet(1_000)
        examples.extend((f"question {n} é\u2028", answer) for n, answer in enumerate(answers))
        registry.put_validation_set(PutValidationSet(task_id="t"), examples)
    registry.update_task(UpdateTask.model_validate({"id": "t", "metric": "token_f1"}))
    for name, seed in (("a", 0), ("a", 1), ("b", 2), ("c", 3), ("d", 4)):
        path = str(files.adapter(f"{name}{seed}", seed=seed))
        registry.register_adapter(RegisterAdapter(id=name, pool="p", path=path, description="ü"))
    registry.set_adapter_alias(SetAdapterAlias(id="a", alias="champion", version=1))
    registry.disable_adapter(DisableAdapter(id="c", reason="it leaks"))
    registry.retire_adapter(RetireAdapter(id="d", successor="a"))
    engine = {"id": "e", "pool": "p", "kind": "ENGINE", "url": "http://localhost:1"}
    registry.register_backend(RegisterBackend.model_validate(engine))
    for row in measured_rows(registry):
        put(registry, row)


def measured_rows(registry: Registry) -> Iterator[SQLModel]:
    """Yields what the worker would have written."""
    with registry.reading() as session:
        task = session.get(tables.TaskVersion, (TENANT, "t", 3))
        assert task is not None
        version = session.get(tables.AdapterVersion, (TENANT, "b", 1))
        assert version is not None
    of: dict[str, Any] = {
        "tenant": TENANT,
        "metric": "token_f1",
        "metric_version": 1,
        "prompt_digest": task.prompt_digest,
    }
    known: dict[str, Any] = {
        "task_id": "t",
        "task_version": 3,
        "measure_time": TIME,
        "standard_error": 0.1,
        "count": 3,
    }
    scored: dict[str, Any] = {"score": 1 / 3, "shrunk_score": 0.1 + 0.2, "likelihood": -1e-17}
    yield tables.Affinity(**of, **known, **scored, adapter_id="base", adapter_version=0, eligible=False)
    yield tables.Affinity(
        **of, **known, **scored, adapter_id="b", adapter_version=1, judged_score=0.5, judged_count=1
    )
    member = {"adapter_id": "b", "version": 1, "digest": version.digest, "weight": 1.0}
    gained: dict[str, Any] = {"gain": 0.1, "gain_error": 0.05, "score": 0.5}
    yield tables.Composition(**of, **known, **gained, name=COMPOSED, members=[member])
    nan = float("nan")
    cells: dict[str, Any] = {
        "keys": [-(2**63), 0, 2**63 - 1],
        "scores": [nan, 0.5, 1.0],
        "likelihoods": [-0.25, nan, nan],
    }
    yield tables.Measurement(**of, **cells, task_id="t", digest=version.digest, measure_time=TIME)
    in_pool: dict[str, Any] = {"tenant": TENANT, "pool": "p"}
    yield tables.Profile(
        **in_pool,
        digest="sha256:p",
        generation=7,
        constants={"tau": 0.1},
        figures={},
        active=True,
        create_time=TIME,
    )
    entry = {"name": "b" * 64, "rank": 8, "size_bytes": 5, "gain": 0.25, "members": [member]}
    yield tables.PoolManifest(
        **in_pool,
        digest=f"sha256:{'d' * 64}",
        entries=[entry],
        left_out=[],
        shards=1,
        memory_bytes=2**40,
        expected_share=0.5,
        published_share=0.0,
        create_time=TIME,
        publish_time=TIME,
    )
    yield tables.Operation(**in_pool, id="o", kind="matching", state="CANCELLED", done=7, create_time=TIME)
    yield tables.Operation(**in_pool, id="running", kind="matching", state="RUNNING")
    yield tables.CachedEmbedding(
        tenant=TENANT, encoder_digest="sha256:e", text_digest="f" * 64, vector=b"\x00\x01\xfe\xff"
    )


def put(registry: Registry, row: SQLModel) -> None:
    values = row.model_dump(exclude_none=True)
    with registry.context.engine.begin() as connection:
        connection.execute(insert(type(row)).values(**values))


def files_of(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def refusal(site: Site, archive: bytes) -> LorauterError:
    """Imports what must be refused; checks that nothing came in."""
    before = site.count()
    with pytest.raises(LorauterError) as caught:
        site.take(archive)
    assert site.count() == before
    assert "nothing was imported" in caught.value.message
    return caught.value
