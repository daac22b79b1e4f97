"""What a metric is: a name, a version, and how a score comes from an answer or from one forward pass."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from lorauter.errors import FailedPrecondition, InvalidArgument, LorauterError, UnprocessableRequest

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,62}")


def _reads_every(target: str) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric. All scores are in 0..1, and 1 is best.

    ``of_text(prediction, target)`` scores a generated text; None if only a forward pass can tell.
    ``of_pass(exact, likelihood)`` scores a teacher-forced forward pass over the target: ``exact`` says that
    every argmax is the target's token and the end follows it, ``likelihood`` is the mean log-likelihood of
    the target's tokens (nats, at most 0); None if an answer must be generated. One of both is there.
    ``fault_in(target)`` says in words what keeps the metric from reading a target, or None.

    Who changes what a metric returns raises ``version``, so that measured scores stay comparable.
    Raises ValueError for a name that is none, a version below 1, or a metric that scores nothing.
    """

    name: str
    version: int
    of_text: Callable[[str, str], float] | None = None
    of_pass: Callable[[bool, float], float] | None = None
    fault_in: Callable[[str], str | None] = _reads_every

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"metric name {self.name[:80]!r}: use a letter, then at most 62 letters, digits, _ and -"
            )
        if self.version < 1:
            raise ValueError(f"metric {self.name!r}: version {self.version} is below 1")
        if self.of_text is None and self.of_pass is None:
            raise ValueError(f"metric {self.name!r}: give of_text, of_pass or both")

    @property
    def needs_generation(self) -> bool:
        """Whether an answer must be generated; else one forward pass over the target decides."""
        return self.of_pass is None

    @property
    def reads_text(self) -> bool:
        """Whether a generated answer can be scored; else only a forward pass can."""
        return self.of_text is not None

    def score(self, prediction: str, target: str) -> float:
        """Returns the score of a generated answer.

        Raises FailedPrecondition (METRIC_READS_NO_TEXT) where ``reads_text`` is False, and
        UnprocessableRequest (BROKEN_METRIC) when the metric fails or returns no score in 0..1.
        """
        if self.of_text is None:
            raise FailedPrecondition(
                "METRIC_READS_NO_TEXT",
                f"metric {self.name!r} scores no generated text: use a backend that tells likelihoods, "
                "such as the engine",
                metric=self.name,
            )
        return self._in_range(self._run(self.of_text, prediction, target))

    def from_pass(self, exact: bool, likelihood: float) -> float:
        """Returns the score that one forward pass over the target tells; see the class.

        ``likelihood`` may be NaN where the metric does not use it. Raises FailedPrecondition
        (METRIC_NEEDS_GENERATION, NO_LIKELIHOOD), and UnprocessableRequest (BROKEN_METRIC) as score().
        """
        if self.of_pass is None:
            raise FailedPrecondition(
                "METRIC_NEEDS_GENERATION",
                f"metric {self.name!r} scores generated text only: have the answer generated",
                metric=self.name,
            )
        return self._in_range(self._run(self.of_pass, exact, likelihood))

    def check_target(self, target: str) -> None:
        """Raises InvalidArgument (UNREADABLE_TARGET) if the metric cannot read a target.

        Raises UnprocessableRequest (BROKEN_METRIC) when the metric fails.
        """
        fault = self._run(self.fault_in, target)
        if fault is not None:
            raise InvalidArgument(
                "UNREADABLE_TARGET",
                f"metric {self.name!r} cannot read the target {shown(target)}: {fault}",
                metric=self.name,
            )

    def _run(self, compute: Callable[..., T], *args: object) -> T:
        try:
            return compute(*args)
        except LorauterError:
            raise
        except Exception as error:
            raise self._broken(f"failed with {type(error).__name__}: {error}") from error

    def _in_range(self, value: float) -> float:
        if not (isinstance(value, (int, float)) and 0 <= value <= 1):
            raise self._broken(f"returned {value!r}, which is no score in 0..1")
        return float(value)

    def _broken(self, problem: str) -> UnprocessableRequest:
        return UnprocessableRequest(
            "BROKEN_METRIC",
            f"metric {self.name!r} version {self.version} {problem[:400]}: repair it, or use another metric",
            metric=self.name,
        )


def shown(text: str) -> str:
    """Returns a text quoted, and cut if it is long, for a message."""
    return repr(text if len(text) <= 60 else text[:60] + "…")
