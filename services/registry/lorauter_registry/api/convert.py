"""Turns protobuf messages into the service's values and back, by their descriptors alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message
from pydantic import ValidationError

from lorauter.errors import InvalidArgument
from lorauter_registry.domain.fields import Value

V = TypeVar("V", bound=Value)
M = TypeVar("M", bound=Message)
Rename = Callable[[EnumDescriptor, str], str]


def to_value(message: Message, kind: type[V]) -> V:
    """Returns a request as the service takes it; an enum's value loses its type's prefix.

    Raises InvalidArgument (MISSING_FIELD, INVALID_FIELD, …).
    """
    try:
        data = json_format.MessageToDict(message, preserving_proto_field_name=True)
    except json_format.Error as error:
        raise InvalidArgument("INVALID_FIELD", f"the request cannot be read: {error}") from None
    return checked(kind, _renamed(data, message.DESCRIPTOR, _without_prefix))


def to_message(value: Value, kind: type[M]) -> M:
    """Returns an answer as a message; absent values stay unset."""
    data = value.model_dump(mode="json", exclude_none=True)
    return json_format.ParseDict(_renamed(data, kind.DESCRIPTOR, _with_prefix), kind())


def checked(kind: type[V], data: Any) -> V:
    """Returns the value in ``data``; raises InvalidArgument (MISSING_FIELD, INVALID_FIELD, …)."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in problem["loc"])
        reason = "MISSING_FIELD" if problem["type"] == "missing" else "INVALID_FIELD"
        raise InvalidArgument(reason, f"{field or 'request'}: {problem['msg']}", field=field) from None


def _renamed(data: Any, descriptor: Any, rename: Rename) -> Any:
    changed = dict(data)
    for field in descriptor.fields:
        value = changed.get(field.name)
        if value is None or (field.message_type is not None and field.message_type.GetOptions().map_entry):
            continue
        if field.enum_type is not None:
            changed[field.name] = rename(field.enum_type, value) if isinstance(value, str) else value
        elif field.message_type is not None and isinstance(value, list):
            changed[field.name] = [_renamed(item, field.message_type, rename) for item in value]
        elif field.message_type is not None and isinstance(value, dict):
            changed[field.name] = _renamed(value, field.message_type, rename)
    return changed


def _prefix(enum: EnumDescriptor) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper() + "_"


def _without_prefix(enum: EnumDescriptor, name: str) -> str:
    return name.removeprefix(_prefix(enum))


def _with_prefix(enum: EnumDescriptor, name: str) -> str:
    return _prefix(enum) + name
