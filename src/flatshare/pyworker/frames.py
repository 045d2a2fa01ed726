"""What instance and worker say to each other: frames over a Unix socket, large tensors beside them in shared memory.

    12 bytes     length of the head (4), number of descriptors (4), length of the body (4), little-endian
    head         JSON: kind, fields, and for each tensor [name, datatype, shape, bytes, index of its descriptor or null]
    body         the small tensors, one after another

A large tensor lies in a sealed memory file whose descriptor travels with the frame's first byte. The seals matter: whoever maps memory that
the other side can shrink dies of SIGBUS when it does. Neither side trusts what it reads: a frame that lies raises BadFrame.
"""

import array
import fcntl
import json
import mmap
import os
import socket
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHARED_FROM_BYTES = 128 * 1024  # below, two copies through the socket cost less than a file, its mapping and its page faults
MAX_HEAD_BYTES = 16 * 2**20
MAX_BODY_BYTES = 2**30
MAX_DESCRIPTORS = 64
_PREFIX = struct.Struct("<III")
_LENGTH = struct.Struct("<I")
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_RECEIVE_BYTES = 256 * 1024

DTYPES: dict[str, Any] = {
    "BOOL": np.dtype(np.bool_), "UINT8": np.dtype("u1"), "UINT16": np.dtype("<u2"), "UINT32": np.dtype("<u4"), "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"), "INT16": np.dtype("<i2"), "INT32": np.dtype("<i4"), "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"), "BF16": np.dtype("<u2"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8"),
}  # fmt: skip
"""BYTES is an object array of `bytes`; BF16 the bits of one in 16."""


class BadFrame(Exception):
    """The other side does not speak this protocol (any more)."""


@dataclass(frozen=True)
class NamedArray:
    """A tensor as it crosses."""

    name: str
    datatype: str
    data: NDArray[Any]


@dataclass(frozen=True)
class Frame:
    """One message."""

    kind: str
    fields: dict[str, Any] = field(default_factory=dict)
    tensors: tuple[NamedArray, ...] = ()


@dataclass(frozen=True)
class Packed:
    """A frame ready to be sent; `close` lets go of the descriptors."""

    data: bytes
    descriptors: tuple[int, ...]

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)


def pack(frame: Frame) -> Packed:
    """Copies every tensor once: into the frame, or into shared memory."""
    descriptors: list[int] = []
    body: list[bytes] = []
    described = []
    for tensor in frame.tensors:
        data = encode_texts(tensor.data) if tensor.datatype == "BYTES" else np.ascontiguousarray(tensor.data, DTYPES[tensor.datatype])
        size = len(data) if isinstance(data, bytes) else data.nbytes
        index = None
        if size >= SHARED_FROM_BYTES and len(descriptors) < MAX_DESCRIPTORS:
            index = len(descriptors)
            descriptors.append(_sealed(data, size))
        else:
            body.append(data if isinstance(data, bytes) else data.tobytes())
        described.append([tensor.name, tensor.datatype, list(tensor.data.shape), size, index])
    head = json.dumps({"kind": frame.kind, "fields": frame.fields, "tensors": described}).encode()
    prefix = _PREFIX.pack(len(head), len(descriptors), sum(map(len, body)))
    return Packed(b"".join([prefix, head, *body]), tuple(descriptors))


