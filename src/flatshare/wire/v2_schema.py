"""The messages of the Open Inference Protocol over gRPC, made from their definitions below when this module is imported.

The definitions are those of https://github.com/kserve/open-inference-protocol with Triton's extensions, as far as they are served here
(a field left out is skipped, as protobuf does). Made at run time and kept in a pool of their own: generated stubs would have to be of
the protobuf version that the user has, and would collide with a client's in the same process (docs/decisions/0036-grpc.md).
"""

import re
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"
_Field = descriptor_pb2.FieldDescriptorProto
_SCALAR_NAMES = ("bool", "int32", "int64", "uint32", "uint64", "float", "double", "string", "bytes")
_SCALARS = {name: getattr(_Field, f"TYPE_{name.upper()}") for name in _SCALAR_NAMES}
_TOKEN = re.compile(r"map<string, *(?P<map>[\w.]+)>|[\w.]+|[{};=]")

_DEFINITIONS = """
message ServerLiveRequest {}
message ServerLiveResponse { bool live = 1; }
message ServerReadyRequest {}
message ServerReadyResponse { bool ready = 1; }
message ModelReadyRequest { string name = 1; string version = 2; }
message ModelReadyResponse { bool ready = 1; }
message ServerMetadataRequest {}
message ServerMetadataResponse { string name = 1; string version = 2; repeated string extensions = 3; }
message ModelMetadataRequest { string name = 1; string version = 2; }
message ModelMetadataResponse {
  message TensorMetadata { string name = 1; string datatype = 2; repeated int64 shape = 3; }
  string name = 1; repeated string versions = 2; string platform = 3;
  repeated ModelMetadataResponse.TensorMetadata inputs = 4; repeated ModelMetadataResponse.TensorMetadata outputs = 5;
}
message InferParameter {
  oneof parameter_choice {
    bool bool_param = 1; int64 int64_param = 2; string string_param = 3; double double_param = 4; uint64 uint64_param = 5;
  }
}
message InferTensorContents {
  repeated bool bool_contents = 1; repeated int32 int_contents = 2; repeated int64 int64_contents = 3; repeated uint32 uint_contents = 4;
  repeated uint64 uint64_contents = 5; repeated float fp32_contents = 6; repeated double fp64_contents = 7;
  repeated bytes bytes_contents = 8;
}
message ModelInferRequest {
  message InferInputTensor {
    string name = 1; string datatype = 2; repeated int64 shape = 3; map<string, InferParameter> parameters = 4;
    InferTensorContents contents = 5;
  }
  message InferRequestedOutputTensor { string name = 1; map<string, InferParameter> parameters = 2; }
  string model_name = 1; string model_version = 2; string id = 3; map<string, InferParameter> parameters = 4;
  repeated ModelInferRequest.InferInputTensor inputs = 5; repeated ModelInferRequest.InferRequestedOutputTensor outputs = 6;
  repeated bytes raw_input_contents = 7;
}
message ModelInferResponse {
  message InferOutputTensor {
    string name = 1; string datatype = 2; repeated int64 shape = 3; map<string, InferParameter> parameters = 4;
    InferTensorContents contents = 5;
  }
  string model_name = 1; string model_version = 2; string id = 3; map<string, InferParameter> parameters = 4;
  repeated ModelInferResponse.InferOutputTensor outputs = 5; repeated bytes raw_output_contents = 6;
}
message ModelStreamInferResponse { string error_message = 1; ModelInferResponse infer_response = 2; }
enum DataType {
  TYPE_INVALID = 0; TYPE_BOOL = 1; TYPE_UINT8 = 2; TYPE_UINT16 = 3; TYPE_UINT32 = 4; TYPE_UINT64 = 5; TYPE_INT8 = 6; TYPE_INT16 = 7;
  TYPE_INT32 = 8; TYPE_INT64 = 9; TYPE_FP16 = 10; TYPE_FP32 = 11; TYPE_FP64 = 12; TYPE_STRING = 13; TYPE_BF16 = 14;
}
message ModelInput { string name = 1; DataType data_type = 2; repeated int64 dims = 4; bool optional = 8; }
message ModelOutput { string name = 1; DataType data_type = 2; repeated int64 dims = 3; }
message ModelTransactionPolicy { bool decoupled = 1; }
message ModelConfig {
  string name = 1; string platform = 2; int32 max_batch_size = 4; repeated ModelInput input = 5; repeated ModelOutput output = 6;
  string backend = 17; ModelTransactionPolicy model_transaction_policy = 19;
}
message ModelConfigRequest { string name = 1; string version = 2; }
message ModelConfigResponse { ModelConfig config = 1; }
message ModelStatisticsRequest { string name = 1; string version = 2; }
message StatisticDuration { uint64 count = 1; uint64 ns = 2; }
message InferStatistics {
  StatisticDuration success = 1; StatisticDuration fail = 2; StatisticDuration queue = 3; StatisticDuration compute_input = 4;
  StatisticDuration compute_infer = 5; StatisticDuration compute_output = 6; StatisticDuration cache_hit = 7;
  StatisticDuration cache_miss = 8;
}
message ModelStatistics {
  string name = 1; string version = 2; uint64 last_inference = 3; uint64 inference_count = 4; uint64 execution_count = 5;
  InferStatistics inference_stats = 6;
}
message ModelStatisticsResponse { repeated ModelStatistics model_stats = 1; }
message ModelRepositoryParameter {
  oneof parameter_choice { bool bool_param = 1; int64 int64_param = 2; string string_param = 3; bytes bytes_param = 4; }
}
message RepositoryIndexRequest { string repository_name = 1; bool ready = 2; }
message RepositoryIndexResponse {
  message ModelIndex { string name = 1; string version = 2; string state = 3; string reason = 4; }
  repeated RepositoryIndexResponse.ModelIndex models = 1;
}
message RepositoryModelLoadRequest {
  string repository_name = 1; string model_name = 2; map<string, ModelRepositoryParameter> parameters = 3;
}
message RepositoryModelLoadResponse {}
message RepositoryModelUnloadRequest { string repository_name = 1; string model_name = 2; }
message RepositoryModelUnloadResponse {}
message TraceSettingRequest {
  message SettingValue { repeated string value = 1; }
  map<string, TraceSettingRequest.SettingValue> settings = 1; string model_name = 2;
}
message TraceSettingResponse {
  message SettingValue { repeated string value = 1; }
  map<string, TraceSettingResponse.SettingValue> settings = 1;
}
message LogSettingsRequest {
  message SettingValue { oneof parameter_choice { bool bool_param = 1; uint32 uint32_param = 2; string string_param = 3; } }
  map<string, LogSettingsRequest.SettingValue> settings = 1;
}
message LogSettingsResponse {
  message SettingValue { oneof parameter_choice { bool bool_param = 1; uint32 uint32_param = 2; string string_param = 3; } }
  map<string, LogSettingsResponse.SettingValue> settings = 1;
}
message Empty {}
"""


