"""InvokeEndpoint: what arrives is understood or refused, and errors are what boto3 expects."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatshare.core.errors import BadInput, FlatshareError, Overloaded, OverQuota, TooLate, UnknownEndpoint, UnknownTarget
from flatshare.core.ids import EndpointName, TargetModel
from flatshare.wire.http import Request
from flatshare.wire.sagemaker import LogPlace, artifact_uri, error_reply, model_error_reply, parse_invocation

HEADER = b"x-amzn-sagemaker-target-model"
PATH = "/endpoints/shop/invocations"


def request(target: bytes | None = None, *, path: str = PATH, method: str = "POST", **headers: bytes) -> Request:
    named = {name.replace("_", "-").encode(): value for name, value in headers.items()}
    return Request(method, path, named | ({} if target is None else {HEADER: target}), b"body")


@pytest.mark.parametrize("path", ["/", "/endpoints/shop", "/endpoints//invocations", "/endpoints/a/b/invocations", f"{PATH}/", f"/x{PATH}"])
def test_other_paths_are_not_ours(path: str) -> None:
    assert parse_invocation(request(path=path)) is None


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD"])
def test_other_methods_are_not_ours(method: str) -> None:
    assert parse_invocation(request(method=method)) is None


def test_the_headers_of_the_call_are_read() -> None:
    call = parse_invocation(request(b"acme/query", x_amzn_sagemaker_target_variant=b"blue"))
    assert call is not None
    assert (call.endpoint, call.target, call.variant) == ("shop", "acme/query", "blue")


def test_a_call_may_name_no_model() -> None:
    call = parse_invocation(request())
    assert call is not None
    assert (call.target, call.variant) == (None, None)


@pytest.mark.parametrize(
    "target", [b"../x", b"a/../b", b"a/..", b"..", b".", b"./a", b"a/./b", b"s3://other/x", b"file:///etc", b"a\\b", b"/", b"//", b"/../x"]
)
def test_a_target_that_leads_out_of_the_prefix_is_unknown(target: bytes) -> None:
    with pytest.raises(UnknownTarget, match="plain path below"):
        parse_invocation(request(target))


@pytest.mark.parametrize("target", [b" ", b" a", b"\ta", b"a\x00b", b"\x00", b"\x01a", b"\x7fa", b"a\nb", b"a\x7f", b"a" * 1025])
def test_a_target_that_is_no_name_is_refused(target: bytes) -> None:
    with pytest.raises(BadInput, match="1 to 1024 printable"):
        parse_invocation(request(target))


@pytest.mark.parametrize("target", ["acme/query", "a", "/a/b", "a..b", "...", "ünïcode/模型", "a b", "a" * 1024, "model.tar.gz"])
def test_other_targets_are_taken_as_they_are(target: str) -> None:
    call = parse_invocation(request(target.encode()))
    assert call is not None
    assert call.target == target


@given(st.binary(max_size=40))
def test_any_target_stays_below_the_prefix_or_is_refused(target: bytes) -> None:
    try:
        call = parse_invocation(request(target))
    except (BadInput, UnknownTarget):
        return
    assert call is not None
    if call.target is not None:
        uri = artifact_uri("s3://bucket/prefix/", call.target)
        assert uri.startswith("s3://bucket/prefix/")
        assert not {".", ".."} & set(uri.removeprefix("s3://").split("/"))


@given(st.text(max_size=30), st.dictionaries(st.binary(max_size=10), st.binary(max_size=10)))
def test_any_path_and_headers_are_read_or_refused(name: str, headers: dict[bytes, bytes]) -> None:
    try:
        parse_invocation(Request("POST", f"/endpoints/{name}/invocations", headers))
    except (BadInput, UnknownTarget):
        return


@pytest.mark.parametrize(("prefix", "target"), [("s3://b/p/", "t"), ("s3://b/p", "t"), ("s3://b/p/", "/t"), ("s3://b/p//", "//t")])
def test_one_slash_joins_prefix_and_target(prefix: str, target: str) -> None:
    assert artifact_uri(prefix, TargetModel(target)) == "s3://b/p/t"


def test_only_what_the_container_may_see_is_forwarded() -> None:
    call = parse_invocation(request(b"t", content_type=b"text/plain", authorization=b"secret", x_amzn_sagemaker_inference_id=b"7"))
    assert call is not None
    assert dict(call.forwarded_headers) == {b"content-type": b"text/plain", HEADER: b"t", b"x-amzn-sagemaker-inference-id": b"7"}


def test_an_error_carries_its_code_where_boto3_looks() -> None:
    reply = error_reply(UnknownEndpoint("no endpoint is named 'x'"), "id-1")
    assert reply.status == 400
    assert dict(reply.headers) == {b"x-amzn-errortype": b"ValidationError", b"x-amzn-requestid": b"id-1"}
    assert orjson.loads(reply.body)["Message"] == "no endpoint is named 'x'"
    assert error_reply(Overloaded("later"), "id-2").status == 503


@pytest.mark.parametrize(("error", "status"), [(OverQuota("your limit"), 429), (TooLate("too late"), 503), (Overloaded("full"), 503)])
def test_whoever_may_call_again_is_told_after_how_long(error: FlatshareError, status: int) -> None:
    reply = error_reply(error, "id-3")
    assert (reply.status, dict(reply.headers)[b"retry-after"]) == (status, b"1")


def test_what_a_second_call_would_not_change_has_no_such_hint() -> None:
    assert b"retry-after" not in dict(error_reply(BadInput("no"), "id-4").headers)


@pytest.mark.parametrize(
    ("status", "side", "code"), [(400, "client", "CLIENT_ERROR_FROM_MODEL"), (500, "server", "INTERNAL_FAILURE_FROM_MODEL")]
)
def test_a_models_own_error_says_whose_it_was_and_where_to_look(status: int, side: str, code: str) -> None:
    place = LogPlace("eu-west-1", "123456789012", EndpointName("shop"))
    fields = orjson.loads(model_error_reply(status, 'it said "no"', place, "id").body)
    assert fields["Message"].startswith(f'Received {side} error ({status}) from primary with message "it said "no"". See https://eu-west-1')
    assert fields["Message"].endswith("/aws/sagemaker/Endpoints/shop in account 123456789012 for more information.")
    assert (fields["ErrorCode"], fields["OriginalStatusCode"], fields["OriginalMessage"]) == (code, status, 'it said "no"')
    assert fields["LogStreamArn"] == "arn:aws:logs:eu-west-1:123456789012:log-group:/aws/sagemaker/Endpoints/shop"
