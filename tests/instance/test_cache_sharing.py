"""The cache machine under an operator's rules: value, a pin, a ceiling, a floor, the scratch slot, and pressure from outside."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from flatshare.core.errors import BadPackage, OutOfMemory
from flatshare.core.ids import Tenant
from flatshare.core.settings import CacheSettings, SharingSettings, TenantSettings
from flatshare.policy import admit
from tests.instance.conftest import BASE, OWN, SESSION, key_of
from tests.instance.test_cache import NAMES, CacheMachine, ride

CEILING = SESSION + 2 * OWN + 2_500


class SharingMachine(CacheMachine):
    """m0 is pinned; m1 is a tenant of its own with a ceiling, m2 one with a floor."""

    SHARING = SharingSettings(
        CacheSettings(order="value", pinned=("m0",), scratch_share=0.1, tenant_pattern="(m[0-9])$"),
        tenants={
            Tenant("m1"): TenantSettings(ceiling_bytes=CEILING),
            Tenant("m2"): TenantSettings(floor_bytes=2_000, weight=2.0),
        },
    )

    def __init__(self) -> None:
        super().__init__()
        self.loop.clock = self.flat.clock

    @rule(models=st.integers(0, 8))
    def set_memory(self, models: int) -> None:
        before = self.flat.books.balance().memory_limit
        try:
            self.loop.run_until_complete(self.flat.cache.set_memory(BASE + SESSION + models * 2_000))
        except OutOfMemory:  # what is in use, pinned or promised does not fit
            assert self.flat.books.balance().memory_limit == before

    @rule(allowed=st.integers(0, 40_000), is_tight=st.booleans())
    def come_under_pressure(self, allowed: int, is_tight: bool) -> None:
        self.loop.run_until_complete(self.flat.cache.allow(allowed, "a hog", is_tight=is_tight))
        pinned, lent = {"m0"}, {name for name, _ in self.leases}
        balance = self.flat.books.balance()
        if balance.anonymous + balance.mapped > balance.memory_limit - balance.pressure:
            spared = {r.key for r in self.flat.cache.room.view().residents if self.flat.cache.room.view().rules.manners.is_spared(r)}
            assert all(name in pinned | lent or key_of(name) in spared for name in self.flat.resident)

    @rule()
    def breathe_again(self) -> None:
        self.loop.run_until_complete(self.flat.cache.allow(1 << 40, "", is_tight=False))

    @rule(seconds=st.floats(1, 5_000))
    def wait(self, seconds: float) -> None:
        self.flat.clock.advance(seconds)

    @rule(name=NAMES)
    def fail_to_load(self, name: str) -> None:
        if name not in self.flat.resident:
            self.flat.backend.failure = BadPackage("broken")
            with pytest.raises((BadPackage, OutOfMemory)):
                self.loop.run_until_complete(ride(self.flat, name))
            self.flat.backend.failure = None

    @invariant()
    def nothing_exceeds_the_budget_unless_it_is_in_use(self) -> None:
        """What is spared may exceed it while pressure lasts; `come_under_pressure` looks at that."""

    @invariant()
    def the_pinned_model_was_not_evicted_and_nobody_is_above_its_ceiling(self) -> None:
        assert not [entry for entry in self.flat.entries("evict") if entry.model.endswith("/m0")]
        view = self.flat.cache.room.view()
        assert admit.held_bytes(tuple(r for r in view.residents if r.tenant == Tenant("m1"))) <= CEILING


SharingMachine.TestCase.settings = settings(deadline=None, max_examples=30, stateful_step_count=25)
TestSharingMachine = SharingMachine.TestCase


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flatshare.instance.cache.log", type("Silent", (), {"info": staticmethod(lambda *_, **__: None)}))