class Unpacker:
    """Turns what a socket brings into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._descriptors: deque[int] = deque()

    def feed(self, data: bytes, descriptors: Sequence[int]) -> Iterator[Frame]:
        """The frames that are complete now. Raises BadFrame."""
        self._descriptors.extend(descriptors)
        self._buffer += data
        while len(self._buffer) >= _PREFIX.size:
            head, count, body = _PREFIX.unpack_from(self._buffer)
            if head > MAX_HEAD_BYTES or body > MAX_BODY_BYTES or count > MAX_DESCRIPTORS:
                raise BadFrame(f"a frame of {head} + {body} bytes and {count} descriptors")
            if len(self._buffer) < _PREFIX.size + head + body or len(self._descriptors) < count:
                return
            start, end = _PREFIX.size, _PREFIX.size + head
            taken = [self._descriptors.popleft() for _ in range(count)]
            try:
                frame = _unpack(bytes(self._buffer[start:end]), self._buffer[end : end + body], taken)
            finally:
                for descriptor in taken:
                    os.close(descriptor)
            del self._buffer[: end + body]
            yield frame

    def close(self) -> None:
        """Let go of descriptors that no frame has claimed."""
        while self._descriptors:
            os.close(self._descriptors.popleft())


def receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """What has arrived, and the descriptors that came with it; no bytes at the end of the stream."""
    room = socket.CMSG_SPACE(MAX_DESCRIPTORS * 4)
    data, ancillary, _, _ = connection.recvmsg(_RECEIVE_BYTES, room, socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    return data, list(descriptors)


def send_some(connection: socket.socket, data: memoryview, descriptors: tuple[int, ...]) -> int:
    """As many bytes as the socket takes; the descriptors go with the first of them."""
    if not descriptors:
        return connection.send(data)
    return connection.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))])


def encode_texts(values: NDArray[Any]) -> bytes:
    """A BYTES tensor as the v2 protocol's binary form: each element after its length."""
    parts: list[bytes] = []
    for value in values.reshape(-1).tolist():
        element = value if isinstance(value, bytes) else str(value).encode()
        parts += (_LENGTH.pack(len(element)), element)
    return b"".join(parts)


def decode_texts(data: bytes | bytearray | memoryview) -> NDArray[Any]:
    """The elements, in one dimension. Raises BadFrame if lengths and bytes disagree."""
    elements: list[bytes] = []
    view, position = memoryview(data), 0
    while position < len(view):
        if position + 4 > len(view):
            raise BadFrame("a BYTES tensor ends within a length")
        (length,) = _LENGTH.unpack_from(view, position)
        position += 4
        if position + length > len(view):
            raise BadFrame("a BYTES tensor ends within an element")
        elements.append(bytes(view[position : position + length]))
        position += length
    found = np.empty(len(elements), np.object_)
    found[:] = elements
    return found


def _sealed(data: bytes | NDArray[Any], size: int) -> int:
    descriptor = os.memfd_create("flatshare-tensor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(data if isinstance(data, bytes) else data.reshape(-1).view(np.uint8).data)
    written = 0
    while written < size:
        written += os.pwrite(descriptor, view[written:], written)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    return descriptor


def _unpack(head: bytes, body: bytearray, descriptors: list[int]) -> Frame:
    try:
        message = json.loads(head)
        tensors, position = [], 0
        for name, datatype, shape, size, index in message["tensors"]:
            if index is None:
                tensors.append(_array(name, datatype, shape, body[position : position + size]))
                position += size
            else:
                tensors.append(_array(name, datatype, shape, _mapped(descriptors[index], size)))
        return Frame(str(message["kind"]), dict(message["fields"]), tuple(tensors))
    except (ValueError, KeyError, TypeError, IndexError, OSError, RecursionError) as error:
        raise BadFrame(f"{type(error).__name__}: {error}") from error


def _mapped(descriptor: int, size: int) -> mmap.mmap:
    """A private, writable view: what the reader changes is its own."""
    seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    if seals & _SEALS != _SEALS or os.fstat(descriptor).st_size != size:
        raise BadFrame("shared memory that is not sealed, or of another size")
    return mmap.mmap(descriptor, size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)


def _array(name: object, datatype: object, shape: list[int], data: bytearray | mmap.mmap) -> NamedArray:
    if not isinstance(name, str) or not isinstance(datatype, str) or not all(type(n) is int and n >= 0 for n in shape):
        raise BadFrame("a tensor without a proper name, datatype and shape")
    if datatype == "BYTES":
        return NamedArray(name, datatype, decode_texts(memoryview(data)).reshape(shape))
    return NamedArray(name, datatype, np.frombuffer(data, DTYPES[datatype]).reshape(shape))
