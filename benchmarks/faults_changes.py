"""Callers who change a registry without pause, and note what it acknowledged."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from benchmarks.faults_ledger import Ledger, insist
from lorauter import Client
from lorauter.lora.config import AdapterConfig
from lorauter.lora.write import write_adapter
from lorauter.registry.v1 import registry_pb2 as pb

POOL = "faults"
SPARE_POOL = "spare"
"""Has backends and no tasks, so that nobody starts a matching."""
BASE = "faults/base"
MODULE = "model.layers.0.self_attn.q_proj"
WIDTH = 8

MOST_TASKS = 24
"""Tasks of one caller at a time, so that projections stay small and changes many."""
MOST_ADAPTERS = 10
MOST_BACKENDS = 4

WORDS = (
    *("sort", "add", "letters", "french", "verbs", "count", "vowels", "rhyme"),
    *("colour", "dates", "sums", "names", "towns", "birds", "metals"),
)


class Files:
    """A base with one layer and adapters for it, in a folder from which the registry may read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def base(self) -> Path:
        """Writes the base; returns its folder."""
        base = self.folder / "base"
        base.mkdir(parents=True, exist_ok=True)
        (base / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
        (base / "tokenizer.json").write_text("{}", encoding="utf-8")
        save_file({f"{MODULE}.weight": np.zeros((WIDTH, WIDTH), np.float32)}, base / "model.safetensors")
        return base

    def adapter(self, name: str) -> Path:
        """Writes an adapter whose content is that of no other name; returns its folder."""
        draw = np.random.default_rng(list(name.encode()))
        a, b = draw.normal(size=(2, WIDTH)), draw.normal(size=(WIDTH, 2))
        config = AdapterConfig(BASE, 2, 4.0, False, ("q_proj",))
        matrices = {MODULE: (a.astype(np.float32), b.astype(np.float32))}
        write_adapter(self.folder / name, config, matrices)
        return self.folder / name


def create_pools(client: Client, files: Files, ledger: Ledger) -> None:
    """Creates the pools that all changes are of: the first changes of a ledger."""
    base = str(files.base())
    for id_ in (POOL, SPARE_POOL):
        made = _create_pool(client, id_, base, str(uuid.uuid4()))
        ledger.note(made.generation)


def _create_pool(client: Client, id_: str, base: str, request: str) -> pb.Pool:
    return insist(
        lambda: client.registry.create_pool(id=id_, base_model=BASE, base_path=base, request_id=request)
    )


class Caller:
    """Changes resources that nobody else changes, one call after the other."""

    def __init__(self, name: str, client: Client, files: Files, ledger: Ledger, seed: int) -> None:
        self._name = name
        self._client = client
        self._files = files
        self._ledger = ledger
        self._rng = random.Random(f"{seed}/{name}")  # noqa: S311
        self._made = 0
        self._sleeping: set[str] = set()

    def change(self) -> None:
        """Makes one change, now and then two: a task comes with its validation set."""
        roll = self._rng.random()
        for share, make in (
            *((0.06, self._create_task), (0.10, self._replace_set), (0.13, self._delete_task)),
            *((0.15, self._register_adapter), (0.16, self._disable_adapter)),
            *((0.17, self._register_backend), (0.18, self._drain_backend)),
            *((0.40, self._import_scores), (0.60, self._set_alias)),
        ):
            if roll < share:
                make()
                return
        self.retag()

    def retag(self) -> None:
        """Gives one of the tasks other tags: the cheapest change that routers must see."""
        if (id_ := self._any_task()) is None:
            self._create_task()
            return
        tags, request = [f"tag-{self._number()}"], str(uuid.uuid4())
        task = insist(
            lambda: self._client.registry.update_task(
                id=id_, tags=tags, replace_tags=True, request_id=request
            )
        )
        self._ledger.tasks[id_] = task
        self._ledger.note(task.generation)

    def replace_set(self) -> None:
        """Gives one of the tasks another validation set, which must be embedded."""
        if self._any_task() is None:
            self._create_task()
        else:
            self._replace_set()

    def _create_task(self) -> None:
        if len(self._own_tasks()) >= MOST_TASKS:
            self.retag()
            return
        id_, request = f"{self._name}-task-{self._number()}", str(uuid.uuid4())
        made = insist(
            lambda: self._client.registry.create_task(
                id=id_, pool=POOL, metric="exact_match", request_id=request
            )
        )
        self._ledger.tasks[id_] = made
        self._ledger.note(made.generation)
        self._put_set(id_)

    def _replace_set(self) -> None:
        if (id_ := self._any_task()) is not None:
            self._put_set(id_)

    def _put_set(self, id_: str) -> None:
        words, number = " ".join(self._rng.sample(WORDS, 3)), self._number()
        examples = [(f"{words}: {kind} {number} of {self._name}", "answer") for kind in ("question", "quiz")]
        request = str(uuid.uuid4())
        made = insist(
            lambda: self._client.registry.put_validation_set(
                id_, examples, request_id=request, timeout_seconds=10
            )
        )
        for key in [key for key in self._ledger.scores if key[0] == id_]:
            del self._ledger.scores[key]
        self._ledger.tasks[id_] = made
        self._ledger.note(made.generation)

    def _delete_task(self) -> None:
        if len(self._own_tasks()) < MOST_TASKS // 2:
            self._create_task()
            return
        id_, request = self._rng.choice(self._own_tasks()), str(uuid.uuid4())
        gone = insist(lambda: self._client.registry.delete_task(id=id_, request_id=request))
        for key in [key for key in self._ledger.scores if key[0] == id_]:
            del self._ledger.scores[key]
        self._ledger.tasks[id_] = None
        self._ledger.note(gone.generation)

    def _register_adapter(self) -> None:
        mine = [id_ for id_ in self._ledger.adapters if id_.startswith(f"{self._name}-")]
        if len(mine) >= MOST_ADAPTERS:
            self._set_alias()
            return
        id_, request = f"{self._name}-adapter-{self._number()}", str(uuid.uuid4())
        path = str(self._files.adapter(id_))
        made = insist(
            lambda: self._client.registry.register_adapter(id=id_, pool=POOL, path=path, request_id=request)
        )
        self._ledger.adapters[id_] = made
        self._ledger.note(made.generation)

    def _disable_adapter(self) -> None:
        if len(self._awake()) < MOST_ADAPTERS // 2:
            self._register_adapter()
            return
        id_, request = self._rng.choice(self._awake()), str(uuid.uuid4())
        made = insist(
            lambda: self._client.registry.disable_adapter(id=id_, reason="a test", request_id=request)
        )
        self._sleeping.add(id_)
        self._ledger.adapters[id_] = made
        self._ledger.note(made.generation)

    def _set_alias(self) -> None:
        if not self._awake():
            self._register_adapter()
            return
        id_, request = self._rng.choice(self._awake()), str(uuid.uuid4())
        alias = self._rng.choice(("champion", "canary", "blue", "green"))
        known = self._ledger.adapters[id_]
        version = 0 if known is not None and alias in known.aliases else 1
        made = insist(
            lambda: self._client.registry.set_adapter_alias(
                id=id_, alias=alias, version=version, request_id=request
            )
        )
        self._ledger.adapters[id_] = made
        self._ledger.note(made.generation)

    def _import_scores(self) -> None:
        task, awake = self._any_task(), self._awake()
        if task is None or not awake:
            self.retag()
            return
        adapter, request = self._rng.choice(awake), str(uuid.uuid4())
        score = self._rng.randrange(1, 20) / 20
        given = [pb.Affinity(pool=POOL, task_id=task, adapter_id=adapter, score=score, count=20)]
        made = insist(lambda: self._client.registry.import_affinities(affinities=given, request_id=request))
        self._ledger.scores[task, adapter] = score
        self._ledger.note(made.generation)

    def _register_backend(self) -> None:
        number, request = self._rng.randrange(MOST_BACKENDS), str(uuid.uuid4())
        self._set_backend(
            lambda: self._client.registry.register_backend(
                id=f"{self._name}-backend-{number}",
                pool=SPARE_POOL,
                kind=pb.BACKEND_KIND_TGI,
                url=f"http://127.0.0.1:9/{self._number()}",
                request_id=request,
            )
        )

    def _drain_backend(self) -> None:
        mine = [
            id_
            for id_, each in list(self._ledger.backends.items())
            if id_.startswith(f"{self._name}-") and each is not None
            if each.state == pb.BACKEND_STATE_ACTIVE
        ]
        if not mine:
            self._register_backend()
            return
        id_, request = self._rng.choice(mine), str(uuid.uuid4())
        self._set_backend(lambda: self._client.registry.drain_backend(id=id_, request_id=request))

    def _set_backend(self, call: Callable[[], pb.Backend]) -> None:
        made = insist(call)
        self._ledger.backends[made.id] = made
        self._ledger.note(made.generation)

    def _own_tasks(self) -> list[str]:
        mine = list(self._ledger.tasks.items())
        return [id_ for id_, task in mine if task is not None and id_.startswith(f"{self._name}-")]

    def _any_task(self) -> str | None:
        mine = self._own_tasks()
        return self._rng.choice(mine) if mine else None

    def _awake(self) -> list[str]:
        mine = [id_ for id_ in list(self._ledger.adapters) if id_.startswith(f"{self._name}-")]
        return [id_ for id_ in mine if id_ not in self._sleeping]

    def _number(self) -> int:
        self._made += 1
        return self._made


class Crowd:
    """Callers, each in a thread of its own, until they are told to stop."""

    def __init__(self, callers: list[Caller], pause_seconds: float) -> None:
        self._stop = threading.Event()
        self._errors: list[BaseException] = []
        self._pause = pause_seconds
        self._threads = [threading.Thread(target=self._run, args=[each], daemon=True) for each in callers]
        for thread in self._threads:
            thread.start()

    def check(self) -> None:
        """Raises what a caller was refused with."""
        if self._errors:
            raise self._errors[0]

    def end(self) -> None:
        """Lets all callers finish their call."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self.check()

    def _run(self, caller: Caller) -> None:
        due = time.monotonic()
        try:
            while not self._stop.wait(max(0.0, due - time.monotonic())):
                due = max(due, time.monotonic() - 1) + self._pause
                caller.change()
        except BaseException as error:
            self._errors.append(error)
