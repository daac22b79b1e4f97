"""Registers the demo pool with a running suite, through the same calls that any operator makes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lorauter import Client
from lorauter.errors import AlreadyExists, NotFound
from lorauter.registry.v1 import registry_pb2 as pb

POOL_ID = "demo"
POOL_DIRECTORY = Path(__file__).parent / "demo" / "pool"

VALIDATION_EXAMPLES = 20
"""Examples of each validation set that are registered: as many as the paper's tasks have at least."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class DemoTask:
    """A task of the demo pool, as its directory has it."""

    id: str
    description: str
    cluster: str
    metric: str
    max_new_tokens: int
    stop: list[str]
    directory: Path

    def examples(self, split: str) -> list[dict[str, str]]:
        """Returns the examples of ``validation`` or ``test``: {"input", "target"}."""
        lines = (self.directory / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


def demo_tasks(directory: Path = POOL_DIRECTORY) -> Iterator[DemoTask]:
    """Yields the demo pool's tasks by id."""
    for path in sorted(directory.glob("tasks/*/task.json")):
        described = json.loads(path.read_text(encoding="utf-8"))
        names = ("id", "description", "cluster", "metric", "max_new_tokens", "stop")
        yield DemoTask(**{name: described[name] for name in names}, directory=path.parent)


def seed(client: Client, engine_url: str, progress: Progress, directory: Path = POOL_DIRECTORY) -> None:
    """Registers base, backend, adapters and tasks; what is there already is left as it is."""
    described = json.loads((directory / "pool.json").read_text(encoding="utf-8"))
    with suppress(AlreadyExists):
        client.registry.create_pool(
            id=POOL_ID,
            description="The pool that lorauter ships: a small Llama with LoRAs for word games.",
            base_model=described["base"]["id"],
            base_revision=described["base"]["revision"],
            base_path=str(directory / "base"),
        )
    client.registry.register_backend(
        id="engine", pool=POOL_ID, kind=pb.BackendKind.BACKEND_KIND_ENGINE, url=engine_url
    )
    for path in sorted((directory / "adapters").iterdir()):
        progress(f"adapter {path.name}")
        seed_adapter(client, path)
    for task in demo_tasks(directory):
        progress(f"task {task.id}")
        seed_task(client, task)


def seed_adapter(client: Client, directory: Path) -> None:
    """Registers an adapter unless it exists: one that was retired or recalled stays so."""
    try:
        client.registry.get_adapter(id=directory.name)
    except NotFound:
        client.registry.register_adapter(id=directory.name, pool=POOL_ID, path=str(directory))


def seed_task(client: Client, task: DemoTask) -> None:
    """Creates a task with its validation set; completes one whose registration was interrupted."""
    settings = pb.GenerationSettings(max_new_tokens=task.max_new_tokens, stop=task.stop)
    try:
        made = client.registry.create_task(
            id=task.id,
            pool=POOL_ID,
            description=task.description,
            metric=task.metric,
            generation_settings=settings,
            tags=[task.cluster],
        )
    except AlreadyExists:
        made = client.registry.get_task(id=task.id)
    if made.version == 0:
        examples = task.examples("validation")[:VALIDATION_EXAMPLES]
        client.registry.put_validation_set(task.id, [pb.ValidationExample(**example) for example in examples])
