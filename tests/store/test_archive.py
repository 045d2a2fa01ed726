import gzip
import io
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from flatshare.core.errors import BadPackage, DiskFull, UnsafeArchive
from flatshare.core.settings import StoreLimits
from flatshare.store import archive
from flatshare.store.archive import ArchiveKind, checkpoint_folder, unpack

from .conftest import full_disk_at, tree_of

LIMITS = StoreLimits()
KINDS: tuple[ArchiveKind, ...] = ("tar", "tar.gz", "tar.zst")
PACK: dict[ArchiveKind, Callable[[bytes], bytes]] = {
    "tar": bytes,
    "tar.gz": lambda data: gzip.compress(data, 1),
    "tar.zst": lambda data: zstandard.ZstdCompressor(write_checksum=True).compress(data),
}
END = bytes(1024)


def header(name: str, *, size: int = 0, kind: bytes = tarfile.REGTYPE, **fields: object) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    for key, value in fields.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def file(name: str, body: bytes = b"x") -> bytes:
    return header(name, size=len(body)) + padded(body)


def padded(body: bytes) -> bytes:
    return body + bytes(-len(body) % 512)


def pax(records: dict[str, str], kind: bytes = tarfile.XHDTYPE) -> bytes:
    body = b"".join(_record(f" {key}={value}\n".encode("utf-8", "surrogateescape")) for key, value in records.items())
    return header("pax", size=len(body), kind=kind) + padded(body)


def _record(tail: bytes) -> bytes:
    length = len(tail)
    while len(str(length)) + len(tail) != length:
        length += 1
    return str(length).encode() + tail


def patched(block: bytes, offset: int, value: bytes) -> bytes:
    """The header with other bytes in a field, its checksum put right."""
    changed = bytearray(block)
    changed[offset : offset + len(value)] = value
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed[:512])
    return bytes(changed)


