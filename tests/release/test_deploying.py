"""Packages become versions behind an endpoint: done again, by several at once, after an interruption, with an altered artifact."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest

from flatshare.bench.server import RunningServer
from flatshare.client import Models
from flatshare.core.errors import BadPackage, CallFailed, FlatshareError, ReleaseConflict, StoreUnavailable, UnknownTarget
from flatshare.core.release import CanaryLimits, Promote, Retire, RollBack, VersionState
from flatshare.package.build import Package, read_package
from flatshare.release.deploying import Wish, deploy, difference
from flatshare.release.retiring import remove_artifacts
from flatshare.release.site import Site, flatshare_site
from flatshare.store.shelf import Shelf
from tests.e2e.checkpoints import TEXT, expected
from tests.release.conftest import Packages

pytestmark = pytest.mark.slow


def _source(package: Package) -> Path:
    return package.folder.parent / "source"


def _require_live(server: RunningServer, package: Package, tenant: str) -> None:
    with Models(tenant, url=server.url) as models:
        np.testing.assert_allclose(models.embed(TEXT).vectors[0], expected(_source(package)), atol=1e-5)


def test_a_package_answers_its_callers_once_it_is_deployed(server: RunningServer, site: Site, packages: Packages) -> None:
    first, second = packages("one/embedding", 1), packages("one/embedding", 2)
    done = deploy(site, first, Wish(why="first"))
    assert (done.version, done.is_new_version, done.endpoint) == (1, True, "flatshare-embedding")
    _require_live(server, first, "one")
    assert deploy(site, second, Wish()).version == 2
    _require_live(server, second, "one")


def test_a_second_time_nothing_is_sent_and_nothing_changes(site: Site, packages: Packages) -> None:
    package = packages("two/embedding", 1)
    deploy(site, package, Wish())
    before = site.book.find("two/embedding")
    assert difference(site, package, Wish()).is_nothing
    again = deploy(site, package, Wish())
    assert (again.version, again.is_new_version, again.sent_bytes) == (1, False, 0)
    assert site.book.find("two/embedding") == before


def test_the_difference_says_what_would_be_done_and_does_nothing(site: Site, packages: Packages) -> None:
    package = packages("three/embedding", 1)
    found = difference(site, package, Wish())
    assert (found.version, found.is_new_version, found.alias_from, found.alias_to) == (1, True, None, 1)
    assert found.send_bytes == package.record.parts[0].size_bytes
    assert site.book.find("three/embedding") is None


def test_many_who_deploy_the_same_at_once_make_one_version(server: RunningServer, site: Site, packages: Packages) -> None:
    package = packages("four/embedding", 1)
    with ThreadPoolExecutor(6) as threads:
        done = list(threads.map(lambda _: deploy(site, package, Wish()), range(6)))
    assert {one.version for one in done} == {1}
    releases = site.book.find("four/embedding")
    assert releases is not None
    assert [version.state for version in releases.versions] == [VersionState.READY]
    _require_live(server, package, "four")


def test_an_upload_that_broke_off_is_gone_on_with(site: Site, packages: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    package, put = packages("five/embedding", 1), Shelf.put
    sent = list[str]()

    def put_three(shelf: Shelf, key: str, data: bytes | Path) -> None:
        if len(sent) == 3:
            raise StoreUnavailable("the line is cut")
        sent.append(key)
        put(shelf, key, data)

    with monkeypatch.context() as cut:
        cut.setattr(Shelf, "put", put_three)
        with pytest.raises(StoreUnavailable, match="the line is cut"):
            deploy(site, package, Wish())
    releases = site.book.find("five/embedding")
    assert releases is not None
    assert (releases.versions[0].state, releases.aliases) == (VersionState.UPLOADING, {})
    left = difference(site, package, Wish())
    assert not left.is_new_version
    assert 0 < left.send_bytes < package.record.parts[0].size_bytes
    done = deploy(site, package, Wish())
    assert (done.version, done.sent_bytes) == (1, left.send_bytes)


def test_other_weights_than_those_that_were_tried_are_not_promoted(site: Site, packages: Packages) -> None:
    package = packages("six/embedding", 1)
    tried_others = Package(package.folder, msgspec.structs.replace(package.record, answered_as={"": "0" * 64}))
    with pytest.raises(CallFailed, match="the package has 000000000000: what lies there was altered"):
        deploy(site, tried_others, Wish())
    releases = site.book.find("six/embedding")
    assert releases is not None
    assert (releases.versions[0].state, releases.aliases) == (VersionState.UPLOADING, {})


def test_a_package_that_was_altered_on_this_disk_is_not_deployed(site: Site, packages: Packages, tmp_path: Path) -> None:
    copy = tmp_path / "copy.package"
    shutil.copytree(packages("seven/embedding", 1).folder, copy)
    (copy / "model/config.json").write_text("{}")
    with pytest.raises(BadPackage, match="was altered"):
        deploy(site, read_package(copy), Wish())
    assert site.book.find("seven/embedding") is None


def test_a_store_that_cannot_be_written_to_leaves_neither_endpoint_nor_version(server: RunningServer, packages: Packages) -> None:
    package = packages("nowhere/embedding", 1)
    site = flatshare_site(server.url, "file:///proc/flatshare")
    with pytest.raises(UnknownTarget, match="choose another place, or mend its permissions"):
        deploy(site, package, Wish(fleet="unwritable"))
    assert site.book.find("nowhere/embedding") is None
    assert server.sagemaker.list_endpoints(NameContains="unwritable")["Endpoints"] == []


def test_a_version_on_hold_answers_only_those_who_name_it(server: RunningServer, site: Site, packages: Packages) -> None:
    first, second = packages("eight/embedding", 1), packages("eight/embedding", 2)
    deploy(site, first, Wish())
    deploy(site, second, Wish(alias=None))
    _require_live(server, first, "eight")
    with Models("eight", url=server.url, label="2") as models:
        np.testing.assert_allclose(models.embed(TEXT).vectors[0], expected(_source(second)), atol=1e-5)


def test_rolled_back_retired_and_gone(server: RunningServer, site: Site, site_folder: Path, packages: Packages) -> None:
    first, second = packages("nine/embedding", 1), packages("nine/embedding", 2)
    for package in (first, second):
        deploy(site, package, Wish())
    site.book.change("nine/embedding", RollBack(), why="worse")
    _require_live(server, first, "nine")
    with pytest.raises(ReleaseConflict, match="promote another one first"):
        site.book.change("nine/embedding", Retire(1))
    releases = site.book.change("nine/embedding", Retire(2))
    remove_artifacts(site, releases, 2)
    remove_artifacts(site, releases, 2)
    assert not list((site_folder / "flatshare-embedding").glob("nine/embedding@2/*"))
    _require_live(server, first, "nine")
    assert [event.why for event in releases.history if event.why] == ["worse"]


def test_a_hundred_switches_under_load_fail_no_call(server: RunningServer, site: Site, packages: Packages) -> None:
    first, second = packages("ten/embedding", 1), packages("ten/embedding", 2)
    for package in (first, second):
        deploy(site, package, Wish())
    vectors = [expected(_source(package)) for package in (first, second)]
    is_over, answered, failures = threading.Event(), [0, 0], list[FlatshareError]()

    def call() -> None:
        with Models("ten", url=server.url) as models:
            while not is_over.is_set():
                try:
                    vector = models.embed(TEXT).vectors[0]
                except FlatshareError as error:
                    failures.append(error)
                    continue
                [which] = [index for index, other in enumerate(vectors) if np.allclose(vector, other, atol=1e-5)]
                answered[which] += 1

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for index in range(100):
        site.book.change("ten/embedding", Promote(1 + index % 2))
    is_over.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert min(answered) > 0


def test_a_canary_that_answers_otherwise_is_taken_back_by_the_server(server: RunningServer, site: Site, packages: Packages) -> None:
    first, second = packages("eleven/embedding", 1), packages("eleven/embedding", 2)
    deploy(site, first, Wish())
    limits = CanaryLimits(min_calls=5, max_disagreement=0.2, max_slowdown=1e9)
    deploy(site, second, Wish(canary_share=0.5, limits=limits))
    with Models("eleven", url=server.url) as models:
        for _ in range(500):
            models.embed(TEXT)
            releases = site.book.find("eleven/embedding")
            if releases is not None and releases.aliases["live"].canary is None:
                break
    assert releases is not None
    assert releases.aliases["live"].version == 1
    assert releases.history[-1].who == "flatshare"
    assert "answers differed from the old version's" in releases.history[-1].why
