"""JSON match: is the answer JSON, and the same value as the target?"""

from __future__ import annotations

import json
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn

from lorauter.metrics.metric import Metric
from lorauter.metrics.words import MAX_CHARACTERS

MAX_DEPTH = 64
"""How many arrays and objects may be inside one another; what is deeper is not read."""


def json_match(prediction: str, target: str) -> float:
    """Returns 1.0 if the whole answer is JSON and equals the target as a JSON value, else 0.0.

    White space and one Markdown fence around the answer are passed over. The order of an object's members
    is of no matter; of members with one name the last counts; numbers are equal if their values are (1 and
    1.0), and never equal ``true``. NaN and Infinity are not JSON. What is deeper than 64 or longer than
    65,536 characters does not match. Source: RFC 8259; equality of JSON Schema 2020-12, section 4.2.2.
    """
    try:
        return float(_same(_read(prediction), _read(target)))
    except ValueError:
        return 0.0


def _read(text: str) -> Any:
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"it is over {MAX_CHARACTERS} characters")
    try:
        value = json.loads(
            _unfenced(text.strip()), parse_int=Decimal, parse_float=Decimal, parse_constant=_refuse
        )
    except InvalidOperation:
        raise ValueError("a number is out of range") from None
    except RecursionError:
        raise ValueError(f"it is deeper than {MAX_DEPTH}") from None
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in _children(node)]
    if any(isinstance(node, (dict, list)) for node in level):
        raise ValueError(f"it is deeper than {MAX_DEPTH}")
    return value


def _unfenced(text: str) -> str:
    first, line_end, rest = text.partition("\n")
    if line_end and first.strip().lower() in ("```", "```json") and rest.endswith("```"):
        return rest.removesuffix("```")
    return text


def _children(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return list(node.values())
    return node if isinstance(node, list) else []


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(left[name], right[name]) for name in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_same, left, right))
    return type(left) is type(right) and bool(left == right)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _fault_in(target: str) -> str | None:
    try:
        _read(target)
    except ValueError as error:
        return f'it is not JSON ({error}); write a value such as {{"city": "Paris"}}, texts in double quotes'
    return None


JSON_MATCH = Metric("json_match", 1, of_text=json_match, fault_in=_fault_in)