UNSAFE = {
    "absolute path": file("/etc/passwd"),
    "parent folder": file("../x"),
    "parent folder inside": file("a/b/../../../x"),
    "parent folder by a long name": header("././@LongLink", size=6, kind=tarfile.GNUTYPE_LONGNAME) + padded(b"a/../b") + file("a"),
    "parent folder by pax": pax({"path": "../x"}) + file("a"),
    "backslash": file("..\\x"),
    "drive": file("C:/x"),
    "NUL in a pax path": pax({"path": "a\0/../b"}) + file("a"),
    "control character": file("a\nb"),
    "name that is not UTF-8": file("a\udcff"),
    "name of 256 bytes": pax({"path": "n" * 256}) + file("a"),
    "path of 1025 bytes": pax({"path": "/".join(["n" * 204] * 5) + "/n"}) + file("a"),
    "file without a name": file("."),
    "symbolic link": header("a", kind=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "hard link": header("a", kind=tarfile.LNKTYPE, linkname="b"),
    "character device": header("a", kind=tarfile.CHRTYPE),
    "block device": header("a", kind=tarfile.BLKTYPE),
    "fifo": header("a", kind=tarfile.FIFOTYPE),
    "contiguous file": header("a", kind=tarfile.CONTTYPE),
    "GNU sparse file": header("a", kind=tarfile.GNUTYPE_SPARSE),
    "GNU long link": header("././@LongLink", size=6, kind=tarfile.GNUTYPE_LONGLINK) + padded(b"target"),
    "GNU volume": header("a", kind=b"V"),
    "GNU continued file": header("a", kind=b"M"),
    "Solaris header": header("a", kind=tarfile.SOLARIS_XHDTYPE),
    "unknown kind": header("a", kind=b"Z"),
    "pax sparse file": pax({"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}) + file("a"),
    "file twice": file("a") + file("a"),
    "file twice, written otherwise": file("a/b") + file("./a//b"),
    "folder twice": header("a", kind=tarfile.DIRTYPE) * 2,
    "file, then folder": file("a") + header("a", kind=tarfile.DIRTYPE),
    "folder, then file": header("a", kind=tarfile.DIRTYPE) + file("a"),
    "implied folder, then file": file("a/b") + file("a"),
    "file used as a folder": file("a") + file("a/b"),
    "negative size": patched(header("a"), 124, b"\xff" * 12),
    "pax size that differs": pax({"size": "512"}) + file("a"),
    "pax size that is negative": pax({"size": "-512"}) + file("a"),
    "pax size that is none": pax({"size": "²"}) + file("a"),
    "pax size of many digits": pax({"size": "9" * 5000}) + file("a"),
    "pax header of a gibibyte": header("pax", size=2**30, kind=tarfile.XHDTYPE),
    "long name of a gibibyte": header("././@LongLink", size=2**30, kind=tarfile.GNUTYPE_LONGNAME),
    "chain of pax headers": pax({"comment": "x"}) * 2000 + file("a"),
    "path for all members": pax({"path": "x"}, tarfile.XGLTYPE) + file("a"),
    "more than may be unpacked": header("a", size=LIMITS.max_unpacked_bytes),
}
DAMAGED = {
    "no member": b"",
    "only a folder": header("a", kind=tarfile.DIRTYPE),
    "damaged header": file("a") + b"\1" + file("b")[1:],
    "declared size too small": header("a", size=8) + b"x" * 1024 + file("b"),
    "declared size too large": header("a", size=4096) + b"x" * 512 + file("b"),
    "damaged pax header": header("pax", size=20, kind=tarfile.XHDTYPE) + padded(b"99999 path=x\n") + file("a"),
    "pax record of length nought": header("pax", size=9, kind=tarfile.XHDTYPE) + padded(b"0 path=x\n") + file("a"),
    "pax record without an end": header("pax", size=9, kind=tarfile.XHDTYPE) + padded(b"9 path=xy") + file("a"),
}


def attempt(folder: Path, data: bytes, kind: ArchiveKind = "tar", limits: StoreLimits = LIMITS) -> Path:
    packed = folder / "packed"
    packed.write_bytes(data)
    unpack(packed, folder / "into", kind, limits)
    return folder / "into"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", UNSAFE)
def test_a_hostile_archive_is_refused_and_leaves_nothing(name: str, kind: ArchiveKind, tmp_path: Path) -> None:
    with pytest.raises(UnsafeArchive, match=r"^The "):
        attempt(tmp_path, PACK[kind](UNSAFE[name] + END), kind)
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_archive_is_refused_and_leaves_nothing(name: str, kind: ArchiveKind, tmp_path: Path) -> None:
    with pytest.raises(BadPackage, match=r"^The archive") as caught:
        attempt(tmp_path, PACK[kind](DAMAGED[name] + END), kind)
    assert not isinstance(caught.value, UnsafeArchive)
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_cut_short_anywhere_is_refused(kind: ArchiveKind, tmp_path: Path) -> None:
    # Incompressible, so that each cut takes content away. Behind the last member's content stands only the mark of the end.
    content = file("a", os.urandom(3000)) + file("b", os.urandom(3000))
    whole = PACK[kind](content + END)
    for keep in range(0, len(whole) - len(END) + 1 if kind == "tar" else len(whole) - 8, 311):
        with pytest.raises(BadPackage, match=r"cut short|damaged"):
            attempt(tmp_path, whole[:keep], kind)


def test_an_archive_that_lost_its_tail_of_whole_members_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadPackage, match="cut short"):
        attempt(tmp_path, file("a"))


def test_a_wrong_checksum_after_the_last_member_is_noticed(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(file("a") + END))
    packed[-8] ^= 1
    with pytest.raises(BadPackage, match="CRC"):
        attempt(tmp_path, bytes(packed), "tar.gz")


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_of_html_is_no_archive(kind: ArchiveKind, tmp_path: Path) -> None:
    with pytest.raises(BadPackage, match="Pack it again"):
        attempt(tmp_path, b"<!doctype html><title>Not found</title>" * 50, kind)


def test_a_zstd_frame_with_a_window_of_two_gibibytes_is_refused(tmp_path: Path) -> None:
    frame = b"\x28\xb5\x2f\xfd" + b"\x00" + bytes([(31 - 10) << 3]) + b"\x01\x00\x00"
    with pytest.raises(BadPackage, match="memory"):
        attempt(tmp_path, frame, "tar.zst")


@pytest.mark.parametrize("kind", ["tar.gz", "tar.zst"])
def test_a_bomb_is_stopped_by_its_ratio_long_before_its_end(kind: ArchiveKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_RATIO_COUNTS_FROM_BYTES", 2**20)  # 64 MiB of zeros would only cost time here
    with pytest.raises(UnsafeArchive, match="200 times"):
        attempt(tmp_path, PACK[kind](file("a", bytes(16 * 2**20)) + END), kind)


def test_a_bomb_behind_the_last_member_is_stopped_too(tmp_path: Path) -> None:
    limits = StoreLimits(max_unpacked_bytes=2**20)
    with pytest.raises(UnsafeArchive, match="limit"):
        attempt(tmp_path, gzip.compress(file("a") + bytes(4 * 2**20)), "tar.gz", limits)


def test_a_small_archive_may_expand_as_it_likes(tmp_path: Path) -> None:
    data = gzip.compress(file("a", bytes(2**20)) + END)
    assert len(data) * 200 < 2**20
    assert tree_of(attempt(tmp_path, data, "tar.gz")) == {"a": bytes(2**20)}


@pytest.mark.parametrize("data", [b"".join(file(f"f{i}") for i in range(4)), file("a/b/c/d")])
def test_files_and_the_folders_that_they_imply_are_counted(data: bytes, tmp_path: Path) -> None:
    attempt(tmp_path, data + END, limits=StoreLimits(max_files=4)).rename(tmp_path / "four are admitted")
    with pytest.raises(UnsafeArchive, match="more than 3 files"):
        attempt(tmp_path, data + END, limits=StoreLimits(max_files=3))


def test_owners_and_permissions_of_the_archive_do_not_count(tmp_path: Path) -> None:
    folder = header("bin", kind=tarfile.DIRTYPE, mode=0o1777, uid=0)
    into = attempt(tmp_path, folder + header("bin/run", size=0, mode=0o6777, uname="root") + END)
    assert [(path.stat().st_mode & 0o7777, path.stat().st_uid) for path in (into, into / "bin", into / "bin" / "run")] == [
        (0o755, os.getuid()),
        (0o755, os.getuid()),
        (0o644, os.getuid()),
    ]


def test_a_global_header_as_git_archive_writes_it_is_read_over(tmp_path: Path) -> None:
    data = pax({"comment": "0" * 40}, tarfile.XGLTYPE) + pax({"mtime": "1.5", "path": "a/b"}) + file("x") + END
    assert tree_of(attempt(tmp_path, data)) == {"a": None, "a/b": b"x"}


def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "packed").write_bytes(file("a", bytes(2**20)) + END)
    with full_disk_at(2**19), pytest.raises(DiskFull, match="free some space"):
        unpack(tmp_path / "packed", tmp_path / "into", "tar", LIMITS)
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]


@pytest.mark.slow
def test_a_killed_unpack_leaves_nothing_that_looks_complete(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "packed")
    code = (
        "import sys, pathlib; from flatshare.store.archive import unpack; from flatshare.core.settings import StoreLimits;"
        "here = pathlib.Path(sys.argv[1]); unpack(here / 'packed', here / 'into', 'tar', StoreLimits())"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment)
    with child, (tmp_path / "packed").open("wb", buffering=0) as pipe:
        pipe.write(header("a", size=4 * 2**20) + bytes(3 * 2**20))  # returns when the child has read nearly all of it
        child.kill()
        assert child.wait(10) == -signal.SIGKILL
    assert not (tmp_path / "into").exists()
    assert [path.name.startswith("into.unpacking-") for path in tmp_path.iterdir() if path.name != "packed"] == [True]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["acme/config.json", "acme/1_Pooling/config.json"], "acme"),
        (["acme/config.json", "._acme"], "acme"),
        (["config.json", "onnx/model.onnx"], "."),
        (["config.json"], "."),
        (["a/config.json", "b/config.json"], "."),
    ],
)
def test_the_only_folder_of_an_archive_is_the_checkpoint(paths: list[str], expected: str, tmp_path: Path) -> None:
    into = attempt(tmp_path, b"".join(file(path) for path in paths) + END)
    assert checkpoint_folder(into) == into / expected


