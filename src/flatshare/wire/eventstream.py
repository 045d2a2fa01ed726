"""AWS event-stream frames: how InvokeEndpointWithResponseStream answers.

    total length · headers' length · CRC of both | headers | payload | CRC of all before

https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpointWithResponseStream.html
"""

import struct
from binascii import crc32
from collections.abc import Mapping

import orjson

CONTENT_TYPE = b"application/vnd.amazon.eventstream"
_STRING = 7  # the type of a header's value


def payload_part(data: bytes) -> bytes:
    """A piece of the model's answer."""
    return _frame({":message-type": "event", ":event-type": "PayloadPart", ":content-type": "application/octet-stream"}, data)


def model_stream_error(message: str, code: str) -> bytes:
    """The model failed in the middle of its answer: the last frame."""
    return _exception("ModelStreamError", {"Message": message, "ErrorCode": code})


def internal_stream_failure(message: str) -> bytes:
    """The platform failed in the middle of the answer: the last frame."""
    return _exception("InternalStreamFailure", {"Message": message})


def _exception(kind: str, fields: Mapping[str, str]) -> bytes:
    headers = {":message-type": "exception", ":exception-type": kind, ":content-type": "application/json"}
    return _frame(headers, orjson.dumps(fields))


def _frame(headers: Mapping[str, str], payload: bytes) -> bytes:
    head = b"".join(_header(name.encode(), value.encode()) for name, value in headers.items())
    prelude = struct.pack(">II", 16 + len(head) + len(payload), len(head))
    message = prelude + struct.pack(">I", crc32(prelude)) + head + payload
    return message + struct.pack(">I", crc32(message))


def _header(name: bytes, value: bytes) -> bytes:
    return struct.pack(">B", len(name)) + name + struct.pack(">BH", _STRING, len(value)) + value
