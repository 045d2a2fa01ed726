"""A list of files becomes a package: a folder with one artifact per part and a record of what went in. The same input gives the same bytes.

acme-intent.package/
├─ package.json      what it is, and by digest everything that it was made from: no time, no path of this machine
└─ model.tar.gz      an artifact per part: a folder, .tar or .tar.gz; or a folder with its weights in packs
.flatshare/trunks/   beside the packages: trunks, which those in packs refer to
"""

import errno
import gzip
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, cast
from uuid import uuid4

import msgspec
import orjson

from flatshare import __version__
from flatshare.core.errors import BadInput, BadPackage, DiskFull
from flatshare.core.sizes import MIB
from flatshare.package.assembly import PlannedFile, PlannedPart
from flatshare.package.packed import LISTING, read_listing, write_packed
from flatshare.package.packs import TRUNKS, Trunk

RECORD = "package.json"
_WEIGHTS = ".safetensors"
_PIECE = 4 * MIB
_GZIP_LEVEL = 1  # float32 weights shrink by 8 % at any level, and level 6 takes four times as long


class Form(StrEnum):
    """How an artifact lies in a package and under its endpoint."""

    FOLDER = "folder"
    TAR = "tar"
    TAR_GZ = "tar.gz"
    PACKS = "packs"

    @property
    def suffix(self) -> str:
        return "" if self in {Form.FOLDER, Form.PACKS} else f".{self.value}"


class PackedFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: str
    size_bytes: int
    sha256: str


class PackedPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    artifact: str
    """Its file or folder in the package."""
    sha256: str
    """Of the archive; of the list of files for a folder, as they lie in it."""
    files: tuple[PackedFile, ...]
    """As they were, before weights were put into packs."""

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


class CodeUsed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The version of inference code that went in."""

    name: str
    version: str
    sha256: str


class TrunkUsed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A trunk that the package's weights refer to."""

    id: str
    size_bytes: int


class PackageRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Provenance: with these inputs and this tool anybody makes the same package."""

    flatshare_package: int
    model: str
    kind: str
    digest: str
    """sha256 of kind, parts and every file's path and content: what makes two packages the same model."""
    form: Form
    parts: tuple[PackedPart, ...]
    layout: str
    layout_sha256: str
    variables: dict[str, str]
    sample: dict[str, object]
    tool: str
    code: CodeUsed | None = None
    answered_as: dict[str, str] = {}
    """By part, the digest of the model that answered the sample when the package was made."""
    samples: dict[str, dict[str, object]] = {}
    """By part, what it was asked, where the layout left that to the model's signature."""
    trunks: tuple[TrunkUsed, ...] = ()

    def sample_of(self, part: str) -> dict[str, object]:
        """The request that this part must answer; empty if its signature is to say."""
        return self.samples.get(part, self.sample)


@dataclass(frozen=True, slots=True)
class Origin:
    """What the record says of where a package came from."""

    model: str
    kind: str
    layout: str
    layout_sha256: str
    variables: Mapping[str, str]
    sample: Mapping[str, object]
    code: CodeUsed | None


@dataclass(frozen=True, slots=True)
class Package:
    folder: Path
    record: PackageRecord

    def artifact(self, part: PackedPart) -> Path:
        return self.folder / part.artifact

    def trunk(self, trunk: TrunkUsed) -> Path:
        """Where the trunk lies, if it was not left behind."""
        return self.folder.parent / TRUNKS / trunk.id


@dataclass(frozen=True, slots=True)
class Tried:
    """One part's answer: the digest of its model, and what it was asked."""

    digest: str
    sample: dict[str, object]


Validate = Callable[[Package], Mapping[str, Tried]]


def build_package(
    parts: tuple[PlannedPart, ...], origin: Origin, out: Path, form: Form, validate: Validate, trunk: Trunk | None = None
) -> Package:
    """Write the package, have it validated, and only then put it in its place. Raises BadPackage, DiskFull, and what `validate` raises.

    Of a package in packs, tensors that `trunk` has are referred to; it lies beside `out`.
    """
    if out.exists() and not (out / RECORD).is_file():
        raise BadPackage(f"'{out}' is there and is no package: choose another place with --out")
    with _fresh_folder(out) as fresh, _disk_errors(out):
        packed = tuple(_pack(part, fresh, form, trunk) for part in parts)
        record = PackageRecord(
            flatshare_package=1,
            model=origin.model,
            kind=origin.kind,
            digest=_digest(origin.kind, packed),
            form=form,
            parts=packed,
            layout=origin.layout,
            layout_sha256=origin.layout_sha256,
            variables=dict(origin.variables),
            sample=dict(origin.sample),
            tool=f"flatshare {__version__}",
            code=origin.code,
            trunks=_trunks_used(fresh, trunk),
        )
        tried = validate(Package(fresh, record))
        asked = {} if record.sample else {part: one.sample for part, one in tried.items()}
        record = msgspec.structs.replace(record, answered_as={part: one.digest for part, one in tried.items()}, samples=asked)
        (fresh / RECORD).write_bytes(orjson.dumps(msgspec.to_builtins(record), option=orjson.OPT_INDENT_2) + b"\n")
        _put_in_place(fresh, out)
    return Package(out, record)


def read_package(folder: Path) -> Package:
    """Raises BadPackage if it is none, or misses an artifact."""
    path = folder / RECORD
    if not path.is_file():
        raise BadPackage(f"'{folder}' is no package: it has no {RECORD}; make one with 'flatshare package'")
    try:
        record = msgspec.json.decode(path.read_bytes(), type=PackageRecord)
    except msgspec.MsgspecError as error:
        raise BadPackage(f"'{path}' cannot be read: {error}; make the package anew") from error
    package = Package(folder, record)
    for part in record.parts:
        if Path(part.artifact).name != part.artifact or not package.artifact(part).exists():
            raise BadPackage(f"'{folder}' lacks its artifact '{part.artifact}': make the package anew")
    return package