_names = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="/\\:"), min_size=1, max_size=60).filter(
    lambda name: name not in {".", ".."}
)
_paths = st.lists(_names, min_size=1, max_size=4).map("/".join)
_trees = st.dictionaries(_paths, st.binary(max_size=2000), min_size=1, max_size=6).filter(
    lambda tree: not any(other.startswith(f"{path}/") for path in tree for other in tree)
)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(
    tree=_trees,
    kind=st.sampled_from(KINDS),
    form=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    is_dotted=st.booleans(),
)
def test_an_honest_tree_survives_the_round_trip(tree: dict[str, bytes], kind: ArchiveKind, form: int, *, is_dotted: bool) -> None:
    packed = io.BytesIO()
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        for path, body in tree.items():
            (here / "tree" / path).parent.mkdir(parents=True, exist_ok=True)
            (here / "tree" / path).write_bytes(body)
        with tarfile.open(fileobj=packed, mode="w", format=form) as tar:
            tar.add(here / "tree", arcname="." if is_dotted else "model")
        into = attempt(here, PACK[kind](packed.getvalue()), kind)
        assert tree_of(into if is_dotted else into / "model") == tree_of(here / "tree")


_HONEST = pax({"path": "a/config.json"}) + file("x", b"{}") + header("a/b", kind=tarfile.DIRTYPE) + file("a/b/w", b"w" * 700) + END


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(
    changes=st.dictionaries(st.integers(0, len(_HONEST) - 1), st.integers(0, 255), min_size=1, max_size=4),
    is_put_right=st.booleans(),
)
def test_an_archive_with_changed_bytes_is_unpacked_inside_or_refused(changes: dict[int, int], *, is_put_right: bool) -> None:
    data = bytearray(_HONEST)
    for offset, value in changes.items():
        data[offset] = value
        if is_put_right:
            block = offset // 512 * 512
            data[block : block + 512] = patched(bytes(data[block : block + 512]), 0, b"")
    with tempfile.TemporaryDirectory() as name:
        try:
            attempt(Path(name), bytes(data))
        except BadPackage:
            assert not (Path(name) / "into").exists()
        assert {path.name for path in Path(name).iterdir()} <= {"packed", "into"}
