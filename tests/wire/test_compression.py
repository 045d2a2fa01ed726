"""Content encodings, and what a hostile body may not do with them."""

import contextlib
import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatshare.core.errors import BadInput, BodyTooLarge
from flatshare.wire.compression import accepted_encoding, compressed, decompressed


def _raw_deflate(body: bytes) -> bytes:
    return zlib.compress(body)[2:-4]


@given(st.binary(max_size=300), st.sampled_from(["gzip", "GZIP ", "deflate"]))
def test_what_was_compressed_arrives_as_it_was(body: bytes, encoding: str) -> None:
    packed = zlib.compress(body) if encoding == "deflate" else gzip.compress(body)
    assert decompressed(encoding, packed, 300) == body


def test_deflate_without_its_frame_is_understood() -> None:
    assert decompressed("deflate", _raw_deflate(b"hello " * 9), 100) == b"hello " * 9


@pytest.mark.parametrize("encoding", ["", "identity"])
def test_a_plain_body_is_left_alone(encoding: str) -> None:
    assert decompressed(encoding, b"hello", 1) == b"hello"


@pytest.mark.parametrize(
    ("encoding", "body", "sentence"),
    [
        ("br", b"", "'br' is not served"),
        ("gzip, deflate", b"", "is not served"),
        ("gzip", b"", "cut off"),
        ("gzip", b"nonsense", "cannot be decompressed"),
        ("gzip", gzip.compress(b"hello")[:-3], "cut off"),
        ("gzip", gzip.compress(b"hello") + b"more", "something lies behind"),
        ("deflate", zlib.compress(b"hello")[:-1], "cut off"),
        ("deflate", b"\xff\xff\xff", "cannot be decompressed"),
    ],
)
def test_a_damaged_body_is_bad_input(encoding: str, body: bytes, sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        decompressed(encoding, body, 1000)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_body_is_unpacked_only_as_far_as_the_limit(encoding: str) -> None:
    pack = gzip.compress if encoding == "gzip" else zlib.compress
    assert len(decompressed(encoding, pack(b"a" * 1000), 1000)) == 1000
    with pytest.raises(BodyTooLarge, match="more than the 999 bytes"):
        decompressed(encoding, pack(b"a" * 1000), 999)


@given(st.binary(max_size=200), st.sampled_from(["gzip", "deflate", "identity", "zstd"]))
def test_any_bytes_are_unpacked_or_refused(body: bytes, encoding: str) -> None:
    plain = b""
    with contextlib.suppress(BadInput):
        plain = decompressed(encoding, body, 100)
    assert len(plain) <= max(100, len(body))


@pytest.mark.parametrize(
    ("accept", "encoding"),
    [
        ("gzip", "gzip"),
        ("gzip, deflate, br", "gzip"),
        ("deflate", "deflate"),
        ("br;q=1.0, deflate;q=0.8", "deflate"),
        ("gzip;q=0, deflate", "deflate"),
        ("gzip; q=0", None),
        ("identity", None),
        ("", None),
        ("*", None),
    ],
)
def test_an_answer_is_compressed_only_as_the_caller_takes_it(accept: str, encoding: str | None) -> None:
    assert accepted_encoding(accept) == encoding


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_an_answer_that_is_worth_it_comes_compressed(encoding: str) -> None:
    body = b"0.123456," * 1000
    packed = compressed(encoding, body)
    assert packed is not None
    assert len(packed) < len(body)
    assert decompressed(encoding, packed, len(body)) == body
    assert compressed(encoding, b"small") is None
