"""The turnstile: so many at once, by fair share, and no place is lost."""

import asyncio

import pytest

from flatshare.core.ids import Tenant
from flatshare.instance.turnstile import Claim, Turnstile

A, B = Tenant("a"), Tenant("b")


class Hall:
    """Visitors who stay until they are told to leave."""

    def __init__(self, places: int) -> None:
        self.turnstile = Turnstile(places)
        self.inside: list[str] = []
        self.most = 0
        self.leave = asyncio.Event()

    async def visit(self, name: str, tenant: Tenant) -> None:
        async with self.turnstile.turn(Claim(tenant)):
            self.inside.append(name)
            self.most = max(self.most, len(self.inside))
            await self.leave.wait()
            self.inside.remove(name)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_no_more_than_its_places_are_inside_and_all_come_to_their_turn() -> None:
    hall = Hall(2)
    visits = [asyncio.create_task(hall.visit(f"v{i}", A)) for i in range(20)]
    await settle()
    assert (hall.inside, hall.turnstile.waiting) == (["v0", "v1"], 18)
    hall.leave.set()
    await asyncio.gather(*visits)
    assert (hall.most, hall.inside, hall.turnstile.waiting) == (2, [], 0)


async def test_a_guest_of_another_tenant_does_not_wait_for_the_whole_flood() -> None:
    turnstile, order = Turnstile(1), list[str]()

    async def visit(name: str, tenant: Tenant) -> None:
        async with turnstile.turn(Claim(tenant)):
            order.append(name)
            await asyncio.sleep(0)

    flood = [asyncio.create_task(visit(f"a{i}", A)) for i in range(20)]
    await settle()
    await asyncio.gather(visit("b", B), *flood)
    assert order.index("b") <= 4


async def test_one_who_gives_up_waiting_leaves_no_hole() -> None:
    hall = Hall(1)
    first, second, third = (asyncio.create_task(hall.visit(name, A)) for name in ("first", "second", "third"))
    await settle()
    second.cancel()
    hall.leave.set()
    await asyncio.gather(first, third)
    with pytest.raises(asyncio.CancelledError):
        await second
    async with asyncio.timeout(1):
        await hall.visit("fourth", B)


async def test_one_who_gives_up_in_the_moment_of_its_turn_hands_it_on() -> None:
    hall = Hall(1)
    first, second, third = (asyncio.create_task(hall.visit(name, A)) for name in ("first", "second", "third"))
    await settle()
    hall.leave.set()
    await asyncio.sleep(0)  # the first leaves, and the second's turn has come, though it has not run yet
    second.cancel()
    async with asyncio.timeout(1):
        await asyncio.gather(first, third)
        await hall.visit("fourth", B)


async def turns(claims: list[Claim]) -> str:
    """One place, which is taken; who waits for it comes in the order of the claims. In which order they have their turns."""
    turnstile, order = Turnstile(1), list[str]()

    async def visit(claim: Claim) -> None:
        async with turnstile.turn(claim):
            order.append(claim.tenant)
            await asyncio.sleep(0)

    async with turnstile.turn(Claim(Tenant("first"))):
        waiting = [asyncio.create_task(visit(claim)) for claim in claims]
        await settle()
    await asyncio.gather(*waiting)
    return "".join(order)


async def test_a_tenant_of_three_times_the_weight_has_three_turns_for_each_of_another() -> None:
    order = await turns([Claim(B)] * 8 + [Claim(A, weight=3)] * 8)
    assert order[:8].count("a") == 6


async def test_who_takes_much_of_the_place_comes_less_often_than_who_takes_little() -> None:
    order = await turns([Claim(A, cost=5)] * 4 + [Claim(B, cost=1)] * 10)
    assert order[:12].count("b") == 10