class _Reader:
    """Reads as much of proto3 as stands above."""

    def __init__(self, definitions: str) -> None:
        self._tokens = _TOKEN.finditer(definitions)
        self._enums = {match[1] for match in re.finditer(r"enum (\w+)", definitions)}

    def file(self) -> descriptor_pb2.FileDescriptorProto:
        file = descriptor_pb2.FileDescriptorProto(name="flatshare/open_inference.proto", package=PACKAGE, syntax="proto3")
        for token in self._tokens:
            name = self._next()
            self._next()
            if token[0] == "enum":
                self._read_enum(file.enum_type.add(name=name))
            else:
                self._read_message(file.message_type.add(name=name), f".{PACKAGE}.{name}")
        return file

    def _read_enum(self, enum: descriptor_pb2.EnumDescriptorProto) -> None:
        while (value := self._next()) != "}":
            enum.value.add(name=value, number=self._number())

    def _read_message(self, message: descriptor_pb2.DescriptorProto, path: str) -> None:
        oneof: int | None = None
        while (token := next(self._tokens))[0] != "}" or oneof is not None:
            if token[0] == "}":
                oneof = None
            elif token[0] == "message":
                name = self._next()
                self._next()
                self._read_message(message.nested_type.add(name=name), f"{path}.{name}")
            elif token[0] == "oneof":
                message.oneof_decl.add(name=self._next())
                self._next()
                oneof = len(message.oneof_decl) - 1
            else:
                self._read_field(message, path, token, oneof)

    def _read_field(self, message: descriptor_pb2.DescriptorProto, path: str, token: re.Match[str], oneof: int | None) -> None:
        field = message.field.add(label=_Field.LABEL_OPTIONAL)
        if token[0] == "repeated" or token["map"]:
            field.label = _Field.LABEL_REPEATED
        kind = self._next() if token[0] == "repeated" else token[0]
        field.name, field.number = self._next(), self._number()
        if oneof is not None:
            field.oneof_index = oneof
        if token["map"]:  # by convention a map is a repeated message of key and value, named after the field
            entry = message.nested_type.add(name="".join(part.title() for part in field.name.split("_")) + "Entry")
            entry.options.map_entry = True
            entry.field.add(name="key", number=1, type=_Field.TYPE_STRING, label=_Field.LABEL_OPTIONAL)
            self._set_type(entry.field.add(name="value", number=2, label=_Field.LABEL_OPTIONAL), token["map"])
            field.type, field.type_name = _Field.TYPE_MESSAGE, f"{path}.{entry.name}"
        else:
            self._set_type(field, kind)

    def _set_type(self, field: descriptor_pb2.FieldDescriptorProto, kind: str) -> None:
        if kind in _SCALARS:
            field.type = _SCALARS[kind]
        else:
            field.type = _Field.TYPE_ENUM if kind in self._enums else _Field.TYPE_MESSAGE
            field.type_name = f".{PACKAGE}.{kind}"

    def _number(self) -> int:
        """`= 3;`"""
        self._next()
        number = int(self._next())
        self._next()
        return number

    def _next(self) -> str:
        return next(self._tokens)[0]


def _messages() -> dict[str, Any]:
    pool = descriptor_pool.DescriptorPool()
    file = _Reader(_DEFINITIONS).file()
    pool.AddSerializedFile(file.SerializeToString())
    names = [message.name for message in file.message_type]
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in names}


MESSAGES = _messages()
"""The messages by name. Dynamic classes, so that their type is only known at run time."""
