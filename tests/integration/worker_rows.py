"""Rows as the registry writes them, for tests of the worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from sqlalchemy import Engine, text
from sqlmodel import Session, select

from lorauter.prompts import GenerationSpec, PromptSpec, prompt_digest
from lorauter.store import tables, write

POOL = "main"


class Registry:
    """A tenant's registry, written directly: every method is one accepted change."""

    def __init__(self, engine: Engine, tenant: str) -> None:
        self.engine = engine
        self.tenant = tenant

    def add_pool(self, **fields) -> int:
        with write(self.engine, self.tenant) as tx:
            tx.session.add(
                tables.Pool(
                    tenant=self.tenant, id=POOL, base_model="test/base", generation=tx.generation, **fields
                )
            )
            tx.owe("index", POOL)
        return tx.generation

    def add_backend(self, url: str, state: str = "ACTIVE") -> int:
        with write(self.engine, self.tenant) as tx:
            tx.session.add(
                tables.Backend(
                    tenant=self.tenant,
                    id="engine",
                    pool=POOL,
                    kind="ENGINE",
                    url=url,
                    state=state,
                    generation=tx.generation,
                )
            )
            tx.owe("index", POOL)
        return tx.generation

    def put_task(self, task_id: str, examples: Sequence[tuple[str, str]], **fields) -> int:
        """Creates a task, or replaces its validation set."""
        prompt = PromptSpec.from_json(fields.get("prompt", {}))
        generation_settings = GenerationSpec.from_json(fields.get("generation_settings", {}))
        with write(self.engine, self.tenant) as tx:
            task = tx.session.get(tables.Task, (self.tenant, task_id))
            if task is None:
                task = tables.Task(
                    tenant=self.tenant,
                    id=task_id,
                    pool=POOL,
                    metric="exact_match",
                    prompt=prompt.to_json(),
                    generation_settings=generation_settings.to_json(),
                    generation=tx.generation,
                )
            task.version += 1
            task.state = "REGISTERED"
            task.example_count = len(examples)
            task.generation = tx.generation
            tx.session.add(task)
            tx.session.flush()
            tx.session.add(
                tables.TaskVersion(
                    tenant=self.tenant,
                    task_id=task_id,
                    version=task.version,
                    metric=task.metric,
                    prompt_digest=prompt_digest(prompt, generation_settings),
                    examples_version=task.version,
                    example_count=len(examples),
                )
            )
            for position, (question, target) in enumerate(examples):
                tx.session.add(
                    tables.ValidationExample(
                        tenant=self.tenant,
                        task_id=task_id,
                        version=task.version,
                        position=position,
                        input=question,
                        target=target,
                    )
                )
            tx.owe("index", POOL)
        return tx.generation

    def delete_task(self, task_id: str) -> int:
        with write(self.engine, self.tenant) as tx:
            tx.session.delete(tx.session.get(tables.Task, (self.tenant, task_id)))
            tx.owe("index", POOL)
        return tx.generation

    def add_version(self, adapter_id: str, digest: str, state: str = "ACTIVE", **fields) -> int:
        """Adds a version to an adapter, which it creates."""
        with write(self.engine, self.tenant) as tx:
            adapter = tx.session.get(tables.Adapter, (self.tenant, adapter_id))
            if adapter is None:
                adapter = tables.Adapter(
                    tenant=self.tenant, id=adapter_id, pool=POOL, generation=tx.generation
                )
            adapter.latest_version += 1
            tx.session.add(adapter)
            tx.session.flush()
            tx.session.add(
                tables.AdapterVersion(
                    tenant=self.tenant,
                    adapter_id=adapter_id,
                    version=adapter.latest_version,
                    digest=digest,
                    source="path:/test",
                    base_model="test/base",
                    rank=8,
                    alpha=16.0,
                    size_bytes=1,
                    state=state,
                    **fields,
                )
            )
            tx.owe("index", POOL)
        return tx.generation

    def measure(self, task_id: str, adapter_id: str, version: int, score: float, **fields) -> int:
        with write(self.engine, self.tenant) as tx:
            task = tx.session.get(tables.Task, (self.tenant, task_id))
            held = tx.session.get(tables.TaskVersion, (self.tenant, task_id, task.version))
            tx.session.merge(
                tables.Affinity(
                    tenant=self.tenant,
                    task_id=task_id,
                    task_version=task.version,
                    adapter_id=adapter_id,
                    adapter_version=version,
                    metric=task.metric,
                    prompt_digest=held.prompt_digest,
                    score=score,
                    count=10,
                    standard_error=0.1,
                    **fields,
                )
            )
            tx.owe("index", POOL)
        return tx.generation

    def execute(self, statement: str, **values) -> None:
        with self.engine.begin() as connection:
            connection.execute(text(statement), values)

    def scalar(self, statement: str, **values):
        with self.engine.connect() as connection:
            return connection.execute(text(statement), {"tenant": self.tenant, **values}).scalar()

    def task_state(self, task_id: str) -> str | None:
        return self.scalar("SELECT state FROM task WHERE tenant = :tenant AND id = :id", id=task_id)

    def outbox(self) -> list[tables.Outbox]:
        with Session(self.engine) as session:
            return list(session.exec(select(tables.Outbox).where(tables.Outbox.tenant == self.tenant)))

    def operations(self) -> list[tables.Operation]:
        with Session(self.engine) as session:
            chosen = select(tables.Operation).where(tables.Operation.tenant == self.tenant)
            return list(session.exec(chosen.order_by(tables.Operation.create_time)))


def questions(topic: str, count: int = 4) -> list[tuple[str, str]]:
    """Examples of a topic."""
    return [(f"{topic} question number {number}", f"{topic} answer {number}") for number in range(count)]


def eventually(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Waits until the condition holds; fails with its name when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {condition.__name__}"
        time.sleep(0.02)
