"""Numeric match: is the last number of the answer the target's?"""

from __future__ import annotations

import re
from decimal import Decimal

from lorauter.metrics.metric import Metric
from lorauter.metrics.words import MAX_CHARACTERS

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(rf"(?:(?<![\w.])[-+\u2212])?[$€£¥]?((?:{_DIGITS})(?:[eE][-+]?\d{{1,4}}(?!\d))?)")
_ALONE = re.compile(rf"\s*{_NUMBER.pattern}\s*%?\s*")


def numeric_match(prediction: str, target: str) -> float:
    """Returns 1.0 if the last number of the answer equals the target as a decimal number, else 0.0.

    Numbers may have a sign, commas between thousands, decimals, an exponent of at most four digits, a
    currency sign before and a percent sign behind; neither sign changes the value (50 % is 50). 7, 7.0 and
    +7 are equal; nothing is rounded. Of a text with ``####`` only what follows the last one is read, as in
    GSM8K's solutions. Of either text the last 65,536 characters are read. Source: ``extract_answer`` of
    GSM8K (Cobbe et al. 2021), and the last number as in lm-evaluation-harness's ``flexible-extract``.
    """
    wanted = _target_number(target)
    said = list(_NUMBER.finditer(_answer(prediction)))
    return float(bool(said) and wanted is not None and _value(said[-1]) == wanted)


def _target_number(target: str) -> Decimal | None:
    found = _ALONE.fullmatch(_answer(target))
    return None if found is None else _value(found)


def _answer(text: str) -> str:
    return text[-MAX_CHARACTERS:].rpartition("####")[2]


def _value(found: re.Match[str]) -> Decimal:
    value = Decimal(found[1].replace(",", ""))
    # copy_negate() does not round
    return value.copy_negate() if found[0].lstrip()[0] in "-\u2212" else value


def _fault_in(target: str) -> str | None:
    if _target_number(target) is not None:
        return None
    return "it is no number; write digits and nothing else, such as 42, -3.5 or 1,200"


NUMERIC_MATCH = Metric("numeric_match", 1, of_text=numeric_match, fault_in=_fault_in)
