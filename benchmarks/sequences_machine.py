"""Random commands, lost and repeated wake-ups, crashes and halts: hypothesis looks for a harmful order."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from benchmarks.faults_changes import BASE, WORDS
from benchmarks.sequences_process import Crash, Outcome, Stop
from benchmarks.sequences_settling import Settling
from benchmarks.sequences_site import Site, empty
from lorauter import failpoints
from lorauter.errors import LorauterError
from lorauter_registry.domain import adapter_requests as adapters
from lorauter_registry.domain import requests
from lorauter_registry.domain.affinity_requests import ImportAffinities
from lorauter_registry.domain.examples import ExampleSet

POOLS, TASKS, ADAPTERS, BACKENDS = ("p", "q"), ("t", "u", "v"), ("a", "b", "c"), ("e", "f")
FILES = tuple(f"files-{number}" for number in range(5))

pools, tasks = st.sampled_from(POOLS), st.sampled_from(TASKS)
own_adapters, backends = st.sampled_from(ADAPTERS), st.sampled_from(BACKENDS)
versions = st.integers(0, 3)
texts = st.lists(st.sampled_from(WORDS), min_size=2, max_size=5, unique=True)
tags = st.lists(st.sampled_from(WORDS[:3]), max_size=2, unique=True)
scores = st.lists(
    st.tuples(tasks, st.sampled_from((*ADAPTERS, "base")), versions, st.integers(0, 20)),
    min_size=1,
    max_size=4,
    unique_by=lambda row: row[:3],
)
in_registry = st.sampled_from(("", "", "", "", "commit", "committed", "wake-up"))
"""Where the registry dies in a command; the caller then repeats it with its request_id."""
workers = st.integers(0, 2)
deaths = st.builds(
    Stop, point=st.sampled_from(("claim", "embed", "upsert", "publish", "acknowledge", "acknowledged"))
)
halts = st.builds(Stop, point=st.sampled_from(("claim", "embed", "upsert", "publish")), dies=st.just(False))
calls = st.builds(Stop, calls=st.integers(1, 40), dies=st.booleans())
stops = st.one_of(st.none(), st.none(), deaths, halts, calls)


class Machine(RuleBasedStateMachine):
    """One sequence. ``site`` is where it runs, set before the class is given to hypothesis."""

    site: ClassVar[Site]
    sequences: ClassVar[int] = 0
    steps: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).sequences += 1
        self.site.begin()
        self.settling = Settling(self.site)
        self._requests = 0
        self._written: list[tuple[Callable[[], Any], Any]] = []

    def teardown(self) -> None:
        """Every sequence ends at rest, with nothing halted."""
        try:
            self.settling.settle()
        finally:
            self.site.end()

    @initialize()
    def first_pool(self) -> None:
        """Nothing can be done without a pool."""
        self.create_pool("p", "")

    @rule(pool=pools, end=in_registry)
    def create_pool(self, pool: str, end: str) -> None:
        """A pool whose base every adapter fits."""
        modules = [{"name": "model.layers.0.self_attn.q_proj", "in_features": 8, "out_features": 8}]
        self._write("create_pool", requests.CreatePool, end, id=pool, base_model=BASE, modules=modules)

    @rule(
        pool=pools,
        policy=st.sampled_from(("ROUTE", "BASE", "ALL_ROUND")),
        refuse=st.booleans(),
        end=in_registry,
    )
    def update_pool(self, pool: str, policy: str, refuse: bool, end: str) -> None:
        """Another policy for untypical queries, and for what cannot be served as decided."""
        serving = {"fallback": "REFUSE" if refuse else "DEGRADE"}
        self._write(
            "update_pool", requests.UpdatePool, end, id=pool, untypical_policy=policy, serving=serving
        )

    @rule(task=tasks, pool=pools, end=in_registry)
    def create_task(self, task: str, pool: str, end: str) -> None:
        """A task without examples."""
        self._write("create_task", requests.CreateTask, end, id=task, pool=pool, metric="exact_match")

    @rule(task=tasks, words=texts, end=in_registry)
    def put_validation_set(self, task: str, words: list[str], end: str) -> None:
        """Examples, which come as a whole in place of those before."""
        examples = ExampleSet(1_000_000)
        for word in words:
            examples.add(f"{word} of the {words[0]}", word)
        self._write("put_validation_set", requests.PutValidationSet, end, examples, task_id=task)

    @rule(task=tasks, tags=tags, end=in_registry)
    def tag_task(self, task: str, tags: list[str], end: str) -> None:
        """Other tags: the same version with another content."""
        self._write("update_task", requests.UpdateTask, end, id=task, tags=tags, replace_tags=True)

    @rule(
        task=tasks,
        system=st.sampled_from(("", "Be brief.")),
        metric=st.sampled_from(("rouge1", "exact_match")),
        end=in_registry,
    )
    def prompt_task(self, task: str, system: str, metric: str, end: str) -> None:
        """Another prompt or metric: another version of the same examples."""
        prompt = {"format": "CHAT", "system": system}
        self._write("update_task", requests.UpdateTask, end, id=task, prompt=prompt, metric=metric)

    @rule(task=tasks, end=in_registry)
    def delete_task(self, task: str, end: str) -> None:
        """A task goes with all that was measured on it; its id may come again."""
        self._write("delete_task", requests.DeleteTask, end, id=task)

    @rule(adapter=own_adapters, pool=pools, files=st.sampled_from(FILES), end=in_registry)
    def register_adapter(self, adapter: str, pool: str, files: str, end: str) -> None:
        """An adapter, or a new version of one."""
        path = str(self.site.adapter(files))
        self._write("register_adapter", adapters.RegisterAdapter, end, id=adapter, pool=pool, path=path)

    @rule(
        adapter=own_adapters, alias=st.sampled_from(("champion", "blue")), version=versions, end=in_registry
    )
    def set_alias(self, adapter: str, alias: str, version: int, end: str) -> None:
        """An alias moves, which may change the version that is routed to, or goes."""
        self._write(
            "set_adapter_alias", adapters.SetAdapterAlias, end, id=adapter, alias=alias, version=version
        )

    @rule(
        adapter=own_adapters,
        version=versions,
        days=st.integers(0, 3),
        successor=st.sampled_from(("", *ADAPTERS)),
        end=in_registry,
    )
    def retire_adapter(self, adapter: str, version: int, days: int, successor: str, end: str) -> None:
        """A version, or all, drain for some days or retire at once."""
        until = datetime.now(UTC).replace(microsecond=0) + timedelta(days=days) if days else None
        self._write(
            "retire_adapter",
            adapters.RetireAdapter,
            end,
            **{"id": adapter, "version": version, "pins_until": until, "successor": successor},
        )

    @rule(adapter=own_adapters, version=versions, end=in_registry)
    def disable_adapter(self, adapter: str, version: int, end: str) -> None:
        """A version, or all, are recalled."""
        self._write(
            "disable_adapter", adapters.DisableAdapter, end, id=adapter, version=version, reason="a test"
        )

    @rule(rows=scores, end=in_registry)
    def import_affinities(self, rows: list[tuple[str, str, int, int]], end: str) -> None:
        """What adapters scored, all of it or nothing."""
        given = [
            {"task_id": task, "adapter_id": adapter, "score": score / 20, "count": 20}
            | ({} if adapter == "base" else {"adapter_version": version})
            for task, adapter, version, score in rows
        ]
        self._write("import_affinities", ImportAffinities, end, affinities=given)

    @rule(backend=backends, pool=pools, port=st.integers(1, 3), end=in_registry)
    def register_backend(self, backend: str, pool: str, port: int, end: str) -> None:
        """A backend, or another address of one, which is then active again."""
        url = f"http://127.0.0.1:{port}"
        self._write(
            "register_backend", requests.RegisterBackend, end, id=backend, pool=pool, kind="TGI", url=url
        )

    @rule(backend=backends, end=in_registry)
    def drain_backend(self, backend: str, end: str) -> None:
        """A backend takes no new requests."""
        self._write("drain_backend", requests.DrainBackend, end, id=backend)

    @rule(pool=pools, age=st.integers(0, 3), end=in_registry)
    def activate_profile(self, pool: str, age: int, end: str) -> None:
        """An earlier profile is restored, or (age 0) profiles are fitted again."""
        known = self.settling.profiles(pool)
        digest = known[age % len(known)] if age and known else ""
        self._write("activate_profile", adapters.ActivateProfile, end, pool=pool, digest=digest)

    @precondition(lambda self: self._written)
    @rule(data=st.data())
    def repeat_command(self, data: st.DataObject) -> None:
        """A caller who got no answer asks again, at any later time: it is the first answer that comes."""
        call, answer = data.draw(st.sampled_from(self._written))
        before = self.site.generation()
        assert call() == answer
        assert self.site.generation() == before, "a repeated command was carried out again"

    @precondition(lambda self: self.site.queue.names)
    @rule(worker=workers, place=st.integers(0, 9), again=st.booleans(), stop=stops)
    def deliver(self, worker: int, place: int, again: bool, stop: Stop | None) -> None:
        """A worker takes any of the wake-ups, which may come once more, and may be stopped meanwhile."""
        names = self.site.queue.names
        name = names[place % len(names)]
        if not again:
            names.remove(name)
        self._work(worker, name, stop)

    @precondition(lambda self: self.site.queue.names)
    @rule()
    def lose_wakeups(self) -> None:
        """The broker forgets everything."""
        self.site.queue.names.clear()

    @rule(worker=workers, stop=stops)
    def sweep(self, worker: int, stop: Stop | None) -> None:
        """A worker looks for work without a wake-up, does it, and may be stopped meanwhile."""
        self.site.sweep()
        if self.site.queue.names:
            self._work(worker, self.site.queue.names.pop(), stop)

    @rule()
    def pass_time(self) -> None:
        """Every lease ends, whoever holds it, and every pause."""
        self.site.pass_time()

    @precondition(lambda self: any(worker.is_halted for worker in self.site.workers))
    @rule(place=st.integers(0, 2), dies=st.booleans())
    def wake_up(self, place: int, dies: bool) -> None:
        """A halted worker goes on where it stood, however late, or dies there."""
        halted = [worker for worker in self.site.workers if worker.is_halted]
        worker = halted[place % len(halted)]
        if worker.resume(dies) is Outcome.DIED:
            self.site.replace(worker)

    @precondition(lambda self: not any(worker.is_halted for worker in self.site.workers))
    @rule()
    def lose_index(self) -> None:
        """The index comes back with nothing in it."""
        empty(self.site.index_client)
        self.settling.index_was_emptied()

    @rule()
    def settle(self) -> None:
        """Everything that is not halted comes to rest: now the index must equal the registry."""
        self.settling.settle()

    @invariant()
    def published_generation_never_goes_back(self) -> None:
        """Readers see whole generations, each at least as new as the one before."""
        type(self).steps += 1
        self.settling.read()

    def _write(self, method: str, kind: type[Any], end: str, /, *beside: Any, **fields: Any) -> None:
        """Makes a change; where the registry dies in it, the caller repeats it."""
        self._requests += 1
        request = kind.model_validate({**fields, "request_id": f"r{self._requests}"})
        call = partial(getattr(self.site.registry, method), request, *beside)
        before = self.site.generation()
        failpoints.arm(end, _die)
        try:
            answer = call()
        except Crash:
            assert end != "commit" or self.site.generation() == before, "what was not committed is there"
            answer = call()
        except LorauterError:
            assert self.site.generation() == before, "a refused command made a generation"
            return
        finally:
            failpoints.arm("", _die)
        assert self.site.generation() <= before + 1, "one command made two generations"
        self.settling.note(method, request, answer)
        self._written.append((call, answer))

    def _work(self, place: int, name: str, stop: Stop | None) -> None:
        worker = self.site.workers[place]
        if worker.is_halted:
            return
        work = worker.indexer.reconcile if name == "reconcile" else worker.indexer.drain
        if worker.run(work, stop) is Outcome.DIED:
            self.site.replace(worker)


def _die() -> None:
    raise Crash