def verify_package(package: Package) -> None:
    """Raises BadPackage if an artifact is not what the record says any more."""
    if _digest(package.record.kind, package.record.parts) != package.record.digest:
        raise BadPackage(f"'{package.folder / RECORD}' was altered since the package was made: make it anew")
    for part in package.record.parts:
        path = package.artifact(part)
        if (_list_sha256(_files_in(path)) if path.is_dir() else _file_sha256(path)) != part.sha256:
            raise BadPackage(f"'{path}' was altered since the package was made: make it anew")


def _pack(part: PlannedPart, folder: Path, form: Form, trunk: Trunk | None) -> PackedPart:
    name = f"{part.name or 'model'}{form.suffix}"
    if form is Form.FOLDER:
        files = tuple(_copy(file, folder / name) for file in part.files)
        return PackedPart(part.name, name, _list_sha256(files), files)
    if form is Form.PACKS:
        _require_checkpoint(part)
        files = tuple(_take_apart(file, folder / name, trunk) for file in part.files)
        return PackedPart(part.name, name, _list_sha256(_files_in(folder / name)), files)
    with (folder / name).open("wb") as raw:
        files = _write_archive(part.files, raw, form)
    return PackedPart(part.name, name, _file_sha256(folder / name), files)


def _require_checkpoint(part: PlannedPart) -> None:
    """Code and graphs of others open files of weights themselves."""
    paths = {file.path for file in part.files}
    if "config.json" not in paths or not any(path.endswith(_WEIGHTS) for path in paths):
        raise BadInput("--form packs is for checkpoints with config.json and safetensors files: choose --form folder for this one")


def _take_apart(file: PlannedFile, folder: Path, trunk: Trunk | None) -> PackedFile:
    if not file.path.endswith(_WEIGHTS) or isinstance(file.content, bytes):
        return _copy(file, folder)
    place = folder / file.path
    place.parent.mkdir(parents=True, exist_ok=True)
    write_packed(file.content, place, trunk)
    return PackedFile(file.path, file.size_bytes, _file_sha256(file.content))


def _trunks_used(folder: Path, trunk: Trunk | None) -> tuple[TrunkUsed, ...]:
    used = {name for path in folder.rglob(f"*{LISTING}") for name in read_listing(path).trunks}
    return (TrunkUsed(trunk.id, trunk.size_bytes),) if trunk is not None and trunk.id in used else ()


def _files_in(folder: Path) -> tuple[PackedFile, ...]:
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return tuple(PackedFile(path, (folder / path).stat().st_size, _file_sha256(folder / path)) for path in paths)


def _write_archive(files: tuple[PlannedFile, ...], raw: BinaryIO, form: Form) -> tuple[PackedFile, ...]:
    """Sorted, without times, owners and the like, and with a gzip header that says nothing."""
    with _packing(raw, form) as packed, tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        return tuple(_add(tar, file) for file in files)


def _packing(raw: BinaryIO, form: Form) -> AbstractContextManager[BinaryIO]:
    if form is Form.TAR:
        return nullcontext(raw)
    return cast("AbstractContextManager[BinaryIO]", gzip.GzipFile("", "wb", _GZIP_LEVEL, raw, mtime=0))


def _add(tar: tarfile.TarFile, file: PlannedFile) -> PackedFile:
    info = tarfile.TarInfo(file.path)  # mtime 0, owner 0
    info.size, info.mode = file.size_bytes, 0o644
    with _opened(file) as source:
        reader = _Hashing(source)
        tar.addfile(info, reader)
    return PackedFile(file.path, info.size, reader.hash.hexdigest())


def _copy(file: PlannedFile, folder: Path) -> PackedFile:
    place = folder / file.path
    place.parent.mkdir(parents=True, exist_ok=True)
    with _opened(file) as source, place.open("wb") as out:
        reader = _Hashing(source)
        while piece := reader.read(_PIECE):
            out.write(piece)
    return PackedFile(file.path, place.stat().st_size, reader.hash.hexdigest())


@contextmanager
def _opened(file: PlannedFile) -> Iterator[BinaryIO]:
    with BytesIO(file.content) if isinstance(file.content, bytes) else file.content.open("rb") as source:
        yield source


class _Hashing:
    """A reader that hashes what passes through."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self.hash = sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        self.hash.update(data)
        return data


def _digest(kind: str, parts: tuple[PackedPart, ...]) -> str:
    named = [[part.name, [[file.path, file.sha256] for file in part.files]] for part in parts]
    return sha256(orjson.dumps([kind, named])).hexdigest()


def _list_sha256(files: tuple[PackedFile, ...]) -> str:
    return sha256(orjson.dumps([[file.path, file.sha256] for file in files])).hexdigest()


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        reader = _Hashing(file)
        while reader.read(_PIECE):
            pass
    return reader.hash.hexdigest()


@contextmanager
def _fresh_folder(out: Path) -> Iterator[Path]:
    """A folder beside the place, gone again unless it was put there."""
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = out.with_name(f".{out.name}.{uuid4().hex}")
    fresh.mkdir()
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _put_in_place(fresh: Path, out: Path) -> None:
    if out.exists():
        old = out.with_name(f".{out.name}.{uuid4().hex}")
        out.rename(old)
        fresh.rename(out)
        shutil.rmtree(old)
    else:
        fresh.rename(out)


@contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:  # the last of a process whose files may not grow (ulimit -f)
            raise DiskFull(f"there is no room for the package at '{out}': free some, or choose another place with --out") from error
        raise BadPackage(f"the package cannot be made: {error}") from error
