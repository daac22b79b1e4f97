"""Turns protobuf messages into the service's values and back, by their descriptors alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC
from functools import cache
from typing import Any, TypeVar

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import ValidationError

from lorauter_registry.domain.fields import Value, refusal

_NUMBERS = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64)

V = TypeVar("V", bound=Value)
M = TypeVar("M", bound=Message)


def to_value(message: Message, kind: type[V]) -> V:
    """Returns a request as the service takes it; an enum's value loses its type's prefix.

    Raises InvalidArgument (MISSING_FIELD, INVALID_FIELD, …).
    """
    return checked(kind, _fields(message))


def to_message(value: Value, kind: type[M]) -> M:
    """Returns an answer as a message; absent values stay unset."""
    return kind(**_prefixed(value.model_dump(exclude_none=True), kind.DESCRIPTOR))


def checked(kind: type[V], data: Any) -> V:
    """Returns the value in ``data``; raises InvalidArgument (MISSING_FIELD, INVALID_FIELD, …)."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise refusal(error) from None


def _fields(message: Message) -> dict[str, Any]:
    """Returns what is set, and the numbers that proto3 leaves out when they are 0."""
    fields = dict(_zeros(message.DESCRIPTOR))
    fields.update({field.name: _plain(field, value) for field, value in message.ListFields()})
    return fields


def _plain(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None:
        # messages one by one, as they are asked for: an import has up to 100,000
        return (_fields(one) for one in value) if field.is_repeated else _single(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return value if known is None else known.name.removeprefix(_prefix(field.enum_type))
    return tuple(value) if field.is_repeated else value


def _single(value: Message) -> Any:
    try:
        if isinstance(value, Timestamp):
            return value.ToDatetime(tzinfo=UTC)
        if isinstance(value, Duration):
            return value.ToTimedelta()
    except (ValueError, OverflowError):
        return value
    return _fields(value)


def _prefixed(data: Mapping[str, Any], descriptor: Any) -> dict[str, Any]:
    changed = dict(data)
    for field in _with_enums(descriptor):
        value = changed.get(field.name)
        if value is None:
            continue
        if field.enum_type is not None:
            changed[field.name] = _prefix(field.enum_type) + value
        elif field.is_repeated:
            changed[field.name] = [_prefixed(item, field.message_type) for item in value]
        else:
            changed[field.name] = _prefixed(value, field.message_type)
    return changed


@cache
def _zeros(descriptor: Descriptor) -> Mapping[str, int | float]:
    return {
        field.name: field.default_value
        for field in descriptor.fields
        if field.cpp_type in _NUMBERS and not (field.is_repeated or field.has_presence)
    }


@cache
def _with_enums(descriptor: Descriptor) -> tuple[FieldDescriptor, ...]:
    return tuple(
        field
        for field in descriptor.fields
        if field.enum_type is not None or (field.message_type is not None and _with_enums(field.message_type))
    )


@cache
def _prefix(enum: EnumDescriptor) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper() + "_"
