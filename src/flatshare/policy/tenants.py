"""Whose model is it? The first part of the target model's path, unless a pattern says otherwise."""

import re
from fnmatch import fnmatchcase

from flatshare.core.call import ModelSource
from flatshare.core.ids import NOBODY, Tenant


def target_of(source: ModelSource) -> str:
    """The target model: what remains of the address below the prefix, or its last part if the whole address is the prefix."""
    root = source.root.rstrip("/")
    below = source.uri.removeprefix(root).strip("/")
    return below or root.rsplit("/", 1)[-1]


class TenantOf:
    """The tenant of a model, by a pattern whose first group it is."""

    def __init__(self, pattern: str) -> None:
        self._pattern = re.compile(pattern)

    def __call__(self, source: ModelSource) -> Tenant:
        found = self._pattern.match(target_of(source))
        return Tenant(found[1]) if found and found[1] else NOBODY


def is_pinned(target: str, pins: tuple[str, ...]) -> bool:
    return any(fnmatchcase(target, pin) for pin in pins)
