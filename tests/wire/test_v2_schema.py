"""Our definitions of the messages are those that NVIDIA's client was generated from."""

from typing import Any

import pytest
from google.protobuf import descriptor_pb2
from tritonclient.grpc import model_config_pb2, service_pb2

from flatshare.wire.v2_schema import MESSAGES

_KIND = descriptor_pb2.FieldDescriptorProto


def theirs(name: str) -> Any:
    return getattr(service_pb2, name, None) or getattr(model_config_pb2, name)


def fields(message: Any) -> dict[str, tuple[object, ...]]:
    """What a field is on the wire, and what it is called."""
    described = descriptor_pb2.DescriptorProto()
    message.DESCRIPTOR.CopyToProto(described)
    return _fields(described)


def _fields(described: Any) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {
        field.name: (field.number, field.type, field.label == _KIND.LABEL_REPEATED, field.type_name, field.HasField("oneof_index"))
        for field in described.field
    }
    for nested in described.nested_type:
        found |= {f"{nested.name}.{name}": value for name, value in _fields(nested).items()}
    return found


@pytest.mark.parametrize("name", sorted(MESSAGES.keys() - {"Empty"}))
def test_every_field_has_their_number_type_and_name(name: str) -> None:
    known = fields(theirs(name))
    assert {field: known.get(field) for field in fields(MESSAGES[name])} == fields(MESSAGES[name])


@pytest.mark.parametrize("name", ["ModelInferRequest", "ModelInferResponse", "InferTensorContents", "InferParameter"])
def test_the_messages_of_an_inference_are_complete(name: str) -> None:
    assert fields(MESSAGES[name]).keys() == fields(theirs(name)).keys()


def test_datatypes_have_their_numbers() -> None:
    enum = MESSAGES["ModelInput"].DESCRIPTOR.fields_by_name["data_type"].enum_type
    assert {value.name: value.number for value in enum.values} == dict(model_config_pb2.DataType.items())
