"""The metrics by name: those that are built in, those that a program registers, those of plug-ins."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points

from lorauter.errors import AlreadyExists, InvalidArgument, UnprocessableRequest
from lorauter.metrics.choice_accuracy import CHOICE_ACCURACY
from lorauter.metrics.exact_match import EXACT_MATCH
from lorauter.metrics.json_match import JSON_MATCH
from lorauter.metrics.likelihood import LIKELIHOOD
from lorauter.metrics.metric import Metric
from lorauter.metrics.numeric_match import NUMERIC_MATCH
from lorauter.metrics.rouge import ROUGE_1, ROUGE_2, ROUGE_L
from lorauter.metrics.token_f1 import TOKEN_F1
from lorauter.metrics.translation import BLEU_METRIC, CHRF_METRIC

GROUP = "lorauter.metrics"
"""The entry points under which an installed distribution offers metrics: ``name = "module:METRIC"``."""

_BUILT_IN = (
    *(EXACT_MATCH, CHOICE_ACCURACY, NUMERIC_MATCH, JSON_MATCH, TOKEN_F1),
    *(ROUGE_1, ROUGE_2, ROUGE_L, BLEU_METRIC, CHRF_METRIC),
    LIKELIHOOD,
)
_known = {metric.name: metric for metric in _BUILT_IN}

METRIC_NAMES = tuple(sorted(_known))
"""The names of the metrics that are built in; metric_names() has the added ones too."""


def metric(name: str) -> Metric:
    """Returns a metric.

    Raises InvalidArgument (UNKNOWN_METRIC) with the known names, or UnprocessableRequest (METRIC_CLASH,
    BROKEN_METRIC) if two metrics have this name or its plug-in does not load. Others stay usable.
    """
    known, offers = _known.get(name), _offers().get(name, ())
    if len(offers) + (known is not None) > 1:
        raise _clash(name, known, offers)
    if known is not None:
        return known
    if not offers:
        raise InvalidArgument(
            "UNKNOWN_METRIC",
            f"metric {name[:80]!r} is not known: use one of {', '.join(metric_names())}",
            field="metric",
        )
    return _loaded(offers[0])


def metric_names() -> tuple[str, ...]:
    """Returns the names that a task's metric may have, in order; no plug-in is loaded for it."""
    return tuple(sorted({*_known, *_offers()}))


def register(added: Metric) -> None:
    """Makes a metric known to this process; raises AlreadyExists (METRIC_EXISTS) if its name is taken.

    Registry and worker both need it. Services find metrics by entry points of the group ``GROUP``; this
    is for programs of your own.
    """
    if added.name in metric_names():
        raise AlreadyExists(
            "METRIC_EXISTS", f"there is a metric {added.name!r}: choose another name", metric=added.name
        )
    _known[added.name] = added


@cache
def _offers() -> dict[str, tuple[EntryPoint, ...]]:
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for entry in entry_points(group=GROUP):
        found[entry.name] = (*found.get(entry.name, ()), entry)
    return found


@cache
def _loaded(entry: EntryPoint) -> Metric:
    try:
        value = entry.load()
    except Exception as error:
        raise _broken(entry, f"does not load: {type(error).__name__}: {error}"[:400]) from error
    if not isinstance(value, Metric):
        raise _broken(entry, f"is a {type(value).__name__} and no lorauter.metrics.Metric")
    if value.name != entry.name:
        raise _broken(entry, f"calls itself {value.name!r}: use the same name in both places")
    return value


def _place(entry: EntryPoint) -> str:
    owner = entry.dist.name if entry.dist is not None else "an unknown distribution"
    return f"{owner} ({entry.value})"


def _broken(entry: EntryPoint, problem: str) -> UnprocessableRequest:
    return UnprocessableRequest(
        "BROKEN_METRIC",
        f"metric {entry.name!r} of {_place(entry)} {problem}; repair or uninstall it, or use another metric",
        metric=entry.name,
    )


def _clash(name: str, known: Metric | None, offers: tuple[EntryPoint, ...]) -> UnprocessableRequest:
    places = [*(["lorauter itself"] if known else []), *map(_place, offers)]
    return UnprocessableRequest(
        "METRIC_CLASH",
        f"metric {name!r} is offered by {' and by '.join(places)}: rename or uninstall all but one",
        metric=name,
    )
