"""Where the record of a model's versions lies: at a flatshare server, or, without one, as an object beside the artifacts."""

import time
from collections.abc import Iterator
from typing import Protocol

import msgspec

from flatshare.client.releases import whoami
from flatshare.core.errors import ReleaseConflict, UnknownTarget
from flatshare.core.ids import EndpointName
from flatshare.core.release import RECORDS, Change, ModelReleases, record_key
from flatshare.policy import release
from flatshare.policy.release import By
from flatshare.store.shelf import Object, Shelf

_TRIES = 20


class Book(Protocol):
    """`flatshare.client.releases.ServerBook` is one."""

    def find(self, model: str) -> ModelReleases | None:
        """None if no version of the model was ever deployed."""

    def all(self) -> list[ModelReleases]:
        """Every model."""

    def change(self, model: str, change: Change, *, why: str = "", kind: str = "", endpoint: str = "") -> ModelReleases:
        """What the record is afterwards. Raises ReleaseConflict, UnknownTarget or BadInput."""


class StoreBook:
    """Records in an object store that can replace an object on a condition, as S3 does: for endpoints on AWS.

    `flatshare.client.aws_releases` reads them for callers.
    """

    def __init__(self, base: str) -> None:
        self._shelf = Shelf(base)

    def find(self, model: str) -> ModelReleases | None:
        found = self._shelf.get(record_key(model))
        return None if found is None else msgspec.json.decode(found.data, type=ModelReleases)

    def all(self) -> list[ModelReleases]:
        return list(self._every())

    def change(self, model: str, change: Change, *, why: str = "", kind: str = "", endpoint: str = "") -> ModelReleases:
        """Read, change, and write unless somebody was faster; then again."""
        for _ in range(_TRIES):
            found = self._shelf.get(record_key(model))
            before = self._begun(model, kind, endpoint) if found is None else msgspec.json.decode(found.data, type=ModelReleases)
            after = release.apply(before, change, By(whoami(), round(time.time(), 3), why))
            if after is before or self._write(model, after, found):
                return after
        raise ReleaseConflict(f"others change {model} all the time: try again")

    def _write(self, model: str, releases: ModelReleases, before: Object | None) -> bool:
        data = msgspec.json.encode(releases)
        key = record_key(model)
        return self._shelf.put_new(key, data) if before is None else self._shelf.replace(key, data, before.tag)

    def _every(self) -> Iterator[ModelReleases]:
        for key in sorted(self._shelf.sizes(RECORDS)):
            found = self._shelf.get(key)
            if found is not None:
                yield msgspec.json.decode(found.data, type=ModelReleases)

    def _begun(self, model: str, kind: str, endpoint: str) -> ModelReleases:
        if not kind or not endpoint:
            raise UnknownTarget(f"no version of {model} was ever deployed below {self._shelf.uri}")
        return ModelReleases(model, kind, EndpointName(endpoint))
