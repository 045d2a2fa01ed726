"""Access keys and what they are granted, in one file that its owner alone may read; changes count within a second.

The secrets in it are readable: to verify a signature the server needs the secret itself, as the signer does. Hence mode 0600, and a
file that others may read is refused.
"""

import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from flatshare.core.access import AccessKey, Grant, Principal
from flatshare.core.clock import Clock
from flatshare.core.errors import BadInput, UnknownKey
from flatshare.telemetry.log import get_logger
from flatshare.wire import json_body

log = get_logger("security")
Keys = dict[str, AccessKey]
_LOOK_EVERY_S = 1.0
_ID_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_MAX_GRANTS = 100
_MAX_PATTERNS = 100
_MAX_PATTERN = 1024


class KeyFile:
    """The file, for whoever creates and revokes keys. Writers take turns; a reader sees the old file or the new one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Keys:
        """Empty if there is no file. Raises BadInput for one that others may read, or that is not of this form."""
        try:
            with self.path.open("rb") as file:
                _require_private(self.path, os.fstat(file.fileno()))
                return _parse(file.read(), self.path)
        except FileNotFoundError:
            return {}

    def create(self, name: str, grants: tuple[Grant, ...], now_s: float, *, rate_rps: float | None = None) -> AccessKey:
        key_id = "FSKA" + "".join(secrets.choice(_ID_LETTERS) for _ in range(16))
        key = AccessKey(Principal(name, key_id, checked(name, grants)), secrets.token_urlsafe(30), now_s, rate_rps)
        with self._changed() as keys:
            keys[key_id] = key
        return key

    def revoke(self, key_id: str) -> AccessKey:
        """Raises UnknownKey."""
        with self._changed() as keys:
            if key_id not in keys:
                raise UnknownKey(f"there is no access key {key_id}: see flatshare keys list")
            return keys.pop(key_id)

    @contextmanager
    def _changed(self) -> Iterator[Keys]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            keys = self.read()
            yield keys
            fresh = self.path.with_suffix(".new")
            fresh.unlink(missing_ok=True)
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(_render(keys))
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self.path)


class KeyRing:
    """The keys as the server knows them. Used on one event loop; `on_change` is called after they were read anew."""

    def __init__(self, file: KeyFile, clock: Clock, on_change: Callable[[], None]) -> None:
        self._file = file
        self._clock = clock
        self._on_change = on_change
        self._mark = _mark(file.path)
        self._keys = file.read()
        self._looked_s = clock.monotonic_s()

    @property
    def count(self) -> int:
        return len(self._keys)

    def key(self, key_id: str) -> AccessKey:
        """Raises UnknownKey."""
        if self._clock.monotonic_s() - self._looked_s >= _LOOK_EVERY_S:
            self._look()
        try:
            return self._keys[key_id]
        except KeyError:
            raise UnknownKey("The security token included in the request is invalid.") from None

    def _look(self) -> None:
        """Has the file changed? A stat costs two microseconds, and nobody has to be told to reload."""
        self._looked_s = self._clock.monotonic_s()
        mark = _mark(self._file.path)
        if mark == self._mark:
            return
        self._mark = mark
        try:
            self._keys = self._file.read()
        except (BadInput, OSError) as error:
            log.error("keys_unreadable", path=str(self._file.path), reason=str(error), consequence="the keys read before stay in force")
            return
        self._on_change()
        log.info("keys_read", count=len(self._keys))


def checked(name: str, grants: tuple[Grant, ...]) -> tuple[Grant, ...]:
    """The grants, if they are of a size that a check of every request can bear. Raises BadInput."""
    if not name or len(name) > 64 or not name.isprintable() or name != name.strip():
        raise BadInput("a key's name must have 1 to 64 printable characters: it stands in the audit log and in AWS's sentence")
    if not 1 <= len(grants) <= _MAX_GRANTS:
        raise BadInput(f"a key must have 1 to {_MAX_GRANTS} grants")
    for grant in grants:
        for patterns in (grant.actions, grant.endpoints, grant.target_models):
            if not 1 <= len(patterns) <= _MAX_PATTERNS or not all(0 < len(pattern) <= _MAX_PATTERN for pattern in patterns):
                raise BadInput(f"a grant must list 1 to {_MAX_PATTERNS} patterns of 1 to {_MAX_PATTERN} characters each")
    return grants


def parse_grants(fields: object) -> tuple[Grant, ...]:
    """`[{"actions": […], "endpoints": […], "target_models": […]}, …]`; what is left out is all. Raises BadInput."""
    if not isinstance(fields, list):
        raise BadInput('a policy is a list of grants: [{"actions": […], "endpoints": […], "target_models": […]}]')
    return tuple(_grant(grant) for grant in fields)


def render_grants(grants: tuple[Grant, ...]) -> list[dict[str, list[str]]]:
    return [{"actions": [*g.actions], "endpoints": [*g.endpoints], "target_models": [*g.target_models]} for g in grants]


def _grant(fields: object) -> Grant:
    known = ("actions", "endpoints", "target_models")
    if not isinstance(fields, dict) or "actions" not in fields or not set(fields) <= set(known):
        raise BadInput("a grant has actions, and may have endpoints and target_models; nothing else")
    return Grant(*(_patterns(fields, name) for name in known))


def _patterns(fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = fields.get(name, ["*"])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise BadInput(f"{name} must be a list of patterns, such as ['acme/*']")
    return tuple(value)


def _require_private(path: Path, status: os.stat_result) -> None:
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise BadInput(f"{path} holds secrets and may be read by others than its owner: chmod 600 it")


def _mark(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_ino, status.st_mtime_ns, status.st_size)


def _render(keys: Keys) -> bytes:
    rows = [_row(key) for key in keys.values()]
    return orjson.dumps({"version": 1, "keys": rows}, option=orjson.OPT_INDENT_2)


def _row(key: AccessKey) -> dict[str, object]:
    principal = key.principal
    grants = render_grants(principal.grants)
    row = {"id": principal.key_id, "name": principal.name, "secret": key.secret, "created_s": key.created_s, "grants": grants}
    return row if key.rate_rps is None else row | {"rate_rps": key.rate_rps}


def _parse(content: bytes, path: Path) -> Keys:
    try:
        fields = json_body.parsed(content, str(path))
        if fields["version"] != 1:
            raise BadInput(f"{path} is of version {fields['version']}, this flatshare reads version 1")
        return {key.principal.key_id: key for key in map(_key, fields["keys"])}
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{path} is not a file of access keys: {error}") from error


def _key(row: Mapping[str, Any]) -> AccessKey:
    grants = checked(row["name"], parse_grants(row["grants"]))
    if not isinstance(row["id"], str) or not isinstance(row["secret"], str) or len(row["secret"]) < 16:
        raise BadInput("an access key needs an id, and a secret of at least 16 characters")
    rate_rps = row.get("rate_rps")
    if rate_rps is not None and not 0 < float(rate_rps) < float("inf"):
        raise BadInput("a key's rate_rps must be more than 0")
    principal = Principal(row["name"], row["id"], grants)
    return AccessKey(principal, row["secret"], float(row["created_s"]), None if rate_rps is None else float(rate_rps))
