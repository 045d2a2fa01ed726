"""The file of access keys, and the ring that a server keeps of it."""

import os
import stat
import threading
from pathlib import Path

import orjson
import pytest

from flatshare.core.access import Grant
from flatshare.core.clock import ManualClock
from flatshare.core.errors import BadInput, UnknownKey
from flatshare.security.keys import KeyFile, KeyRing, parse_grants, render_grants

EVERYTHING = (Grant(("*",)),)


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys.json")


def test_a_key_is_found_again_with_what_it_was_granted(file: KeyFile) -> None:
    grants = (Grant(("sagemaker:InvokeEndpoint",), ("e",), ("acme/*",)), Grant(("flatshare:*",)))
    key = file.create("acme", grants, 12.5)
    assert file.read() == {key.principal.key_id: key}
    assert key.principal.grants == grants
    assert key.secret not in repr(key)
    assert len(key.principal.key_id) == 20
    assert len(key.secret) == 40


def test_two_keys_differ_in_id_and_secret(file: KeyFile) -> None:
    one, two = file.create("acme", EVERYTHING, 0), file.create("acme", EVERYTHING, 0)
    assert one.principal.key_id != two.principal.key_id
    assert one.secret != two.secret


def test_the_file_is_its_owners_alone(file: KeyFile) -> None:
    before = os.umask(0)
    try:
        file.create("acme", EVERYTHING, 0)
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_file_that_others_may_read_is_refused(file: KeyFile, mode: int) -> None:
    file.create("acme", EVERYTHING, 0)
    file.path.chmod(mode)
    with pytest.raises(BadInput, match="chmod 600"):
        file.read()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"version": 2, "keys": []}',
        b'{"version": 1}',
        b'{"version": 1, "keys": [{}]}',
        b'{"version": 1, "keys": 1}',
    ],
)
def test_a_file_that_is_none_of_keys_is_refused(file: KeyFile, content: bytes) -> None:
    file.path.write_bytes(content)
    file.path.chmod(0o600)
    with pytest.raises(BadInput):
        file.read()


@pytest.mark.parametrize(
    "row",
    [
        {"secret": "short"},
        {"secret": 1},
        {"id": 1},
        {"name": ""},
        {"name": "a\nb"},
        {"grants": []},
        {"grants": [{"actions": []}]},
        {"grants": [{"actions": [1]}]},
        {"grants": [{"actions": ["x" * 1025]}]},
        {"grants": [{"endpoints": ["e"]}]},
        {"grants": [{"actions": ["*"], "effect": "Deny"}]},
        {"grants": [{"actions": ["*"]}] * 101},
    ],
)
def test_a_key_that_makes_no_sense_is_refused(file: KeyFile, row: dict[str, object]) -> None:
    good = {"id": "K", "name": "n", "secret": "s" * 16, "created_s": 0, "grants": [{"actions": ["*"]}]}
    file.path.write_bytes(orjson.dumps({"version": 1, "keys": [good | row]}))
    file.path.chmod(0o600)
    with pytest.raises(BadInput):
        file.read()


def test_grants_are_written_as_they_are_read() -> None:
    grants = (Grant(("a", "b"), ("c",), ("d",)), *EVERYTHING)
    assert parse_grants(render_grants(grants)) == grants


def test_what_is_revoked_is_gone_and_nothing_else(file: KeyFile) -> None:
    one, two = file.create("one", EVERYTHING, 0), file.create("two", EVERYTHING, 0)
    assert file.revoke(one.principal.key_id) == one
    assert list(file.read()) == [two.principal.key_id]
    with pytest.raises(UnknownKey, match="flatshare keys list"):
        file.revoke(one.principal.key_id)


def test_of_many_writers_at_once_none_loses_another_s_key(file: KeyFile) -> None:
    threads = [threading.Thread(target=lambda n=n: file.create(f"k{n}", EVERYTHING, 0)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key.principal.name for key in file.read().values()} == {f"k{n}" for n in range(12)}


class TestRing:
    def ring(self, file: KeyFile) -> tuple[KeyRing, ManualClock, list[int]]:
        clock, changes = ManualClock(), list[int]()
        return KeyRing(file, clock, lambda: changes.append(1)), clock, changes

    def test_keys_that_come_and_go_are_known_within_a_second(self, file: KeyFile) -> None:
        ring, clock, changes = self.ring(file)
        assert ring.count == 0
        key = file.create("acme", EVERYTHING, 0)
        with pytest.raises(UnknownKey):
            ring.key(key.principal.key_id)
        clock.advance(1.0)
        assert ring.key(key.principal.key_id) == key
        assert changes == [1]
        file.revoke(key.principal.key_id)
        clock.advance(1.0)
        with pytest.raises(UnknownKey, match="security token included in the request is invalid"):
            ring.key(key.principal.key_id)
        assert changes == [1, 1]

    def test_a_file_that_is_spoilt_leaves_the_keys_in_force_and_one_that_is_gone_none(self, file: KeyFile) -> None:
        key = file.create("acme", EVERYTHING, 0)
        ring, clock, _ = self.ring(file)
        file.path.write_bytes(b"{")
        clock.advance(1.0)
        assert ring.key(key.principal.key_id) == key
        file.path.unlink()
        clock.advance(1.0)
        with pytest.raises(UnknownKey):
            ring.key(key.principal.key_id)

    def test_a_server_does_not_start_over_a_spoilt_file(self, file: KeyFile) -> None:
        file.path.write_bytes(b"{")
        file.path.chmod(0o600)
        with pytest.raises(BadInput):
            self.ring(file)
