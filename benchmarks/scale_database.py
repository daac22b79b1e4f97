"""What PostgreSQL holds, and what a change makes the worker read of it, at several sizes of a registry."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine, text
from sqlmodel import Session

from lorauter.store import create_engine, read
from lorauter.store.migrate import migrate
from lorauter_suite.embedded.ports import free_port
from lorauter_suite.embedded.postgres import EmbeddedPostgres
from lorauter_suite.embedded.process import running
from lorauter_worker.service.lacking import read_arms, read_lacking
from lorauter_worker.service.state import read_state

TENANT, POOL = "scale", "p"
EXAMPLES = 20
READS = 3
"""Reads of the state, of which the quickest counts: the first ones fill PostgreSQL's memory."""

MEASURED_EXAMPLES = 3
"""Examples that stand behind an average affinity: what the default strategy asks of a large pool."""

TABLES = ("validation_example", "cached_embedding", "adapter_version", "affinity", "measurement", "task")

_FILL = (
    "INSERT INTO generation (tenant, value) VALUES ('scale', 1)",
    """INSERT INTO pool (tenant, id, description, base_model, base_revision, weights_digest, tokenizer_digest,
        aliases, modules, chat_format, untypical_policy, serving, pinned_profile, revision, generation)
       VALUES ('scale', 'p', '', 'm', '', '', '', '[]', '{}', '{}', 'ROUTE', '{}', '', 1, 1)""",
    """INSERT INTO task (tenant, id, pool, description, metric, prompt, generation_settings, tags, version,
        example_count, state, revision, generation)
       SELECT 'scale', 't' || t, 'p', '', 'exact_match', '{}', '{}', '[]', 1, :examples, 'MATCHED', 1, 1
       FROM generate_series(1, :tasks) AS t""",
    """INSERT INTO task_version (tenant, task_id, version, metric, prompt_digest, examples_version,
        examples_digest, example_count)
       SELECT 'scale', 't' || t, 1, 'exact_match', 'sha256:' || repeat('0', 64), 1,
        'sha256:' || repeat('0', 64), :examples FROM generate_series(1, :tasks) AS t""",
    """INSERT INTO validation_example (tenant, task_id, version, position, input, target)
       SELECT 'scale', 't' || t, 1, e, repeat(md5(t || ' ' || e), 10), 'yes'
       FROM generate_series(1, :tasks) AS t, generate_series(0, :examples - 1) AS e""",
    """INSERT INTO cached_embedding (tenant, encoder_digest, text_digest, vector)
       SELECT 'scale', 'sha256:' || repeat('0', 64), md5(t || ' ' || e) || md5(e || ' ' || t),
        (SELECT decode(string_agg(md5(t || ' ' || e || ' ' || n), ''), 'hex')
         FROM generate_series(1, 96) AS n)
       FROM generate_series(1, :tasks) AS t, generate_series(0, :examples - 1) AS e""",
    """INSERT INTO adapter (tenant, id, pool, description, tags, aliases, latest_version, revision,
        generation)
       SELECT 'scale', 'a' || a, 'p', '', '[]', '{}', 1, 1, 1 FROM generate_series(1, :adapters) AS a""",
    """INSERT INTO adapter_version (tenant, adapter_id, version, digest, source, base_model, base_assumed,
        rank, alpha, rslora, target_modules, size_bytes, state, state_reason, successor)
       SELECT 'scale', 'a' || a, 1, 'sha256:' || md5('x' || a) || md5('y' || a), 'path:/adapters/a' || a, 'm',
        false, 16, 32, false, '["q_proj", "v_proj"]', 1, 'ACTIVE', '', ''
       FROM generate_series(1, :adapters) AS a""",
    """INSERT INTO affinity (tenant, task_id, task_version, adapter_id, adapter_version, metric,
        metric_version, prompt_digest, score, count, standard_error, round, imported, shrunk_score, eligible,
        judged_count, lift_error, place)
       SELECT 'scale', 't' || t, 1, CASE a WHEN 0 THEN 'base' ELSE 'a' || a END, least(a, 1), 'exact_match',
        1, 'sha256:' || repeat('0', 64), random(), :measured, 0.1, 1, false, random(), a > 0, 0, 0, 0
       FROM generate_series(1, :tasks) AS t, generate_series(0, :adapters) AS a""",
    """INSERT INTO measurement (tenant, task_id, digest, metric, metric_version, prompt_digest, keys, scores,
        likelihoods)
       SELECT 'scale', 't' || t, 'sha256:' || md5('x' || a) || md5('y' || a), 'exact_match', 1,
        'sha256:' || repeat('0', 64), array_fill(t::bigint, ARRAY[:measured]),
        array_fill(0.5::float8, ARRAY[:measured]), array_fill(-0.5::float8, ARRAY[:measured])
       FROM generate_series(1, :tasks) AS t, generate_series(1, :adapters) AS a""",
    "ANALYZE",
)

Figures = dict[str, float]


def of_registries(sizes: list[tuple[int, int]]) -> dict[str, Figures]:
    """Returns by "tasks x adapters", all adapters measured on all tasks: rows and bytes by table.

    ``state_seconds`` is what the worker's read of the whole state takes, once a change; ``lacking_seconds``
    its look for what is not measured. PostgreSQL runs with its defaults on the disk of this machine.
    """
    found = {}
    with _server() as server:
        for number, (tasks, adapters) in enumerate(sizes):
            engine = _filled(server, f"scale_{number}", tasks, adapters)
            try:
                found[f"{tasks} x {adapters}"] = _measured(engine)
            finally:
                engine.dispose()
    return found


@contextmanager
def _server() -> Iterator[EmbeddedPostgres]:
    with tempfile.TemporaryDirectory(prefix="lorauter-scale-") as folder:
        server = EmbeddedPostgres(Path(folder), free_port(), {"fsync": "off", "synchronous_commit": "off"})
        with running(server.process()):
            yield server


def _filled(server: EmbeddedPostgres, database: str, tasks: int, adapters: int) -> Engine:
    administrator = create_engine(server.url("postgres"), pool_size=1)
    with administrator.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(text(f'CREATE DATABASE "{database}"'))
    administrator.dispose()
    migrate(server.url(database))
    engine = create_engine(server.url(database), pool_size=1)
    values = {"tasks": tasks, "adapters": adapters, "examples": EXAMPLES, "measured": MEASURED_EXAMPLES}
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        for statement in _FILL:
            used = {name: value for name, value in values.items() if f":{name}" in statement}
            connection.execute(text(statement), used)
    return engine


def _measured(engine: Engine) -> Figures:
    figures: Figures = {}
    with engine.connect() as connection:
        for table in TABLES:
            sized = text("SELECT pg_total_relation_size(CAST(:table AS regclass))")
            figures[f"{table}_bytes"] = float(connection.execute(sized, {"table": table}).scalar_one())
            counted = connection.execute(text(f'SELECT count(*) FROM "{table}"'))  # noqa: S608 - of TABLES
            figures[f"{table}_rows"] = float(counted.scalar_one())
    figures["state_seconds"] = min(_seconds(lambda: _read_state(engine)) for _ in range(READS))
    with Session(engine) as session:
        arms = read_arms(session, TENANT, POOL)
        figures["lacking_seconds"] = _seconds(lambda: read_lacking(session, TENANT, POOL, arms))
    return figures


def _read_state(engine: Engine) -> None:
    with read(engine) as session:
        read_state(session, TENANT)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
