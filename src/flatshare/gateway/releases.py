"""Step 2b of a request's path: which version answers. An alias is looked up in memory; a canary is drawn, watched, and taken back.

Control replaces the table as a whole, so that a call sees one moment of it: no call is broken by a switch. A version goes on
answering what was sent to it.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from flatshare.core import errors
from flatshare.core.errors import BadInput, FlatshareError
from flatshare.core.ids import EndpointName, TargetModel
from flatshare.core.naming import parse_target
from flatshare.core.release import Canary, ModelReleases, Resolved
from flatshare.policy.canary import Tally, reason_to_end
from flatshare.telemetry.log import get_logger
from flatshare.wire import container
from flatshare.wire.agreement import agreement
from flatshare.wire.http import Reply

T = TypeVar("T")
log = get_logger("gateway")
EndCanary = Callable[[str, str, int, str], Awaitable[None]]
_MAX_COMPARING = 16  # answers asked for twice at a time; beyond that a call is not compared


@dataclass(slots=True)
class _Watch:
    """One canary as this gateway sees it."""

    canary: Canary
    old: Tally = field(default_factory=Tally)
    new: Tally = field(default_factory=Tally)
    has_ended: bool = False


@dataclass(frozen=True, slots=True)
class _Trial:
    """A call to an alias with a canary: where it goes, and where it would have gone."""

    model: str
    drawn: Resolved
    old: Resolved
    watch: _Watch


async def _only_here(model: str, alias: str, version: int, why: str) -> None:
    """A gateway without a control plane: the canary has ended here, and nobody writes it down."""
    log.warning("canary_ended_here", model=model, alias=alias, version=version, reason=why)


class Versions:
    """The gateway's table of versions. Used on one event loop."""

    def __init__(self, end_canary: EndCanary = _only_here) -> None:
        self.end_canary = end_canary
        """Whoever writes the way back down; control, once there is one."""
        self._known: Mapping[str, ModelReleases] = {}
        self._watches: dict[tuple[str, str], _Watch] = {}
        self._tasks = set[asyncio.Task[None]]()

    def replace(self, known: Mapping[str, ModelReleases]) -> None:
        """Take over what control published. A canary that is new, or begun anew, is watched from zero."""
        self._known = dict(known)
        wanted = {(m.model, name): alias.canary for m in known.values() for name, alias in m.aliases.items() if alias.canary is not None}
        self._watches = {
            key: self._watches[key] if key in self._watches and self._watches[key].canary == canary else _Watch(canary)
            for key, canary in wanted.items()
        }

    def known(self) -> list[ModelReleases]:
        """Every model that was deployed."""
        return list(self._known.values())

    def find(self, model: str) -> ModelReleases | None:
        return self._known.get(model)

    async def answered(
        self, endpoint: EndpointName, target: TargetModel, ask: Callable[[TargetModel], Awaitable[T]], reply_of: Callable[[T], Reply]
    ) -> T:
        """What `ask` gets of the artifact behind the target model. If a canary fails, the old version answers: callers notice nothing."""
        found = self._find(endpoint, target)
        if found is None:
            return await ask(target)
        if isinstance(found, Resolved):
            return await ask(found.target)
        started_s = time.monotonic()
        try:
            answer = await ask(found.drawn.target)
        except FlatshareError as error:
            if not found.drawn.is_canary:
                raise
            log.warning("canary_failed", model=found.model, version=found.drawn.version, reason=str(error))
            return await self._instead(found, ask, reply_of)
        reply = reply_of(answer)
        if found.drawn.is_canary and reply.status >= 300:
            return await self._instead(found, ask, reply_of)
        self._note(found, reply, time.monotonic() - started_s)
        self._compare(found, reply.body, ask, reply_of)
        return answer

    def report(self) -> list[dict[str, Any]]:
        """Every canary under way, for status reports."""
        return [
            {"model": model, "alias": alias, "version": watch.canary.version, "share": watch.canary.share, "calls": watch.new.calls,
             "errors": watch.new.errors, "old_calls": watch.old.calls, "old_errors": watch.old.errors,
             "mean_ms": round(1e3 * watch.new.mean_s, 3), "old_mean_ms": round(1e3 * watch.old.mean_s, 3),
             "compared": watch.new.compared, "differed": watch.new.differed}
            for (model, alias), watch in self._watches.items()
        ]  # fmt: skip

    async def settle(self) -> None:
        """Wait until comparisons and ways back that are under way now are done."""
        await asyncio.gather(*self._tasks)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _find(self, endpoint: EndpointName, target: TargetModel) -> Resolved | _Trial | None:
        """None: the target model is a plain key, or names nothing that we know; then the store says so."""
        labelled = parse_target(target) if "@" in target else None
        releases = self._known.get(labelled.model) if labelled else None
        if labelled is None or releases is None or releases.endpoint != endpoint:
            return None
        old = releases.resolve(labelled.label, labelled.part, 1.0)
        watch = self._watches.get((labelled.model, labelled.label))
        if old is None or watch is None or watch.has_ended:
            return old
        drawn = releases.resolve(labelled.label, labelled.part, random.random())  # noqa: S311  # a split of traffic, not a secret
        return old if drawn is None else _Trial(labelled.model, drawn, old, watch)

    async def _instead(self, trial: _Trial, ask: Callable[[TargetModel], Awaitable[T]], reply_of: Callable[[T], Reply]) -> T:
        """The old version's answer. If that fails too, it was not the canary's fault."""
        answer = await ask(trial.old.target)
        if reply_of(answer).status < 300:
            watch = trial.watch
            watch.new = replace(watch.new, calls=watch.new.calls + 1, errors=watch.new.errors + 1)
            self._judge(trial)
        return answer

    def _note(self, trial: _Trial, reply: Reply, took_s: float) -> None:
        """The caller's own mistakes say nothing of a version."""
        if reply.status >= 300 and _is_callers_mistake(reply):
            return
        is_error = reply.status >= 300
        is_warm = not is_error and all(name != container.COLD_START_MS for name, _ in reply.headers)
        tally = trial.watch.new if trial.drawn.is_canary else trial.watch.old
        counted = replace(
            tally,
            calls=tally.calls + 1,
            errors=tally.errors + is_error,
            warm_calls=tally.warm_calls + is_warm,
            warm_s=tally.warm_s + (took_s if is_warm else 0.0),
        )
        if trial.drawn.is_canary:
            trial.watch.new = counted
        else:
            trial.watch.old = counted
        self._judge(trial)

    def _judge(self, trial: _Trial) -> None:
        watch = trial.watch
        reason = None if watch.has_ended else reason_to_end(watch.old, watch.new, watch.canary.limits)
        if reason is not None:
            watch.has_ended = True  # here at once; for the others when it is written down
            self._start(self._take_back(trial, reason))

    async def _take_back(self, trial: _Trial, reason: str) -> None:
        try:
            await self.end_canary(trial.model, trial.old.alias, trial.watch.canary.version, reason)
        except FlatshareError as error:
            trial.watch.has_ended = False  # the next call judges again
            log.warning("canary_not_ended", model=trial.model, version=trial.watch.canary.version, reason=str(error))

    def _compare(self, trial: _Trial, body: bytes, ask: Callable[[TargetModel], Awaitable[T]], reply_of: Callable[[T], Reply]) -> None:
        """Ask the old version the same, when the caller has its answer."""
        if trial.drawn.is_canary and trial.watch.canary.limits.max_disagreement is not None and len(self._tasks) < _MAX_COMPARING:
            self._start(self._compared(trial, body, ask, reply_of))

    async def _compared(
        self, trial: _Trial, body: bytes, ask: Callable[[TargetModel], Awaitable[T]], reply_of: Callable[[T], Reply]
    ) -> None:
        try:
            other = reply_of(await ask(trial.old.target))
        except FlatshareError:
            return  # there is nothing to compare with
        if other.status >= 300:
            return
        is_same = (await asyncio.to_thread(agreement, other.body, body)).is_same
        watch = trial.watch
        watch.new = replace(watch.new, compared=watch.new.compared + 1, differed=watch.new.differed + (not is_same))
        self._judge(trial)

    def _start(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _is_callers_mistake(reply: Reply) -> bool:
    name = next((value.decode() for header, value in reply.headers if header == container.ERROR), "")
    kind = getattr(errors, name, None)
    return isinstance(kind, type) and issubclass(kind, BadInput)
