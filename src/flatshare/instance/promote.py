"""Step 5h: every few seconds, see which models are hot enough for a prepacked copy, and which copies have gone cold.

Decided by policy/promote.py. One copy is made at a time, into memory that is to spare: no model leaves for it.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field

from flatshare.core.clock import Clock
from flatshare.core.errors import Quarantined, UnsupportedModel
from flatshare.core.ids import ModelKey
from flatshare.instance.backends.base import Footprint, Packable
from flatshare.instance.cache import ModelCache
from flatshare.instance.copies import PREPACKING
from flatshare.instance.holding import Resting
from flatshare.policy import promote
from flatshare.policy.admit import Need, Verdict
from flatshare.policy.promote import Candidate, Trial
from flatshare.telemetry.log import get_logger

log = get_logger("promote")
EVERY_S = 2.0
SHORT_TEXT = 30.0
"""Tokens of the text that a trial uses."""
_REST_S = 60.0  # after a copy had to leave for a model: room is scarce
_SPARE_SHARE = 1 / 16  # of the memory: stays free, so that the next load finds room without a copy having to go
_TRIALS = 3
_BUILD_S = 0.15  # of a core, until the first has been made


@dataclass(slots=True)
class _Count:
    """Of one model's short runs."""

    seen: int
    faded: float = 0.0


@dataclass(slots=True)
class _Known:
    """Of an architecture."""

    trial: Trial | None = None
    """The quickest runs of all its models' trials."""
    failed_trials: int = 0
    refusal: str = ""
    """Why its models get no copies."""


@dataclass(slots=True)
class _State:
    counts: dict[ModelKey, _Count] = field(default_factory=dict)
    known: dict[str, _Known] = field(default_factory=dict)
    looked_s: float = 0.0


class Promoter:
    """`expected_s(key, tokens)` is what a run is thought to take; `guard` is the quarantine's."""

    def __init__(
        self,
        cache: ModelCache,
        clock: Clock,
        expected_s: Callable[[ModelKey, float], float],
        guard: Callable[[ModelKey], AbstractAsyncContextManager[None] | None],
    ) -> None:
        self._cache = cache
        self._clock = clock
        self._expected_s = expected_s
        self._guard = guard
        self._state = _State(looked_s=clock.monotonic_s())

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                await self.look()
            except Exception:  # the loop's tick: what it failed at, the next one tries again
                log.exception("promote_failed")

    async def look(self) -> None:
        """Count, drop what is cold, and make at most one copy."""
        models = {resting.key: resting for resting in self._cache.packable()}
        self._count(models)
        candidates = {key: self._candidate(resting) for key, resting in models.items()}
        await self._drop_useless(candidates)
        if self._cache.room.is_tight or self._clock.monotonic_s() - self._cache.copies.pushed_out_s < _REST_S:
            return
        for candidate in promote.worth_building(candidates.values()):
            resting = models[candidate.key]
            is_ruled_out = self._cache.copies.of(candidate.key) is not None or self._known(resting.model).refusal
            if not is_ruled_out and await self._make(candidate, resting):
                return

    async def _drop_useless(self, candidates: Mapping[ModelKey, Candidate]) -> None:
        for key, copy in list(self._cache.copies):
            candidate = candidates.get(copy.of)
            if candidate is None:
                continue  # the model leaves, and takes its copy with it
            if not copy.model.has_copy:
                self._rule_out(copy.model, "a copy failed while it served")
                await self._cache.copies.drop(key, "it failed")
            elif promote.has_gone_cold(candidate):
                await self._cache.copies.drop(key, "hardly anybody asks for it now")

    def refusals(self) -> dict[str, str]:
        """Why models of an architecture get no copies, by its digest."""
        return {name: known.refusal for name, known in self._state.known.items() if known.refusal}

    def _count(self, models: dict[ModelKey, Resting]) -> None:
        now_s, counts = self._clock.monotonic_s(), self._state.counts
        elapsed_s, self._state.looked_s = now_s - self._state.looked_s, now_s
        fresh = {}
        for key, resting in models.items():
            runs = resting.model.short_runs
            count = counts.get(key)
            if count is None or count.seen > runs:  # it was loaded since
                count = _Count(0)
            new = runs - count.seen
            fresh[key] = _Count(runs, promote.faded(count.faded, new, elapsed_s))
            if new and (copy := self._cache.copies.of(key)) is not None:
                copy.used_s = now_s
        self._state.counts = fresh

    def _candidate(self, resting: Resting) -> Candidate:
        runs, trial = self._state.counts[resting.key].faded, self._known(resting.model).trial
        if trial is not None and trial.pays:
            candidate = Candidate(resting.key, runs, trial.saved_s, trial.build_s)
        else:
            guessed_s = promote.guessed_saving_s(self._expected_s(resting.key, SHORT_TEXT))
            candidate = Candidate(resting.key, runs, guessed_s, _BUILD_S)
        if (copy := self._cache.copies.of(resting.key)) is not None:
            copy.gain = candidate.gain
        return candidate

    def _known(self, model: Packable) -> _Known:
        return self._state.known.setdefault(model.architecture, _Known())

    def _rule_out(self, model: Packable, reason: str) -> None:
        self._known(model).refusal = reason
        log.warning("no_copies_of_this_architecture", architecture=model.architecture[:12], reason=reason)

    async def _make(self, candidate: Candidate, resting: Resting) -> bool:
        """True if a copy was made, tried, or others were dropped for it."""
        footprint = resting.model.copy_footprint()
        victims = self._victims(candidate, footprint)
        if victims is None:
            return False
        for victim in victims:
            await self._cache.copies.drop(victim, f"a copy of {resting.source.uri} saves more")
        if victims:
            return True  # what came and went meanwhile is seen at the next look
        try:
            async with self._guard(PREPACKING) or nullcontext():
                if self._cache.holds(resting):
                    await self._try(candidate, resting, footprint)
        except (UnsupportedModel, Quarantined) as error:
            self._rule_out(resting.model, str(error))
        return True

    async def _try(self, candidate: Candidate, resting: Resting, footprint: Footprint) -> None:
        """On busy cores one trial may say anything: an architecture is ruled out by the quickest runs of several."""
        known = self._known(resting.model)
        reason = f"{candidate.runs:.0f} short runs within the last minutes"
        known.trial = trial = await self._cache.copies.make(resting, footprint, known.trial, reason)
        if trial.pays:
            return
        known.failed_trials += 1
        if known.failed_trials >= _TRIALS:
            compared = f"{1e3 * trial.copy_s:.1f} ms, {1e3 * trial.mapped_s:.1f} mapped"
            self._rule_out(resting.model, f"a copy is no faster on this machine: {compared}")

    def _victims(self, candidate: Candidate, footprint: Footprint) -> tuple[ModelKey, ...] | None:
        """Copies that give way to this one; None if there is no room for it."""
        spare_bytes = int(self._cache.balance().memory_limit * _SPARE_SHARE)
        need = Need(footprint.own_bytes + spare_bytes, footprint.shared, {}, worth=candidate.gain)
        admission = self._cache.room.preview(need)
        if admission.verdict is Verdict.ADMIT:
            return ()
        gains = {key: copy.gain for key, copy in self._cache.copies}
        if admission.verdict is not Verdict.EVICT_FIRST or not gains.keys() >= set(admission.victims):
            return None
        return admission.victims if promote.may_push_out(candidate, sum(gains[victim] for victim in admission.victims)) else None
