"""HTTP's content encodings gzip and deflate, bounded: a small body must not unpack into a large one."""

import zlib

from flatshare.core.errors import BadInput, BodyTooLarge

_WORTH_BYTES = 1024  # below that the encoding's own header eats most of what it saves
_LEVEL = 1  # answers are floats: more work gains one or two per cent
_GZIP, _ZLIB, _RAW = 31, 15, -15  # zlib's window bits, by container


def decompressed(encoding: str, body: bytes, max_bytes: int) -> bytes:
    """The body as it was. Raises BadInput for an unknown encoding or damaged data, BodyTooLarge beyond `max_bytes`."""
    encoding = encoding.strip().lower()
    if encoding in {"", "identity"}:
        return body
    if encoding in {"gzip", "x-gzip"}:
        return _inflate(body, _GZIP, max_bytes)
    if encoding == "deflate":
        is_zlib = len(body) >= 2 and body[0] & 0x0F == 8 and int.from_bytes(body[:2], "big") % 31 == 0
        return _inflate(body, _ZLIB if is_zlib else _RAW, max_bytes)  # some clients leave zlib's frame away
    raise BadInput(f"content encoding {encoding[:64]!r} is not served here: send gzip, deflate or identity")


def accepted_encoding(accept: str) -> str | None:
    """What an Accept-Encoding header lets us answer in, by our preference; None for a plain body."""
    refused, named = set[str](), set[str]()
    for part in accept.lower().split(","):
        name, _, parameters = part.strip().partition(";")
        (refused if parameters.replace(" ", "") in {"q=0", "q=0.0"} else named).add(name.strip())
    return next((name for name in ("gzip", "deflate") if name in named - refused), None)


def compressed(encoding: str, body: bytes) -> bytes | None:
    """None if it is not worth it."""
    if len(body) < _WORTH_BYTES:
        return None
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP if encoding == "gzip" else _ZLIB)
    return packer.compress(body) + packer.flush()


def _inflate(body: bytes, window: int, max_bytes: int) -> bytes:
    unpacker = zlib.decompressobj(window)
    try:
        plain = unpacker.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise BadInput(f"the body cannot be decompressed: {error}") from error
    if len(plain) > max_bytes:
        raise BodyTooLarge(f"the body unpacks to more than the {max_bytes} bytes that are accepted: send fewer texts in a call")
    if not unpacker.eof or unpacker.unused_data:
        raise BadInput("the compressed body is cut off" if not unpacker.eof else "something lies behind the compressed body")
    return plain
