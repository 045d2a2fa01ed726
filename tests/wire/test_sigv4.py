"""Signatures: AWS's own test suite, what botocore signs, and everything that a forger might try."""

import time
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatshare.core.errors import IncompleteSignature, MissingCredentials, RequestExpired, SignatureMismatch, Unauthenticated
from flatshare.wire import sigv4, sigv4_chunks
from flatshare.wire.http import Request
from tests.wire.requests import KEY_ID, SECRET, arriving, from_text, signed

SUITE: dict[str, str] = orjson.loads((Path(__file__).parent / "aws4_testsuite/signed_requests.json").read_bytes())
SUITE_SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
SCRAMBLED = "get-vanilla-with-session-token"  # its signature is a placeholder in the suite itself


def verify(request: Request, secret: str = SECRET, *, now_s: float | None = None) -> bytes:
    claim = sigv4.claim_of(request)
    sigv4.require_scope(claim, "us-east-1", "sagemaker")
    sigv4.require_fresh(claim, time.time() if now_s is None else now_s)
    return sigv4.verified_body(request, claim, sigv4.signing_key(secret, claim))


@pytest.mark.parametrize("name", sorted(SUITE.keys() - {SCRAMBLED}))
def test_the_official_vectors_verify_and_do_not_when_altered(name: str) -> None:
    request = from_text(SUITE[name])
    claim = sigv4.claim_of(request)
    sigv4.require_scope(claim, "us-east-1", "service")
    key = sigv4.signing_key(SUITE_SECRET, claim)
    assert sigv4.verified_body(request, claim, key) == request.body
    altered = replace(request, body=request.body + b"x")
    with pytest.raises(SignatureMismatch):
        sigv4.verified_body(altered, claim, key)


def test_the_one_vector_with_a_placeholder_for_a_signature_does_not_verify() -> None:
    request = from_text(SUITE[SCRAMBLED])
    claim = sigv4.claim_of(request)
    with pytest.raises(SignatureMismatch):
        sigv4.verified_body(request, claim, sigv4.signing_key(SUITE_SECRET, claim))


@given(
    path=st.from_regex(r"/([A-Za-z0-9_.~-]{1,6}/?){0,4}", fullmatch=True),
    values=st.lists(st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=12), max_size=3),
    method=st.sampled_from(["GET", "POST", "DELETE"]),
)
def test_what_is_spared_botocore_is_what_botocore_says(path: str, values: list[str], method: str) -> None:
    request = signed(method, path, b"{}")
    names = [f"x-amz-more-{number}" for number in range(len(values))]
    request.headers.update({name.encode(): value.encode() for name, value in zip(names, values, strict=True)})
    claim = replace(sigv4.claim_of(signed(method, path, b"{}")), signed_headers=("host", "x-amz-date", *reversed(names)))
    assert sigv4.string_to_sign(request, claim, "p") == sigv4._rewritten_string_to_sign(request, claim, "p")


@given(
    path=st.text(min_size=0, max_size=30).map(lambda text: "/" + text.encode("utf-8", "ignore").hex()),
    body=st.binary(max_size=200),
    target=st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40),
    query=st.dictionaries(st.from_regex(r"[a-zA-Z]{1,5}", fullmatch=True), st.from_regex(r"[a-z%0-9]{0,5}", fullmatch=True), max_size=3),
)
def test_what_botocore_signs_verifies(path: str, body: bytes, target: str, query: dict[str, str]) -> None:
    asked = path + ("?" + "&".join(f"{name}={value.replace('%', '%25')}" for name, value in query.items()) if query else "")
    assert verify(signed("POST", asked, body, X_Amzn_SageMaker_Target_Model=target)) == body


