"""Which version answers: aliases in memory, canaries that are watched and taken back."""

import asyncio
from collections.abc import Callable

import orjson
import pytest

from flatshare.core.errors import InstanceGone
from flatshare.core.ids import EndpointName, TargetModel
from flatshare.core.release import CanaryLimits, Change, ModelReleases, Promote, Ready, Reserve, StartCanary
from flatshare.gateway.releases import Versions
from flatshare.policy.release import By, apply
from flatshare.wire import container
from flatshare.wire.http import Reply

ENDPOINT = EndpointName("flatshare-classification")
OLD, NEW = "acme/intent@1", "acme/intent@2"
Ended = list[tuple[str, str, int, str]]


def _releases(*changes: Change) -> dict[str, ModelReleases]:
    """Version 1 is live, version 2 is ready."""
    releases = ModelReleases("acme/intent", "classification", ENDPOINT)
    for number in (1, 2):
        releases = apply(releases, Reserve(f"{number:064x}", ("",), ""), By("x", 0.0))
        releases = apply(releases, Ready(number), By("x", 0.0))
    for change in (Promote(1), *changes):
        releases = apply(releases, change, By("x", 0.0))
    return {"acme/intent": releases}


class Model:
    """Answers by target, and remembers what it was asked for."""

    def __init__(self, *, failing: Callable[[str], Reply | None] = lambda _: None, said: Callable[[str], str] = lambda _: "same") -> None:
        self.asked: list[str] = []
        self._failing = failing
        self._said = said

    async def __call__(self, target: TargetModel) -> Reply:
        self.asked.append(target)
        return self._failing(target) or Reply(200, orjson.dumps({"texts": [self._said(target)]}))


async def _call(versions: Versions, model: Model, target: str = "acme/intent@live", endpoint: EndpointName = ENDPOINT) -> Reply:
    return await versions.answered(endpoint, TargetModel(target), model, lambda reply: reply)


@pytest.fixture
def ended() -> Ended:
    return []


@pytest.fixture
def versions(ended: Ended) -> Versions:
    async def end(model: str, alias: str, version: int, why: str) -> None:
        ended.append((model, alias, version, why))

    return Versions(end)


@pytest.mark.parametrize(
    ("target", "asked"),
    [
        ("acme/intent@live", OLD),
        ("acme/intent@2", NEW),
        ("acme/intent@live/query", OLD),
        ("acme/intent@next", "acme/intent@next"),
        ("acme/intent", "acme/intent"),
        ("acme/other@live", "acme/other@live"),
        ("acme/x.tar.gz", "acme/x.tar.gz"),
    ],
)
async def test_a_label_is_looked_up_and_a_plain_key_left_alone(versions: Versions, target: str, asked: str) -> None:
    versions.replace(_releases())
    model = Model()
    await _call(versions, model, target)
    assert model.asked == [asked]


async def test_another_endpoints_models_are_not_ours(versions: Versions) -> None:
    versions.replace(_releases())
    model = Model()
    await _call(versions, model, endpoint=EndpointName("other"))
    assert model.asked == ["acme/intent@live"]


async def test_a_canary_gets_about_its_share(versions: Versions) -> None:
    versions.replace(_releases(StartCanary(2, 0.3)))
    model = Model()
    for _ in range(1000):
        await _call(versions, model)
    assert 200 < model.asked.count(NEW) < 400
    [report] = versions.report()
    assert report["calls"] == model.asked.count(NEW)


async def test_a_canary_that_fails_is_answered_for_by_the_old_version_and_ends(versions: Versions, ended: Ended) -> None:
    versions.replace(_releases(StartCanary(2, 0.5)))
    model = Model(failing=lambda target: container.error_reply(500, "ModelFailed", "it broke") if target == NEW else None)
    replies = [await _call(versions, model) for _ in range(200)]
    await versions.settle()
    assert {reply.status for reply in replies} == {200}
    assert model.asked.count(NEW) == 2
    assert ended == [("acme/intent", "live", 2, ended[0][3])]
    assert "calls failed" in ended[0][3]


async def test_a_canary_whose_instance_dies_is_answered_for_too(versions: Versions, ended: Ended) -> None:
    def die(target: str) -> None:
        if target == NEW:
            raise InstanceGone("it died")

    versions.replace(_releases(StartCanary(2, 0.5)))
    model = Model(failing=die)
    assert {(await _call(versions, model)).status for _ in range(100)} == {200}
    await versions.settle()
    assert len(ended) == 1


async def test_what_callers_do_wrong_ends_no_canary(versions: Versions, ended: Ended) -> None:
    versions.replace(_releases(StartCanary(2, 0.5)))
    model = Model(failing=lambda _: container.error_reply(400, "BadInput", "no text"))
    assert {(await _call(versions, model)).status for _ in range(100)} == {400}
    await versions.settle()
    assert ended == []


async def test_other_answers_end_a_canary_if_that_was_asked_for(versions: Versions, ended: Ended) -> None:
    versions.replace(_releases(StartCanary(2, 0.5, limits=CanaryLimits(max_disagreement=0.1, min_calls=5))))
    model = Model(said=lambda target: target)
    for _ in range(100):
        await _call(versions, model)
        await versions.settle()
    assert "5 of 5 answers differed" in ended[0][3]


async def test_equal_answers_do_not(versions: Versions, ended: Ended) -> None:
    versions.replace(_releases(StartCanary(2, 0.5, limits=CanaryLimits(max_disagreement=0.1, min_calls=5, max_slowdown=1e9))))
    for _ in range(100):
        await _call(versions, Model())
        await versions.settle()
    assert ended == []
    assert versions.report()[0]["compared"] > 10


async def test_a_way_back_that_could_not_be_written_down_is_tried_again() -> None:
    tries = list[int]()

    async def end(_model: str, _alias: str, version: int, _why: str) -> None:
        tries.append(version)
        if len(tries) == 1:
            raise InstanceGone("the database is away")

    versions = Versions(end)
    versions.replace(_releases(StartCanary(2, 0.5)))
    model = Model(failing=lambda target: container.error_reply(500, "ModelFailed", "it broke") if target == NEW else None)
    for _ in range(100):
        await _call(versions, model)
        await versions.settle()
    assert tries == [2, 2]


async def test_a_canary_begun_anew_is_watched_from_zero_and_others_are_not_disturbed(versions: Versions) -> None:
    first = _releases(StartCanary(2, 0.5))
    versions.replace(first)
    for _ in range(20):
        await _call(versions, Model())
    calls = versions.report()[0]["calls"]
    versions.replace({**first, "acme/other": first["acme/intent"]})
    assert versions.report()[0]["calls"] == calls
    versions.replace(_releases(StartCanary(2, 0.6)))
    assert versions.report()[0]["calls"] == 0


async def test_a_hundred_switches_under_load_break_nothing(versions: Versions) -> None:
    model, numbers = Model(), list[int]()

    async def caller() -> None:
        while len(numbers) < 100:
            numbers_before = len(numbers)
            assert (await _call(versions, model)).status == 200
            await asyncio.sleep(0)
            assert len(numbers) >= numbers_before

    async def switcher() -> None:
        for index in range(100):
            versions.replace(_releases(Promote(1 + index % 2)))
            numbers.append(index)
            await asyncio.sleep(0)

    await asyncio.gather(switcher(), *(caller() for _ in range(8)))
    assert {OLD, NEW} == set(model.asked) - {"acme/intent@live"}
