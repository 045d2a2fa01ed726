"""Bodies as JSON, no deeper than the code that walks them can bear."""

import orjson
import pytest

from flatshare.core.errors import BadInput
from flatshare.wire import infer
from flatshare.wire.aws_json import sagemaker_codec
from flatshare.wire.http import Request
from flatshare.wire.json_body import MAX_DEPTH, parsed


def nested(depth: int, inner: bytes = b"") -> bytes:
    return b"[" * depth + inner + b"]" * depth


@pytest.mark.parametrize(
    "body", [b"1", b'{"a": [1, {"b": []}]}', nested(MAX_DEPTH), b'"' + b"[" * 1000 + b'"', b"[" + b"[]," * 1000 + b"[]]"]
)
def test_what_is_not_deep_is_read_however_many_brackets_it_has(body: bytes) -> None:
    assert parsed(body) == orjson.loads(body)


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 500, 1000, 1023, 1024, 100_000])
@pytest.mark.parametrize("form", [b"%b", b'{"inputs": %b}', b'{"ModelName": %b}', b'{"inputs": [{"name": "t", "datatype": %b}]}'])
def test_what_is_deep_is_the_callers_error_at_every_door(depth: int, form: bytes) -> None:
    body = form % nested(depth)
    with pytest.raises(BadInput, match=r"nested more than|not valid JSON"):
        parsed(body)
    with pytest.raises(BadInput):
        infer.parse("application/json", body)
    with pytest.raises(BadInput):
        sagemaker_codec().call(Request("POST", "/", {b"x-amz-target": b"SageMaker.DescribeModel"}, body), served=["DescribeModel"])
