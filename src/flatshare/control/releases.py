"""Versions and aliases: the calls that change them, and what the gateway is told of them.

`POST /` with `X-Amz-Target: Flatshare.DescribeReleases | ListReleases | ChangeRelease`: the road of the other control calls, so that
signatures, grants, replay protection and the audit log hold for these too.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from flatshare.control.state import Rows, State
from flatshare.core import naming
from flatshare.core.clock import Clock
from flatshare.core.errors import BadInput, UnknownOperation, UnknownTarget
from flatshare.core.ids import EndpointName
from flatshare.core.release import ChangeRequest, ModelReleases, RollBack
from flatshare.policy import release
from flatshare.policy.release import By
from flatshare.telemetry.log import get_logger
from flatshare.wire.http import CALLER, Reply, Request

log = get_logger("control")
Published = Mapping[str, ModelReleases]
PREFIX = "Flatshare."
_MAX_LISTED = 10_000


class Releases:
    """Owns what is known of every model's versions. `publish` is called on the loop with all of them, each time one changes."""

    def __init__(self, state: State, clock: Clock, publish: Callable[[Published], None], *, tick_s: float) -> None:
        self._state = state
        self._clock = clock
        self._publish = publish
        self._tick_s = tick_s
        self._known: dict[str, ModelReleases] = {}
        self._operations = {"DescribeReleases": self._describe, "ListReleases": self._list, "ChangeRelease": self._change}

    async def follow(self) -> None:
        """Until cancelled: other control planes over the same database change things too."""
        while True:
            try:
                await self.refresh()
            except Exception:  # the loop's tick: a database that is away for a while must not end it
                log.exception("releases_not_read")
            await asyncio.sleep(self._tick_s)

    async def refresh(self) -> None:
        """Read what has changed since, and publish it."""
        fresh = await self._state.look(self._news)
        if fresh:
            self._learn(fresh)

    async def answer(self, request: Request) -> Reply:
        """Raises the errors of the control door."""
        operation = self._operations.get(request.header("x-amz-target").removeprefix(PREFIX))
        if operation is None:
            raise UnknownOperation(f"this is none of ours: call {', '.join(PREFIX + name for name in self._operations)}")
        output = await operation(request)
        return Reply(200, msgspec.json.encode(output), b"application/x-amz-json-1.1")

    async def end_canary(self, model: str, alias: str, version: int, why: str) -> None:
        """The automatic way back. Does nothing if that canary is over already."""
        change = RollBack(alias, only_canary=version)
        request = ChangeRequest(model=model, change=change, why=why)
        await self._apply(request, "flatshare")
        log.warning("canary_ended", model=model, alias=alias, version=version, reason=why)

    async def _describe(self, request: Request) -> Any:
        model = _decoded(request.body, _Named).model
        found = await self._state.look(lambda rows: rows.releases(model))
        if found is None:
            raise UnknownTarget(f"no version of {model[:127]} was ever deployed here")
        return found

    async def _list(self, _: Request) -> Any:
        """Without histories, by name."""
        await self.refresh()
        listed = sorted(self._known.values(), key=lambda releases: releases.model)[:_MAX_LISTED]
        return {"Releases": [msgspec.structs.replace(releases, history=()) for releases in listed]}

    async def _change(self, request: Request) -> Any:
        asked = _decoded(request.body, ChangeRequest)
        return await self._apply(asked, request.header(CALLER) or asked.who or "somebody")

    async def _apply(self, asked: ChangeRequest, who: str) -> ModelReleases:
        by = By(who[:200], round(self._clock.wall_s(), 3), asked.why)
        changed = await self._state.change(lambda rows: _changed(rows, asked, by))
        self._learn([changed])
        return changed

    def _news(self, rows: Rows) -> list[ModelReleases]:
        revisions = rows.release_revisions()
        stale = [model for model, revision in revisions.items() if model not in self._known or self._known[model].revision < revision]
        return [found for model in stale if (found := rows.releases(model)) is not None]

    def _learn(self, fresh: list[ModelReleases]) -> None:
        for releases in fresh:
            known = self._known.get(releases.model)
            if known is None or known.revision < releases.revision:  # two changes may come back in the other order
                self._known[releases.model] = releases
        self._publish(self._known)


class _Named(msgspec.Struct, frozen=True, rename="pascal", forbid_unknown_fields=True):
    model: str


def _changed(rows: Rows, asked: ChangeRequest, by: By) -> ModelReleases:
    before = rows.releases(asked.model) or _begun(asked)
    if asked.endpoint_name and (asked.endpoint_name, asked.kind) != (before.endpoint, before.kind):
        raise BadInput(f"{before.model} is a {before.kind} model of endpoint {before.endpoint}: give one of another kind another name")
    after = release.apply(before, asked.change, by)
    if after is not before:
        rows.save_releases(after)
    return after


def _begun(asked: ChangeRequest) -> ModelReleases:
    """A model that is deployed for the first time."""
    tenant, _, name = asked.model.partition("/")
    naming.model_name(tenant, name)
    if not asked.endpoint_name or not asked.kind:
        raise UnknownTarget(f"no version of {asked.model} was ever deployed here")
    return ModelReleases(asked.model, asked.kind, EndpointName(asked.endpoint_name))


def _decoded(body: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise BadInput(f"the body is not what this call takes: {error}") from error
