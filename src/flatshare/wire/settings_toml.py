"""The file of settings: TOML ⇄ data. What is not understood stops the start: a typo must not become a silent default.

[memory]                     how models stay in memory            core/settings.py, CacheSettings
[queue]                      who waits, and how long              QueueSettings
[disk]                       the way from the store to the disk   DiskSettings
[tenants.NAME]               shares of one tenant                 TenantSettings; [tenants.default] for all others
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from flatshare.core.errors import BadInput
from flatshare.core.ids import Tenant
from flatshare.core.settings import CacheSettings, DiskSettings, QueueSettings, SharingSettings, TenantSettings
from flatshare.core.sizes import parse_size

Section = TypeVar("Section", CacheSettings, QueueSettings, DiskSettings, TenantSettings)
_SHARES = {"scratch_share", "recycle_share", "ahead_share"}
_ABOVE_ZERO = {"weight", "parallel_loads", "deadline_ms", "ttl_s", "parallel_fetches", "ahead_share", "prefetch_every_s"}
_BYTES = "_bytes"


def parse(text: str) -> SharingSettings:
    """Raises BadInput with a sentence that names the key."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"the file of settings is not TOML: {error}") from error
    _require_known(tree, {"memory", "queue", "disk", "tenants"}, "the file of settings")
    tenants = _table(tree.get("tenants", {}), "[tenants]")
    settings = SharingSettings(
        memory=_section(CacheSettings, tree.get("memory", {}), "[memory]"),
        queue=_section(QueueSettings, tree.get("queue", {}), "[queue]"),
        disk=_section(DiskSettings, tree.get("disk", {}), "[disk]"),
        tenants={Tenant(name): _section(TenantSettings, table, f"[tenants.{name}]") for name, table in tenants.items()},
    )
    _require_pattern(settings.memory.tenant_pattern)
    if settings.disk.bandwidth_bytes == 0:
        raise BadInput("'bandwidth' in [disk] must be above zero")
    for name, tenant in settings.tenants.items():
        if tenant.ceiling_bytes is not None and tenant.ceiling_bytes < tenant.floor_bytes:
            raise BadInput(f"[tenants.{name}] has a floor above its ceiling")
    return settings


def _section(kind: type[Section], found: object, where: str) -> Section:
    """Sizes are written like "2GiB" and their keys without `_bytes`."""
    table = _table(found, where)
    hints = get_type_hints(kind)
    names = {field.name.removesuffix(_BYTES): field.name for field in fields(kind)}
    _require_known(table, set(names), where)
    return kind(**{names[key]: _value(value, names[key], hints[names[key]], f"'{key}' in {where}") for key, value in table.items()})


def _value(value: Any, name: str, hint: Any, where: str) -> Any:
    if name.endswith(_BYTES):
        return _size(value, where)
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise BadInput(f"{where} must be one of {', '.join(map(repr, get_args(hint)))}, not {value!r}")
        return value
    if hint == tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise BadInput(f"{where} must be a list of texts")
        return tuple(value)
    if hint is str:
        if not isinstance(value, str):
            raise BadInput(f"{where} must be a text")
        return value
    return _number(value, name, hint, where)


def _number(value: Any, name: str, hint: Any, where: str) -> float:
    is_whole = int in (hint, *get_args(hint))
    if isinstance(value, bool) or not isinstance(value, int if is_whole else int | float):
        raise BadInput(f"{where} must be a {'whole ' if is_whole else ''}number, not {value!r}")
    if value < 0 or (value == 0 and name in _ABOVE_ZERO):
        raise BadInput(f"{where} must be above zero")
    if name in _SHARES and value >= 1:
        raise BadInput(f"{where} is a share: it must be below 1")
    return value if is_whole else float(value)


def _size(value: Any, where: str) -> int:
    try:
        return parse_size(str(value))
    except ValueError as error:
        raise BadInput(f"{where}: {error}") from error


def _table(found: object, where: str) -> Mapping[str, Any]:
    if not isinstance(found, dict):
        raise BadInput(f"{where} must be a table")
    return found


def _require_known(table: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in table:
        if key not in known:
            near = get_close_matches(key, known, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"it knows {', '.join(sorted(known))}"
            raise BadInput(f"{where} has no key '{key}': {hint}")


def _require_pattern(pattern: str) -> None:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise BadInput(f"'tenant_pattern' in [memory] is not a regular expression: {error}") from error
    if groups != 1:
        raise BadInput(f"'tenant_pattern' in [memory] must have one group, the tenant: it has {groups}")
