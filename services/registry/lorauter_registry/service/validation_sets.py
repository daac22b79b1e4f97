"""Validation sets: replaced as a whole, read in pages."""

from __future__ import annotations

from itertools import accumulate

from sqlalchemy import func
from sqlmodel import Session, col, select

from lorauter.store import Write, tables
from lorauter_registry.domain.answers import ValidationExampleList
from lorauter_registry.domain.examples import ExampleSet
from lorauter_registry.domain.pages import decode_token, encode_token
from lorauter_registry.domain.requests import ListValidationExamples, PutValidationSet
from lorauter_registry.domain.resources import Task, ValidationExample
from lorauter_registry.service.base import check_etag, touch
from lorauter_registry.service.lists import MAX_PAGE_BYTES, scope_of
from lorauter_registry.service.tasks import Tasks, check_targets, digest_of


class ValidationSets(Tasks):
    """Tasks with their validation sets."""

    def put_validation_set(self, request: PutValidationSet, examples: ExampleSet) -> Task:
        """Replaces a task's validation set as a whole and makes a new version.

        The set that the task has already makes no new version and no generation. Raises NotFound
        (TASK_NOT_FOUND), Conflict (ETAG_MISMATCH), or InvalidArgument (EMPTY_VALIDATION_SET, or
        UNREADABLE_TARGET and others of check_targets()); then nothing changes.
        """
        examples.complete()

        def change(tx: Write) -> Task:
            row = self.existing(tx.session, tables.Task, "task", request.task_id, lock=True)
            check_etag(row, request.etag)
            key = (self.tenant, row.id, row.version)
            current = tx.session.get(tables.TaskVersion, key) if row.version else None
            if current is not None and current.examples_digest == examples.digest:
                tx.withdraw()
                return self.measured(tx.session, [row])[0]
            check_targets(row.metric, (target for _, target in examples.rows))
            self._replace(tx, row, examples)
            touch(row, tx)
            tx.owe("index", row.pool)
            return self.measured(tx.session, [row])[0]

        return self.changing(request, Task, change, content=examples.digest)

    def list_validation_examples(self, request: ListValidationExamples) -> ValidationExampleList:
        """Lists the examples of a task's version in their order; all pages are of one version.

        Raises NotFound (TASK_NOT_FOUND, TASK_VERSION_NOT_FOUND) or InvalidArgument (INVALID_PAGE_TOKEN).
        """
        scope = scope_of(self.tenant, request)
        version, after = request.version, -1
        if request.page_token:
            version, after = decode_token(scope, request.page_token, [int, int])
        with self.reading() as session:
            task = self.existing(session, tables.Task, "task", request.task_id)
            version = version or task.version
            if version == 0:
                return ValidationExampleList(examples=(), version=0)
            known = self.existing(session, tables.TaskVersion, "task version", (task.id, version))
            rows = self._page(session, known, after, request.limit)
        more = bool(rows) and rows[-1].position + 1 < known.example_count
        return ValidationExampleList(
            examples=tuple(ValidationExample(input=row.input, target=row.target) for row in rows),
            version=version,
            next_page_token=encode_token(scope, [version, rows[-1].position]) if more else "",
        )

    def _page(
        self, session: Session, known: tables.TaskVersion, after: int, limit: int
    ) -> list[tables.ValidationExample]:
        example = tables.ValidationExample
        at = (
            example.tenant == self.tenant,
            example.task_id == known.task_id,
            example.version == known.examples_version,
            example.position > after,
        )
        # Sizes first: a thousand of the longest examples would be half a gigabyte.
        size = func.octet_length(example.input) + func.octet_length(example.target)
        sizes = session.exec(select(size).where(*at).order_by(col(example.position)).limit(limit)).all()
        fitting = max(1, sum(total <= MAX_PAGE_BYTES for total in accumulate(sizes)))
        statement = select(example).where(*at).order_by(col(example.position)).limit(fitting)
        return list(session.exec(statement).all())

    def _replace(self, tx: Write, row: tables.Task, examples: ExampleSet) -> None:
        row.version += 1
        row.example_count = len(examples.rows)
        row.state = "REGISTERED"
        tx.session.add(
            tables.TaskVersion(
                tenant=self.tenant,
                task_id=row.id,
                version=row.version,
                metric=row.metric,
                prompt_digest=digest_of(row),
                examples_version=row.version,
                examples_digest=examples.digest,
                example_count=row.example_count,
                create_time=tx.now,
            )
        )
        self._copy(tx, row, examples)

    def _copy(self, tx: Write, row: tables.Task, examples: ExampleSet) -> None:
        connection = tx.session.connection().connection.driver_connection
        assert connection is not None
        statement = "COPY validation_example (tenant, task_id, version, position, input, target) FROM STDIN"
        with connection.cursor() as cursor, cursor.copy(statement) as copy:
            for position, (example_input, target) in enumerate(examples.rows):
                copy.write_row((self.tenant, row.id, row.version, position, example_input, target))
