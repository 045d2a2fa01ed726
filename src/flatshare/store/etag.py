"""What the tag of an S3 object says of its bytes.

    "MD5"              of an object that was uploaded in one piece
    "MD5-N"            of the MD5s of N parts, of a length it does not say: if N fits that of AWS's tools, it is taken for theirs

It says nothing if a key of KMS encrypts the object: then the store says so in its headers, which are only asked for when a tag does not
fit. GCS and Azure have tags of other kinds, which say nothing either.
"""

import hashlib
import mmap
import re
import urllib.request
from datetime import timedelta
from pathlib import Path
from typing import cast

import obstore
from obstore.store import ObjectStoreMethods, S3Store

from flatshare.core.errors import StoreUnavailable
from flatshare.core.sizes import MIB
from flatshare.store.objects import SourceFile, store_errors

_TAG = re.compile(r'"([0-9a-f]{32})(?:-(\d+))?"')
_PART_BYTES = 8 * MIB  # of the AWS CLI and boto3
_FEWEST = 5  # parts: of fewer, those of other tools (5, 10, 16 MiB) may be as many
_PATIENCE_S = 10.0
_ENCRYPTION = "x-amz-server-side-encryption"


def fits(file: SourceFile, path: Path) -> bool:
    """Are these the bytes that the tag was made of? True if it says nothing of them, too."""
    found = _TAG.fullmatch(file.version)
    if found is None:
        return True
    if found[2] is None:
        return _md5s(path, max(1, file.size_bytes))[0].hex() == found[1]
    count = int(found[2])
    if count < _FEWEST or count != -(-file.size_bytes // _PART_BYTES):
        return True
    return _md5(b"".join(_md5s(path, _PART_BYTES))).hex() == found[1]


def _md5s(path: Path, part_bytes: int) -> list[bytes]:
    """Of each part; of nothing, one."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            return [_md5(b"")]
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped, memoryview(mapped) as whole:
            return [_md5(whole[begin : begin + part_bytes]) for begin in range(0, len(whole), part_bytes)]


def _md5(part: bytes | memoryview) -> bytes:
    return hashlib.md5(part, usedforsecurity=False).digest()


def is_md5(store: ObjectStoreMethods, key: str) -> bool:
    """Does the store make this object's tag of its bytes? Asks it. Raises StoreUnavailable."""
    with store_errors(key):
        address = obstore.sign(cast("S3Store", store), "HEAD", key, timedelta(minutes=1))
    question = urllib.request.Request(address, method="HEAD")  # noqa: S310  # the store's own address
    try:
        with urllib.request.urlopen(question, timeout=_PATIENCE_S) as answer:  # noqa: S310
            return not answer.headers.get(_ENCRYPTION, "").startswith("aws:kms")
    except OSError as error:
        raise StoreUnavailable(f"The store does not say how '{key}' is encrypted ({error}): try again.") from error
