"""Bytes that are nearly right: good ones, cut, doubled, spliced and set to the values that parsers stumble over."""

from dataclasses import dataclass

import orjson
from hypothesis import strategies as st

_WHOLE = 1 << 16
_TOKENS = (
    b"", b"\x00", b"\xff", b"\xff" * 8, b"\x00" * 8, b"\x7f" + b"\xff" * 7, (2**32).to_bytes(8, "little"), (2**63).to_bytes(8, "little"),
    b"-1", b"0", b"1e999", b"9" * 30, b"2147483648", b"9223372036854775808", b"null", b"true", b'""', b"[]", b"{}", b'"\\ud800"', b"\\",
    b"[" * 70, b'{"a":' * 70, b"[" * 990 + b"]" * 990, b"..", b"../", b"/", b"%2e%2e", b"%", b"\r\n", b"\n", b";", b",", b":", b'"',
    "é😀".encode(), b"\xc3", b"a" * 300, b" " * 10,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Edit:
    """What is done to the bytes between two places, each a share of the whole."""

    kind: str
    begin: int
    length: int
    token: bytes

    def applied(self, content: bytes) -> bytes:
        begin = self.begin * len(content) // _WHOLE
        end = min(len(content), begin + self.length)
        if self.kind == "replace":
            return content[:begin] + self.token + content[end:]
        if self.kind == "insert":
            return content[:begin] + self.token + content[begin:]
        if self.kind == "overwrite":
            return content[:begin] + self.token + content[begin + len(self.token) :]
        if self.kind == "double":
            return content[:end] + content[begin:]
        return content[:begin]  # cut


_EDITS = st.builds(
    Edit,
    st.sampled_from(["replace", "insert", "overwrite", "double", "cut"]),
    st.integers(0, _WHOLE),
    st.integers(0, 64) | st.integers(0, 2000),
    st.sampled_from(_TOKENS) | st.binary(max_size=16),
)


def deep(content: bytes) -> list[bytes]:
    """A JSON object with each of its members in turn set to what is nested deeper than Python recurses."""
    fields = orjson.loads(content)
    return [orjson.dumps(fields | {name: "@"}).replace(b'"@"', b"[" * n + b"]" * n) for name in fields for n in (70, 300, 1015)]


def _edited(content: bytes, edits: list[Edit]) -> bytes:
    for edit in edits:
        content = edit.applied(content)[:1_000_000]
    return content


def mutated(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    """Mostly one of the seeds with a few edits, sometimes noise."""
    near = st.builds(_edited, st.sampled_from(seeds), st.lists(_EDITS, min_size=1, max_size=6))
    return st.one_of(near, near, near, st.binary(max_size=300))