CHANGES: dict[str, Callable[[Request], None]] = {
    "another body": lambda request: setattr(request, "body", b"{}"),
    "another path": lambda request: setattr(request, "raw_path", b"/endpoints/other/invocations"),
    "another method": lambda request: setattr(request, "method", "GET"),
    "another query": lambda request: setattr(request, "query", b"a=1"),
    "another target": lambda request: request.headers.update({b"x-amzn-sagemaker-target-model": b"other/x"}),
    "another operation": lambda request: request.headers.update({b"x-amz-target": b"SageMaker.DeleteModel"}),
    "another host": lambda request: request.headers.update({b"host": b"other"}),
    "another digest of the body": lambda request: request.headers.update({b"x-amz-content-sha256": sha256(b"x").hexdigest().encode()}),
    "no signing of the body": lambda request: request.headers.update({b"x-amz-content-sha256": b"UNSIGNED-PAYLOAD"}),
    "another header that is signed": lambda request: request.headers.update({b"content-type": b"text/html"}),
}


def _call() -> Request:
    return signed(
        "POST",
        "/endpoints/e/invocations",
        b"hello",
        X_Amzn_SageMaker_Target_Model="acme/x",
        X_Amz_Target="SageMaker.X",
        Content_Type="text/plain",
    )


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_is_changed_on_the_way_is_noticed(change: str) -> None:
    request = _call()
    assert verify(request) == b"hello"
    CHANGES[change](request)
    with pytest.raises((SignatureMismatch, IncompleteSignature)):
        verify(request)


def test_another_secret_does_not_verify() -> None:
    with pytest.raises(SignatureMismatch, match="Check your AWS Secret Access Key"):
        verify(_call(), "another-secret")


@pytest.mark.parametrize("header", ["x-amz-target", "x-amzn-sagemaker-target-model", "x-amz-anything"])
def test_a_header_that_says_what_is_asked_for_must_be_signed(header: str) -> None:
    """Or whoever carries the request could add it."""
    request = signed("POST", "/", b"{}")
    request.headers[header.encode()] = b"SageMaker.DeleteModel"
    with pytest.raises(IncompleteSignature, match=f"not signed: {header}"):
        verify(request)


def test_what_load_balancers_add_need_not_be_signed() -> None:
    request = signed("POST", "/", b"{}")
    request.headers |= {b"x-amzn-trace-id": b"Root=1", b"x-forwarded-for": b"192.0.2.1", b"user-agent": b"curl"}
    assert verify(request) == b"{}"


def test_a_session_token_is_one_more_signed_header() -> None:
    request = signed("POST", "/", b"{}", token="t" * 100)
    assert verify(request) == b"{}"
    request.headers[b"x-amz-security-token"] = b"other"
    with pytest.raises(SignatureMismatch):
        verify(request)


@pytest.mark.parametrize(("late_s", "is_fresh"), [(0, True), (290, True), (-290, True), (310, False), (-310, False)])
def test_clocks_may_differ_by_five_minutes(late_s: float, *, is_fresh: bool) -> None:
    request = _call()
    if is_fresh:
        verify(request, now_s=time.time() + late_s)
        return
    with pytest.raises(RequestExpired, match="Signature expired" if late_s > 0 else "Signature not yet current"):
        verify(request, now_s=time.time() + late_s)


@pytest.mark.parametrize(("late_s", "is_fresh"), [(0, True), (890, True), (910, False), (-310, False)])
def test_a_presigned_request_lives_as_long_as_it_says(late_s: float, *, is_fresh: bool) -> None:
    request = signed("GET", "/metrics?a=b%20c&empty=", expires_s=900)
    assert sigv4.is_signed(request)
    assert b"authorization" not in request.headers
    if is_fresh:
        assert verify(request, now_s=time.time() + late_s) == b""
        return
    with pytest.raises(RequestExpired):
        verify(request, now_s=time.time() + late_s)


def test_a_presigned_request_is_not_altered_unnoticed() -> None:
    request = signed("GET", "/metrics?a=b", expires_s=900)
    for change in ({"query": request.query.replace(b"a=b", b"a=c")}, {"query": request.query.replace(b"900", b"901")}, {"method": "POST"}):
        with pytest.raises(SignatureMismatch):
            verify(replace(request, **change))


