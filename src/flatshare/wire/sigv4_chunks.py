"""A signed body in chunks, each signed upon the one before: `LENGTH;chunk-signature=SIGNATURE`, the bytes, … to a chunk of none."""

import hmac
import re
from dataclasses import dataclass, field
from hashlib import sha256

from flatshare.core.errors import IncompleteSignature, SignatureMismatch

STREAMING = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
_HEAD = re.compile(rb"(?P<size>[0-9a-fA-F]{1,8});chunk-signature=(?P<signature>[0-9a-f]{64})\r\n")
_NOTHING = sha256().hexdigest()


@dataclass(frozen=True, slots=True)
class Seed:
    """What the first chunk's signature is made upon."""

    key: bytes = field(repr=False)
    stamp: str
    scope: str
    signature: str


def joined(body: bytes, seed: Seed) -> bytes:
    """The bytes that the chunks carry. Raises IncompleteSignature or SignatureMismatch."""
    parts: list[bytes] = []
    previous, at = seed.signature, 0
    while True:
        head = _HEAD.match(body, at)
        if head is None:
            raise IncompleteSignature(f"the body is not in signed chunks at byte {at}, as {STREAMING} promises")
        end = head.end() + int(head["size"], 16)
        chunk = body[head.end() : end]
        if len(chunk) != end - head.end() or body[end : end + 2] != b"\r\n":
            raise IncompleteSignature("the body ends within a signed chunk")
        previous = _require_signature(chunk, previous, head["signature"].decode(), seed)
        parts.append(chunk)
        at = end + 2
        if not chunk:
            break
    if at != len(body):
        raise IncompleteSignature("bytes follow the last signed chunk")
    return b"".join(parts)


def signature_of(chunk: bytes, previous: str, seed: Seed) -> str:
    lines = ("AWS4-HMAC-SHA256-PAYLOAD", seed.stamp, seed.scope, previous, _NOTHING, sha256(chunk).hexdigest())
    return hmac.new(seed.key, "\n".join(lines).encode(), "sha256").hexdigest()


def _require_signature(chunk: bytes, previous: str, signature: str, seed: Seed) -> str:
    if not hmac.compare_digest(signature_of(chunk, previous, seed), signature):
        raise SignatureMismatch("The signature of a chunk does not match: the body was altered on its way.")
    return signature
