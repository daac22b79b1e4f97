"""Every text and list of a request has a limit: what is at it is served, what is beyond refused by name."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from tests.security.asking import METHODS, Outcome, ask, call, filled
from tests.security.tenancy import OURS, QUERY, Stage
from tests.security.tenant_cases import GATEWAY, REST, RPCS

pytestmark = pytest.mark.asyncio(loop_scope="module")

Way = tuple[str, ...]
"""Names of fields, from a request to one of its parts."""

LONG, LONGER, MANY, MANY_MESSAGES = 70_000, 1_100_000, 10_001, 1_001
LARGE = {"query", "prompt"}
"""What may be as long as a query."""
BY_SIZE = {"messages", "data", "affinities", "modules"}
"""What only the size of its message limits, or which has a limit so high that trying it takes seconds."""
UNREAD = {f"{rpc}.routing.{name}" for rpc in ("Generate", "GenerateStream") for name in ("query", "pool")}
ELEMENTS: dict[str, dict[str, object]] = {
    "examples": {"input": "a", "target": "b"},
    "requests": {"query": "x"},
    "queries": {"vector": "A" * 1024},
}
SAID = {"prompt": "query"}
NUMBERS = itertools.count()


def parts_of(message: Descriptor, before: Way = ()) -> Iterator[tuple[Way, FieldDescriptor]]:
    """Yields a request's fields, those of the messages in it too, with the way to them."""
    for field in message.fields:
        way = (*before, field.name)
        yield way, field
        inner = field.message_type
        if inner is not None and not field.is_repeated and inner.file.package.startswith("lorauter."):
            yield from parts_of(inner, way)


FIELDS = {
    f"{rpc}.{'.'.join(way)}": (rpc, way, field)
    for rpc, (_, method) in METHODS.items()
    for way, field in parts_of(method.input_type)
}
UNBOUNDED = [
    name
    for name, (_, way, field) in FIELDS.items()
    if (field.is_repeated or field.cpp_type == FieldDescriptor.CPPTYPE_STRING)
    and way[-1] not in BY_SIZE
    and name not in UNREAD
]
"""Fields whose type bounds nothing."""
PAGE = Path(__file__).parents[2] / "docs" / "limits.md"
DOCUMENTED = re.findall(r"^\| `(\w+\.[\w.]+)` \| (\d+) \| `(\w+)` \|$", PAGE.read_text(), re.MULTILINE)


def amount(name: str, field: FieldDescriptor, count: int) -> object:
    """Returns a value of a field that counts ``count``."""
    inner = field.message_type
    if inner is not None and inner.GetOptions().map_entry:
        return {f"x{number}": 1 for number in range(count)}
    if field.is_repeated:
        return [f"x{number}" if inner is None else ELEMENTS[field.name] for number in range(count)]
    if inner is not None:
        return f"{count}s"
    return "x" * count if field.cpp_type == FieldDescriptor.CPPTYPE_STRING else count


async def ask_with(stage: Stage, name: str, count: int) -> Outcome:
    """Makes a good call, but for one field that counts ``count``."""
    rpc, way, field = FIELDS[name]
    fields = filled(RPCS[rpc][0], stage.names[OURS])
    if rpc.startswith("Create") and "id" in fields:
        fields["id"] = f"new-{next(NUMBERS)}"
    if rpc == "RegisterBackend":
        fields["kind"] = "BACKEND_KIND_ENGINE"
    if name.endswith("prompt.system"):
        fields["prompt"] = {"format": "PROMPT_FORMAT_CHAT"}
    at = next((one for one in fields["pieces"] if way[0] in one), {}) if "pieces" in fields else fields
    if "pieces" in fields and not at:
        fields["pieces"].insert(0, at)
    message = METHODS[rpc][1].input_type
    for part in way:
        described = message.fields_by_name[part]
        if described.containing_oneof is not None:
            for other in described.containing_oneof.fields:
                if other.name != part:
                    at.pop(other.name, None)
        if part == way[-1]:
            at[part] = amount(name, field, count)
        else:
            at, message = at.setdefault(part, {}), described.message_type
    return await call(stage, rpc, fields, stage.keys[OURS])


@pytest.mark.parametrize("name", UNBOUNDED)
async def test_field_that_is_much_too_long_is_refused_by_name(stage: Stage, name: str) -> None:
    _, way, field = FIELDS[name]
    many = MANY_MESSAGES if field.name in ELEMENTS else MANY
    answer = await ask_with(stage, name, many if field.is_repeated else LONGER if way[-1] in LARGE else LONG)
    assert answer.reason not in ("OK", "INTERNAL", "UNKNOWN"), answer.said[:200]
    assert SAID.get(way[-1], way[-1].split("_")[0]) in answer.said
    assert len(answer.said) < 4_000, "a refusal as long as what it refuses"


@pytest.mark.parametrize(("name", "most", "reason"), DOCUMENTED)
async def test_documented_limit_is_the_limit(stage: Stage, name: str, most: str, reason: str) -> None:
    served = await ask_with(stage, name, int(most))
    beyond = await ask_with(stage, name, int(most) + 1)
    assert served.reason != reason, served.said[:200]
    assert beyond.reason == reason, beyond.said[:200]


WRITTEN = [
    (service, method, path)
    for service, table in (("registry", REST), ("gateway", GATEWAY))
    for method, path in table
    if method in ("POST", "PUT", "PATCH")
]


@pytest.mark.parametrize(("service", "method", "path"), WRITTEN)
@pytest.mark.parametrize("body", ["[" * 100_000, '{"a":' * 100_000, '{"messages":' + "[" * 100_000])
async def test_body_that_is_nested_too_deep_is_refused(
    stage: Stage, service: str, method: str, path: str, body: str
) -> None:
    http = stage.rest if service == "registry" else stage.http
    to = re.sub(r"\{\w+\}", "alpha-task", path)
    answer = await ask(http, method, to, stage.keys[OURS], body, content_type="application/json")
    assert 400 <= answer.status < 500, answer.said[:200]
    assert QUERY not in answer.said