@pytest.mark.parametrize("expires", ["0", "604801", "-1", "1e3", "", "²"])
def test_a_presigned_request_lives_at_most_a_week(expires: str) -> None:
    request = signed("GET", "/metrics", expires_s=900)
    request.query = request.query.replace(b"X-Amz-Expires=900", f"X-Amz-Expires={expires}".encode())
    with pytest.raises(IncompleteSignature, match="1 to 604800"):
        verify(request)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"region": "eu-west-1"}, "valid region: 'us-east-1'"),
        ({"service": "s3"}, "correct service: 'sagemaker'"),
    ],
)
def test_a_signature_for_elsewhere_is_refused(members: dict[str, str], words: str) -> None:
    with pytest.raises(SignatureMismatch, match=words):
        verify(signed("POST", "/", b"{}", **members))  # type: ignore[arg-type]  # keywords, not headers


def test_a_day_that_is_not_the_dates_is_refused() -> None:
    request = _call()
    day = time.strftime("%Y%m%d", time.gmtime())
    request.headers[b"authorization"] = request.headers[b"authorization"].replace(f"/{day}/".encode(), b"/20200101/")
    with pytest.raises(SignatureMismatch, match="Date in Credential scope"):
        verify(request)


GOOD = "Credential=K/20260101/us-east-1/sagemaker/aws4_request, SignedHeaders=host, Signature=" + "0" * 64


@pytest.mark.parametrize(
    ("authorization", "words"),
    [
        ("AWS4-HMAC-SHA256 " + GOOD.replace("Credential", "Kredential"), "requires 'Credential'"),
        ("AWS4-HMAC-SHA256 " + GOOD.replace(", Signature=" + "0" * 64, ""), "requires 'Signature'"),
        ("AWS4-HMAC-SHA256 " + GOOD.replace("SignedHeaders=host, ", ""), "requires 'SignedHeaders'"),
        ("AWS4-HMAC-SHA256", "requires 'Credential'"),
        ("AWS4-HMAC-SHA512 " + GOOD, "not supported"),
        ("AWS4-ECDSA-P256-SHA256 " + GOOD, "not supported"),
        ("AWS4-HMAC-SHA256 " + GOOD.replace("/aws4_request", ""), "not a valid Credential"),
        ("AWS4-HMAC-SHA256 " + GOOD.replace("K/2026", "/2026"), "not a valid Credential"),
        ("AWS4-HMAC-SHA256 " + GOOD.replace("0" * 64, "0" * 63), "64 hexadecimal"),
        ("AWS4-HMAC-SHA256 " + GOOD.replace("0" * 64, "G" * 64), "64 hexadecimal"),
        ("AWS4-HMAC-SHA256 " + GOOD.replace("=host", "=date"), "not signed: host"),
        ("AWS4-HMAC-SHA256 " + GOOD.replace("=host", "=host;nobody"), "does not have: nobody"),
        ("AWS4-HMAC-SHA256 " + GOOD.replace("=host", "=host;" + ";".join("h" * 101)), "more than 100"),
        ("AWS4-HMAC-SHA256 " + GOOD.replace("=host", "=höst"), "does not have"),
    ],
)
def test_a_signature_that_cannot_be_read_is_incomplete(authorization: str, words: str) -> None:
    headers = {"Authorization": authorization, "Host": "h", "Date": "Thu, 01 Jan 2026 00:00:00 GMT"}
    with pytest.raises(IncompleteSignature, match=words):
        sigv4.claim_of(arriving("POST", "http://h/", headers, b""))


@pytest.mark.parametrize("date", ["", "yesterday", "20260101", "Thu, 99 Jan 2026 00:00:00 GMT", "20261301T000000Z"])
def test_a_signature_needs_a_date(date: str) -> None:
    for header in ("Date", "X-Amz-Date"):
        headers = {"Authorization": "AWS4-HMAC-SHA256 " + GOOD, "Host": "h", header: date}
        with pytest.raises(IncompleteSignature):
            sigv4.claim_of(arriving("POST", "http://h/", headers, b""))


def test_without_any_signature_credentials_are_missing() -> None:
    with pytest.raises(MissingCredentials, match="Missing Authentication Token"):
        sigv4.claim_of(arriving("POST", "http://h/?X-Amz-Date=1", {"Host": "h"}, b""))


