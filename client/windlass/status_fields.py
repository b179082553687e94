"""The scheduler's messages as plain data, for `cluster.status()` and `windlass status --json`.

Every field is there under its name, set or not. Protobuf's own JSON writes 64-bit numbers as strings and enums with
their prefix, which a reader would have to undo: here numbers are numbers, an enum's value is its last word in lower
case ("server"), bytes are hexadecimal, and an update rule is what its spec prints.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from google.protobuf.descriptor import FieldDescriptor

from windlass_proto import rule_specs

if TYPE_CHECKING:
    from google.protobuf.message import Message


def fields_of(message: Message) -> dict[str, Any]:
    """The fields of `message` by name; a message that is not set is None."""
    return {field.name: _value(message, cast("FieldDescriptor", field)) for field in message.DESCRIPTOR.fields}


def _value(message: Message, field: FieldDescriptor) -> Any:
    value = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return dict(value)
    if field.is_repeated:
        return [_plain(element, field) for element in value]
    if field.message_type is not None and not message.HasField(field.name):
        return None
    return _plain(value, field)


def _plain(value: Any, field: FieldDescriptor) -> Any:
    if field.message_type is not None:
        return fields_of(value)
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name.rpartition("_")[2].lower()
    if field.type == FieldDescriptor.TYPE_BYTES:
        return repr(rule_specs.from_bytes_untrusted(value)) if field.name == "rule" and value else value.hex()
    return value
