"""Validation sets on their way in: every example is checked where it stands, and the whole is bounded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from lorauter.errors import InvalidArgument, PayloadTooLarge

MAX_EXAMPLES = 100_000
MAX_EXAMPLE_CHARACTERS = 65_536
"""Of the input, and of the target."""

MAX_CHUNK_EXAMPLES = 1_000
MAX_LINE_BYTES = 2 * MAX_EXAMPLE_CHARACTERS * 6 + 1_024
"""A line of JSONL whose texts are as long as allowed, every character escaped."""


class ExampleSet:
    """Examples that passed, in their order, with the digest of all of them."""

    def __init__(self, max_bytes: int) -> None:
        self.rows: list[tuple[str, str]] = []
        self._max_bytes = max_bytes
        self._bytes = 0
        self._hash = hashlib.sha256()

    def add(self, example_input: Any, target: Any, line: int | None = None) -> None:
        """Takes one example.

        Raises InvalidArgument (INVALID_EXAMPLE, TOO_MANY_EXAMPLES) or PayloadTooLarge
        (VALIDATION_SET_TOO_LARGE), with the metadata ``line``, counted from 1.
        """
        line = line or len(self.rows) + 1
        data = [_checked(value, name, line) for name, value in (("input", example_input), ("target", target))]
        if not example_input.strip():
            raise invalid_example("input is empty", line)
        if len(self.rows) >= MAX_EXAMPLES:
            raise InvalidArgument(
                "TOO_MANY_EXAMPLES", f"line {line}: a validation set has at most {MAX_EXAMPLES} examples"
            )
        for text in data:
            self._bytes += len(text)
            self._hash.update(len(text).to_bytes(8, "big") + text)
        if self._bytes > self._max_bytes:
            raise PayloadTooLarge(
                "VALIDATION_SET_TOO_LARGE",
                f"line {line}: the validation set is over {self._max_bytes} bytes: send fewer examples",
                line=str(line),
            )
        self.rows.append((example_input, target))

    def extend(self, examples: Iterable[tuple[str, str]]) -> None:
        """Takes several examples; see add()."""
        for example_input, target in examples:
            self.add(example_input, target)

    @property
    def digest(self) -> str:
        """``sha256:`` and 64 hex digits of the examples in their order."""
        return f"sha256:{self._hash.hexdigest()}"

    def complete(self) -> ExampleSet:
        """Returns the set if it has an example, else raises InvalidArgument (EMPTY_VALIDATION_SET)."""
        if not self.rows:
            raise InvalidArgument(
                "EMPTY_VALIDATION_SET", 'no examples came: send lines such as {"input": "2+2", "target": "4"}'
            )
        return self


class JsonLines:
    """Reads ``{"input": …, "target": …}`` a line, from pieces that may end anywhere.

    Other keys and empty lines are passed over.
    """

    def __init__(self, examples: ExampleSet) -> None:
        self.examples = examples
        self._rest = b""
        self._line = 0

    def feed(self, piece: bytes) -> None:
        """Takes a piece; raises InvalidArgument (MALFORMED_JSON, INVALID_EXAMPLE, …) naming the line."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            self._take(line)
        if len(self._rest) > MAX_LINE_BYTES:
            raise invalid_example(f"the line is over {MAX_LINE_BYTES} bytes", self._line + 1)

    def finish(self) -> ExampleSet:
        """Takes what is left and returns the set; raises as feed() and ExampleSet.complete()."""
        self._take(self._rest)
        self._rest = b""
        return self.examples.complete()

    def _take(self, data: bytes) -> None:
        self._line += 1
        if not data.strip():
            return
        try:
            value = json.loads(data.decode("utf-8-sig" if self._line == 1 else "utf-8"))
        except UnicodeDecodeError:
            raise _malformed(self._line, "is not UTF-8") from None
        except (ValueError, RecursionError):
            raise _malformed(self._line, "is not JSON") from None
        if not isinstance(value, dict):
            raise invalid_example("the line is not an object with input and target", self._line)
        for name in ("input", "target"):
            if name not in value:
                raise invalid_example(f"{name} is missing", self._line, "MISSING_FIELD")
        self.examples.add(value["input"], value["target"], self._line)


def invalid_example(problem: str, line: int, reason: str = "INVALID_EXAMPLE") -> InvalidArgument:
    """Returns the error for an example, which says where it stands."""
    return InvalidArgument(
        reason,
        f"line {line}: {problem}; nothing was stored: correct the line and send all again",
        line=str(line),
    )


def _malformed(line: int, problem: str) -> InvalidArgument:
    return InvalidArgument(
        "MALFORMED_JSON",
        f'line {line} {problem}: each line is {{"input": "…", "target": "…"}}; nothing was stored',
        line=str(line),
    )


def _checked(value: Any, name: str, line: int) -> bytes:
    if not isinstance(value, str):
        raise invalid_example(f"{name} is not a text", line)
    if not value:
        raise invalid_example(f"{name} is empty", line)
    if len(value) > MAX_EXAMPLE_CHARACTERS:
        raise invalid_example(f"{name} is over {MAX_EXAMPLE_CHARACTERS} characters", line)
    if "\x00" in value:
        raise invalid_example(f"{name} holds the character U+0000", line)
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise invalid_example(f"{name} holds half a surrogate pair", line) from None