@given(st.text(max_size=200), st.text(max_size=100))
def test_no_header_and_no_query_breaks_the_reading(authorization: str, query: str) -> None:
    text = authorization.encode("utf-8", "replace")
    headers = {b"authorization": b"AWS4-HMAC-SHA256 " + text, b"host": b"h", b"x-amz-date": b"20260101T000000Z"}
    for request in (
        Request("POST", "/", headers, b"", b"", b"/"),
        Request("GET", "/", {b"host": b"h"}, b"", b"X-Amz-Signature=" + query.encode("utf-8", "replace"), b"/"),
    ):
        with pytest.raises(Unauthenticated):
            verify(request)


class TestChunks:
    """The example of AWS's documentation of signed chunks: 65 KiB of the letter a for an S3 bucket, in three chunks."""

    SEED = "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9"
    CHUNKS = (
        (65536, "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648"),
        (1024, "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497"),
        (0, "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9"),
    )
    SIGNED = "content-encoding;content-length;host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length;x-amz-storage-class"

    def body(self) -> bytes:
        return b"".join(b"%x;chunk-signature=%b\r\n%b\r\n" % (n, signature.encode(), b"a" * n) for n, signature in self.CHUNKS)

    def request(self, body: bytes) -> Request:
        headers = {
            "Host": "s3.amazonaws.com",
            "x-amz-date": "20130524T000000Z",
            "x-amz-storage-class": "REDUCED_REDUNDANCY",
            "x-amz-content-sha256": sigv4_chunks.STREAMING,
            "Content-Encoding": "aws-chunked",
            "x-amz-decoded-content-length": "66560",
            "Content-Length": "66824",
            "Authorization": "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,"
            f"SignedHeaders={self.SIGNED},Signature={self.SEED}",
        }
        return arriving("PUT", "http://h/examplebucket/chunkObject.txt", headers, body)

    def verified(self, body: bytes) -> bytes:
        request = self.request(body)
        claim = sigv4.claim_of(request)
        return sigv4.verified_body(request, claim, sigv4.signing_key("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", claim))

    def test_the_documented_example_verifies_and_is_put_together(self) -> None:
        assert len(self.body()) == 66824
        assert self.verified(self.body()) == b"a" * 66560

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda body: body.replace(b"a" * 100, b"b" * 100, 1), "was altered"),
            (lambda body: body[: body.index(b"400;chunk")], "not in signed chunks"),
            (lambda body: body[:66000], "not in signed chunks|within a signed chunk"),
            (lambda body: body[:-2], "within a signed chunk"),
            (lambda body: body + b"0", "bytes follow"),
            (lambda body: b"hello", "not in signed chunks"),
            (lambda body: body.replace(b"10000;", b"7fffffff;", 1), "within a signed chunk"),
            (lambda body: body.replace(b"10000;", b"-1;", 1), "not in signed chunks"),
        ],
    )
    def test_chunks_that_were_altered_cut_or_added_to_are_refused(self, change: Callable[[bytes], bytes], words: str) -> None:
        with pytest.raises((SignatureMismatch, IncompleteSignature), match=words):
            self.verified(change(self.body()))

    def test_chunks_do_not_change_places(self) -> None:
        first, second, last = (b"%x;chunk-signature=%b\r\n%b\r\n" % (n, signature.encode(), b"a" * n) for n, signature in self.CHUNKS)
        with pytest.raises(SignatureMismatch):
            self.verified(second + first + last)

    @pytest.mark.parametrize(
        "digest", ["STREAMING-UNSIGNED-PAYLOAD-TRAILER", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER", "UNSIGNED-PAYLOAD"]
    )
    def test_a_body_that_is_not_signed_or_signed_otherwise_is_refused(self, digest: str) -> None:
        with pytest.raises(SignatureMismatch, match="x-amz-content-sha256"):
            verify(signed("POST", "/", b"hello", X_Amz_Content_SHA256=digest))


def test_a_key_signs_for_a_day_a_region_and_a_service() -> None:
    claim = sigv4.claim_of(_call())
    others = [replace(claim, day="20200101"), replace(claim, region="r"), replace(claim, service="s3")]
    assert len({sigv4.signing_key(SECRET, c) for c in (claim, *others)}) == 4
    assert sigv4.signing_key(SECRET, claim) == sigv4.signing_key(SECRET, replace(claim, key_id=KEY_ID, signature="f" * 64))
