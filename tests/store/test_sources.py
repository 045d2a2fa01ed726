import os
import py_compile
import socket
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from flatshare.core.errors import BadPackage, DiskFull, StoreUnavailable, UnknownTarget
from flatshare.core.ids import ArtifactUri
from flatshare.core.settings import StoreLimits
from flatshare.store import download, remote, sources
from flatshare.store.objects import SourceFile
from flatshare.store.sources import Artifact, fetch, probe

from .conftest import BUCKET, S3, Proxy, Seen, full_disk_at, tree_of

LIMITS = StoreLimits()
ROOT = f"s3://{BUCKET}/"
MIB = 2**20


def at(key: str, root: str = ROOT) -> Artifact:
    return probe(ArtifactUri(root + key), root=root)


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    """A place of the test's own in the bucket."""
    return f"{abs(hash(request.node.nodeid)):x}"


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """A local prefix, with one model in it."""
    model = tmp_path / "prefix" / "acme" / "query"
    (model / "1_Pooling").mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "1_Pooling" / "config.json").write_text("{ }")
    return tmp_path / "prefix"


def local(prefix: Path, target: str = "acme/query") -> Artifact:
    return at(target, f"file://{prefix}/")


class TestOnThisDisk:
    def test_a_folder_is_served_where_it_lies(self, prefix: Path, tmp_path: Path) -> None:
        artifact = local(prefix)
        assert (artifact.kind, artifact.size_bytes) == ("directory", 5)
        assert [(file.relative_path, file.size_bytes) for file in artifact.files] == [
            ("1_Pooling/config.json", 3),
            ("config.json", 2),
        ]
        assert fetch(artifact, tmp_path / "into", LIMITS) == prefix / "acme" / "query"
        assert not (tmp_path / "into").exists()

    def test_slashes_at_the_ends_make_no_difference(self, prefix: Path) -> None:
        uri = ArtifactUri(f"file://{prefix}/acme/query/")
        assert probe(uri, root=f"file://{prefix}").files == local(prefix).files
        assert probe(uri, root=uri).files == local(prefix).files
        assert probe(uri, root="file:///").files == local(prefix).files

    def test_the_version_changes_with_the_content_and_only_then(self, prefix: Path) -> None:
        before = local(prefix).version
        assert local(prefix).version == before
        (prefix / "acme/query/config.json").write_text("[]")
        assert local(prefix).version != before

    def test_hidden_files_are_not_part_of_a_model(self, prefix: Path) -> None:
        before = local(prefix)
        (prefix / "acme/query/.git").mkdir()
        (prefix / "acme/query/.git/HEAD").write_text("x")
        (prefix / "acme/query/.DS_Store").write_text("x")
        assert local(prefix) == before

    def test_what_an_interpreter_leaves_beside_its_code_makes_no_new_version(self, prefix: Path) -> None:
        (prefix / "acme/query/model.py").write_text("x = 1")
        before = local(prefix)
        py_compile.compile(str(prefix / "acme/query/model.py"))
        assert (prefix / "acme/query/__pycache__").is_dir()
        assert local(prefix) == before

    def test_links_within_the_prefix_are_followed(self, prefix: Path, tmp_path: Path) -> None:
        (prefix / "shared").mkdir()
        (prefix / "shared" / "weights").write_text("weights")
        (prefix / "acme/query/weights").symlink_to("../../shared/weights")
        (prefix / "acme/query/shared").symlink_to(prefix / "shared")
        (prefix / "latest").symlink_to("acme/query")
        artifact = local(prefix, "latest")
        assert {file.relative_path for file in artifact.files} >= {"weights", "shared/weights"}
        assert fetch(artifact, tmp_path / "into", LIMITS) == prefix / "acme/query"

    @pytest.mark.parametrize("link", ["acme/query/config", "acme/query/folder", "acme/other", "acme/packed.tar"])
    def test_a_link_out_of_the_prefix_is_refused(self, link: str, prefix: Path, tmp_path: Path) -> None:
        outside = tmp_path / "prefix-of-another"  # begins as the prefix does
        outside.mkdir()
        (outside / "secret").write_text("x")
        (prefix / link).symlink_to(outside if link.endswith(("folder", "other")) else outside / "secret")
        with pytest.raises(UnknownTarget, match="outside of the endpoint's prefix"):
            local(prefix, "acme/query" if "query" in link else link)

    @pytest.mark.parametrize("target", ["../x", "acme/../../x", "acme/./query", "acme//query", "/etc", ".."])
    def test_a_target_that_is_no_path_below_the_prefix_is_refused(self, target: str, prefix: Path) -> None:
        with pytest.raises(UnknownTarget, match="outside of the endpoint's prefix"):
            local(prefix, target)

    def test_a_prefix_ends_at_a_slash(self, prefix: Path) -> None:
        with pytest.raises(UnknownTarget, match="outside of the endpoint's prefix"):
            probe(ArtifactUri(f"file://{prefix}/acme/query"), root=f"file://{prefix}/acme/q")

    @pytest.mark.parametrize("target", ["acme/none", "acme/query/config.json/x", "empty"])
    def test_what_is_missing_is_named(self, target: str, prefix: Path) -> None:
        (prefix / "empty").mkdir()
        with pytest.raises(UnknownTarget, match=f"Nothing lies at 'file://.*/{target}'"):
            local(prefix, target)

    def test_a_name_with_control_characters_is_refused(self, prefix: Path) -> None:
        with pytest.raises(UnknownTarget, match="control characters"):
            local(prefix, "acme\0")

    def test_a_file_of_no_known_kind_is_refused(self, prefix: Path) -> None:
        with pytest.raises(BadPackage, match=r"neither a folder nor an archive"):
            local(prefix, "acme/query/config.json")

    @pytest.mark.parametrize("is_fifo", [True, False])
    def test_a_fifo_or_a_link_to_nowhere_is_refused(self, is_fifo: bool, prefix: Path) -> None:
        path = prefix / "acme/query/odd"
        os.mkfifo(path) if is_fifo else path.symlink_to("nowhere")
        with pytest.raises(BadPackage, match="'odd' in"):
            local(prefix)

    def test_folders_may_be_nested_four_deep(self, prefix: Path) -> None:
        deep = prefix / "acme/query/1/2/3/4"
        deep.mkdir(parents=True)
        (deep / "file").write_text("x")
        assert "1/2/3/4/file" in {file.relative_path for file in local(prefix).files}
        (deep / "5").mkdir()
        (deep / "5" / "file").write_text("x")
        with pytest.raises(BadPackage, match="more than 4 deep"):
            local(prefix)

    def test_a_circle_of_links_ends(self, prefix: Path) -> None:
        (prefix / "acme/query/circle").symlink_to(".")
        with pytest.raises(BadPackage, match="more than 4 deep"):
            local(prefix)

    def test_a_folder_of_too_many_files_is_refused(self, prefix: Path) -> None:
        uri = ArtifactUri(f"file://{prefix}/acme/query")
        assert len(probe(uri, root=uri, limits=StoreLimits(max_files=2)).files) == 2
        with pytest.raises(BadPackage, match="more than 1 files"):
            probe(uri, root=uri, limits=StoreLimits(max_files=1))

    def test_an_archive_is_unpacked_once(self, prefix: Path, tmp_path: Path) -> None:
        pack(prefix / "acme/query", prefix / "query.tar.gz", "query")
        artifact = local(prefix, "query.tar.gz")
        first = fetch(artifact, tmp_path / "into", LIMITS)
        assert tree_of(first) == tree_of(prefix / "acme/query")
        (prefix / "query.tar.gz").unlink()
        assert fetch(artifact, tmp_path / "into", LIMITS) == first

    def test_an_archive_that_changed_since_the_probe_is_not_taken_for_it(self, prefix: Path, tmp_path: Path) -> None:
        pack(prefix / "acme/query", prefix / "query.tar", "query")
        artifact = local(prefix, "query.tar")
        with (prefix / "query.tar").open("ab") as file:
            file.write(b"\0")
        with pytest.raises(StoreUnavailable, match="changed"):
            fetch(artifact, tmp_path / "into", LIMITS)

    def test_what_a_killed_unpack_left_is_cleared_away(self, prefix: Path, tmp_path: Path) -> None:
        pack(prefix / "acme/query", prefix / "query.tar", "query")
        artifact = local(prefix, "query.tar")
        leftover = tmp_path / "into" / artifact.version[:32] / "unpacked.unpacking-killed"
        leftover.mkdir(parents=True)
        fetch(artifact, tmp_path / "into", LIMITS)
        assert not leftover.exists()

    def test_ten_files_are_probed_at_once(self, prefix: Path) -> None:
        for number in range(8):
            (prefix / "acme/query" / f"file{number}").write_text("x")
        assert min(self.times(prefix)) < 0.002  # measured: 0.2 ms; the margin is for a busy machine

    def times(self, prefix: Path) -> Iterator[float]:
        for _ in range(10):
            start_s = time.perf_counter()
            local(prefix)
            yield time.perf_counter() - start_s


@pytest.mark.parametrize("uri", ["acme/query", "https://x/y", "memory:///x", "s3:/b/x", ""])
def test_a_uri_of_no_store_is_refused(uri: str) -> None:
    with pytest.raises(UnknownTarget, match="names no store"):
        probe(ArtifactUri(uri), root=uri)


def test_a_prefix_in_another_store_is_no_prefix() -> None:
    with pytest.raises(UnknownTarget, match="outside of the endpoint's prefix"):
        probe(ArtifactUri("s3://bucket/x"), root="gs://bucket/")


class TestFromS3:
    def test_a_folder_comes_over_whole(self, s3: S3, key: str, tmp_path: Path) -> None:
        wanted = {"config.json": b"{}", "onnx/model.onnx": os.urandom(3 * MIB), "empty": b""}
        for path, body in {**wanted, ".cache/x": b"x", "onnx/.hidden": b"x", "1/__pycache__/model.pyc": b"x"}.items():
            s3.put(f"{key}/{path}", body)
        s3.put(f"{key}-of-another/config.json", b"x")
        artifact = at(key)
        assert (artifact.kind, artifact.size_bytes) == ("directory", 3 * MIB + 2)
        folder = fetch(artifact, tmp_path, LIMITS)
        assert tree_of(folder) == {**wanted, "onnx": None}

    @pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tgz"])
    def test_an_archive_comes_over_unpacked(self, suffix: str, s3: S3, key: str, prefix: Path, tmp_path: Path) -> None:
        pack(prefix / "acme/query", tmp_path / f"packed.{suffix}", "query")
        s3.put(f"{key}.{suffix}", (tmp_path / f"packed.{suffix}").read_bytes())
        artifact = at(f"{key}.{suffix}")
        assert len(artifact.files) == 1
        assert tree_of(fetch(artifact, tmp_path / "into", LIMITS)) == tree_of(prefix / "acme/query")
        assert not list((tmp_path / "into").rglob("packed"))

    def test_a_damaged_archive_is_not_kept(self, s3: S3, key: str, tmp_path: Path) -> None:
        s3.put(f"{key}.tar", b"x" * 1024)
        with pytest.raises(BadPackage, match="not a tar archive"):
            fetch(at(f"{key}.tar"), tmp_path, LIMITS)
        assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name not in {"lock", "demand"}]

    def test_what_is_here_is_not_asked_for_again(self, s3: S3, proxy: Proxy, key: str, tmp_path: Path) -> None:
        s3.put(f"{key}/a", b"a")
        s3.put(f"{key}/b", b"b")
        folder = fetch(at(key), tmp_path, LIMITS)
        (folder / "b").unlink()
        proxy.seen.clear()
        fetch(at(key), tmp_path, LIMITS)
        assert [request.path for request in proxy.seen if "list-type" not in request.path] == [f"/{BUCKET}/{key}/b"]
        assert tree_of(folder) == {"a": b"a", "b": b"b"}

    @pytest.mark.slow
    def test_an_interrupted_download_goes_on_where_it_stopped(self, s3: S3, proxy: Proxy, key: str, tmp_path: Path) -> None:
        body = os.urandom(6 * MIB)
        s3.put(f"{key}/weights", body)
        artifact = at(key)
        proxy.cut_after = 4 * MIB
        with pytest.raises(StoreUnavailable, match="try again"):
            fetch(artifact, tmp_path, LIMITS)
        assert list(tmp_path.rglob("*.part"))
        proxy.cut_after = proxy.status = None
        proxy.seen.clear()
        folder = fetch(artifact, tmp_path, LIMITS)
        (asked,) = proxy.ranges()
        assert asked is not None
        begin, end = map(int, asked.removeprefix("bytes=").split("-"))
        assert 2 * MIB <= begin <= 4 * MIB
        assert end == 6 * MIB - 1
        assert tree_of(folder) == {"weights": body}
        assert not list(tmp_path.rglob("parts/*"))

    def test_several_fetches_at_once_download_once(self, s3: S3, proxy: Proxy, key: str, tmp_path: Path) -> None:
        s3.put(f"{key}/weights", bytes(MIB))
        artifact = at(key)
        with ThreadPoolExecutor(4) as pool:
            folders = set(pool.map(lambda _: fetch(artifact, tmp_path, LIMITS), range(4)))
        assert [tree_of(folder) for folder in folders] == [{"weights": bytes(MIB)}]
        assert proxy.ranges() == [f"bytes=0-{MIB - 1}"]

    def test_a_large_object_comes_in_pieces(self, s3: S3, proxy: Proxy, key: str, tmp_path: Path, small_pieces: int) -> None:
        body = os.urandom(2 * small_pieces + 1)
        s3.put(f"{key}/weights", body)
        folder = fetch(at(key), tmp_path, LIMITS)
        assert sorted(map(str, proxy.ranges())) == ["bytes=0-65535", "bytes=131072-131072", "bytes=65536-131071"]
        assert tree_of(folder) == {"weights": body}

    def test_an_object_that_changes_between_two_pieces_is_noticed(
        self, s3: S3, proxy: Proxy, key: str, tmp_path: Path, small_pieces: int
    ) -> None:
        s3.put(f"{key}/weights", os.urandom(2 * small_pieces))
        artifact = at(key)

        def replace_before_the_second(request: Seen) -> None:
            if request.range and not request.range.startswith("bytes=0-"):
                s3.put(f"{key}/weights", os.urandom(2 * small_pieces))

        proxy.before = replace_before_the_second
        with pytest.raises(StoreUnavailable, match="changed while it was read"):
            fetch(artifact, tmp_path, LIMITS)
        assert not list(tmp_path.rglob("weights"))
        proxy.before = None
        fetch(at(key), tmp_path, LIMITS)  # its new content is another version, and begins from nothing

    def test_the_range_is_asked_for_under_the_condition_that_nothing_changed(self, s3: S3, proxy: Proxy, key: str, tmp_path: Path) -> None:
        s3.put(f"{key}/a", b"a")
        artifact = at(key)
        proxy.status = 412  # nanio does not heed If-Match; this is how a server answers that does
        with pytest.raises(StoreUnavailable, match="changed while it was read"):
            fetch(artifact, tmp_path, LIMITS)
        assert proxy.seen[-1].if_match == artifact.files[0].version

    def test_an_object_deleted_after_the_probe_is_missing(self, s3: S3, key: str, tmp_path: Path) -> None:
        s3.put(f"{key}/a", b"a")
        artifact = at(key)
        s3.client.delete_object(Bucket=BUCKET, Key=f"{key}/a")
        with pytest.raises(UnknownTarget, match=f"Nothing lies at 's3://{BUCKET}/{key}/a'"):
            fetch(artifact, tmp_path, LIMITS)

    @pytest.mark.parametrize("target", ["none", "none.tar.gz"])
    def test_a_missing_key_is_named(self, target: str, s3: S3) -> None:
        with pytest.raises(UnknownTarget, match=f"Nothing lies at 's3://{BUCKET}/{target}'"):
            at(target)

    @pytest.mark.parametrize("target", ["none", "none.tar.gz"])
    def test_a_missing_bucket_is_a_missing_target(self, target: str, s3: S3) -> None:
        with pytest.raises(UnknownTarget, match="Nothing lies at"):
            at(target, "s3://no-such-bucket/")

    def test_an_empty_bucket_is_a_missing_target(self, s3: S3) -> None:
        s3.client.create_bucket(Bucket="empty")
        with pytest.raises(UnknownTarget, match="Nothing lies at"):
            probe(ArtifactUri("s3://empty/"), root="s3://empty/")

    def test_an_object_of_no_known_kind_is_refused(self, s3: S3, key: str) -> None:
        s3.put(f"{key}.onnx", b"x")
        with pytest.raises(BadPackage, match="neither a folder nor an archive"):
            at(f"{key}.onnx")

    @pytest.mark.parametrize("suffix", ["", ".tar"])
    def test_denied_is_an_unknown_target_with_a_hint(self, suffix: str, s3: S3, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(UnknownTarget, match="check the credentials"):
            at(f"{key}{suffix}")

    def test_keys_come_from_a_profile_if_the_environment_has_none(
        self, s3: S3, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        s3.put(f"{key}/a", b"a")
        secret = os.environ["AWS_SECRET_ACCESS_KEY"]
        (tmp_path / "credentials").write_text(f"[acme]\naws_access_key_id = test-key\naws_secret_access_key = {secret}\n")
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
        monkeypatch.setenv("AWS_PROFILE", "acme")
        assert at(key).size_bytes == 1
        monkeypatch.setenv("AWS_PROFILE", "nobody")
        with pytest.raises(UnknownTarget, match="nobody"):
            at(key)

    def test_too_many_objects_are_refused(self, s3: S3, key: str) -> None:
        for name in "abc":
            s3.put(f"{key}/{name}", b"x")
        with pytest.raises(BadPackage, match="more than 2 files"):
            probe(ArtifactUri(f"{ROOT}{key}"), root=ROOT, limits=StoreLimits(max_files=2))

    def test_an_artifact_beyond_the_limit_is_refused_before_it_is_downloaded(self, s3: S3, key: str, tmp_path: Path) -> None:
        s3.put(f"{key}/a", bytes(2000))
        with pytest.raises(BadPackage, match="the limit for one model"):
            fetch(at(key), tmp_path / "into", StoreLimits(max_unpacked_bytes=1999))
        assert not (tmp_path / "into").exists()

    def test_a_full_disk_is_reported_and_the_partial_file_removed(self, s3: S3, key: str, tmp_path: Path) -> None:
        s3.put(f"{key}/a", b"a")
        s3.put(f"{key}/weights", bytes(4 * MIB))
        artifact = at(key)
        with full_disk_at(2 * MIB), pytest.raises(DiskFull, match="free some space"):
            fetch(artifact, tmp_path, LIMITS)
        assert not list(tmp_path.rglob("*.part"))
        assert not list(tmp_path.rglob("weights"))
        assert (fetch(artifact, tmp_path, LIMITS) / "weights").stat().st_size == 4 * MIB


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["", ".tar"])
class TestStoreOutOfReach:
    @pytest.mark.parametrize("status", [500, 503])
    def test_a_store_in_trouble_is_unavailable(self, suffix: str, status: int, s3: S3, proxy: Proxy, key: str) -> None:
        proxy.status = status
        with pytest.raises(StoreUnavailable, match=rf"{status}.*try again"):
            at(f"{key}{suffix}")

    def test_a_server_that_is_down_is_reported_soon(self, suffix: str, s3: S3, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
        start_s = time.monotonic()
        with pytest.raises(StoreUnavailable, match="try again"):
            at(f"{key}{suffix}")
        assert time.monotonic() - start_s < 12

    def test_a_server_that_is_silent_is_given_up(self, suffix: str, s3: S3, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(remote, "_CLIENT", {**remote._CLIENT, "read_timeout": timedelta(milliseconds=50)})  # instead of 5 s
        with socket.create_server(("127.0.0.1", 0)) as silent:
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{silent.getsockname()[1]}")
            with pytest.raises(StoreUnavailable, match="try again"):
                at(f"{key}{suffix}")


class TestListedObjects:
    """What servers list that nanio does not store: it has no empty path segments."""

    def test_the_mark_of_a_folder_is_no_file(self) -> None:
        files = [SourceFile("sub", 0, "1"), SourceFile("sub/a", 1, "2"), SourceFile("b", 0, "3")]
        assert [file.relative_path for file in sources._without_folder_marks(files, "s3://b/x")] == ["sub/a", "b"]

    def test_an_object_where_a_folder_must_be_is_refused(self) -> None:
        with pytest.raises(BadPackage, match="both as an object and as a folder"):
            sources._without_folder_marks([SourceFile("sub", 5, "1"), SourceFile("sub/a", 1, "2")], "s3://b/x")


def test_a_changed_version_of_one_file_is_another_artifact() -> None:
    file = SourceFile("a", 1, "1")
    versions = {
        sources._version([file]),
        sources._version([replace(file, version="2")]),
        sources._version([replace(file, size_bytes=2)]),
    }
    assert len(versions) == 3


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(download, "_PIECE_BYTES", 65536)
    return 65536


def pack(folder: Path, archive: Path, name: str) -> None:
    with tarfile.open(archive, "w:gz" if archive.suffix.endswith("gz") else "w") as tar:
        tar.add(folder, arcname=name)
