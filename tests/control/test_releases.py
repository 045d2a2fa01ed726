"""The control calls of our own: versions and aliases, over the road of the others."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import msgspec
import orjson
import pytest

from flatshare.control.drivers.fake import FakeDriver
from flatshare.control.plane import Control
from flatshare.control.releases import Published
from flatshare.core.clock import SystemClock
from flatshare.core.release import ModelReleases
from flatshare.core.settings import ControlSettings, FleetSettings
from flatshare.wire.http import CALLER, Reply, Request

FIRST = {"Kind": "classification", "EndpointName": "flatshare-classification"}
DIGEST = "a" * 64


class Plane:
    """A control plane over a database file, with what it published."""

    def __init__(self, database: Path) -> None:
        self.published: list[dict[str, ModelReleases]] = []
        settings = ControlSettings(database_url=f"sqlite:///{database}", tick_s=0.05)
        self.control = Control(
            settings,
            FleetSettings(),
            driver=FakeDriver(),
            clock=SystemClock(),
            publish=lambda _: None,
            publish_releases=self._note,
        )

    def _note(self, known: Published) -> None:
        self.published.append(dict(known))

    async def call(self, operation: str, body: Mapping[str, object], caller: str = "") -> Reply:
        headers = {b"x-amz-target": f"Flatshare.{operation}".encode(), CALLER.encode(): caller.encode()}
        return await self.control.handle(Request("POST", "/", headers, orjson.dumps(dict(body))))

    async def change(self, model: str = "acme/intent", caller: str = "", **change: object) -> ModelReleases:
        reply = await self.call("ChangeRelease", {"Model": model, "Change": change, "Why": "test", "Who": "me", **FIRST}, caller)
        assert reply.status == 200, reply.body
        return msgspec.json.decode(reply.body, type=ModelReleases)

    async def deployed(self, digest: str = DIGEST) -> ModelReleases:
        number = (await self.change(type="reserve", digest=digest, parts=[""], suffix="")).versions[-1].number
        await self.change(type="ready", version=number)
        return await self.change(type="promote", version=number)


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    plane = Plane(tmp_path / "control.db")
    await plane.control.start()
    yield plane
    await plane.control.close()


def _said(reply: Reply) -> tuple[int, str]:
    fields = orjson.loads(reply.body)
    return reply.status, f"{fields['__type']}: {fields['message']}"


async def test_a_change_is_answered_published_and_described(plane: Plane) -> None:
    made = await plane.deployed()
    assert made.aliases["live"].version == 1
    assert plane.published[-1] == {"acme/intent": made}
    described = await plane.call("DescribeReleases", {"Model": "acme/intent"})
    assert msgspec.json.decode(described.body, type=ModelReleases) == made
    assert [(event.who, event.why) for event in made.history] == [("me", "test")] * 3
    [listed] = orjson.loads((await plane.call("ListReleases", {})).body)["Releases"]
    assert listed["history"] == []


async def test_an_authenticated_caller_is_who_the_history_names(plane: Plane) -> None:
    made = await plane.change(caller="ops", type="reserve", digest=DIGEST, parts=[""], suffix="")
    assert made.history[-1].who == "ops"


async def test_versions_survive_a_restart(tmp_path: Path) -> None:
    first = Plane(tmp_path / "control.db")
    await first.control.start()
    made = await first.deployed()
    await first.control.close()
    again = Plane(tmp_path / "control.db")
    await again.control.start()
    try:
        assert again.published[0] == {"acme/intent": made}
    finally:
        await again.control.close()


async def test_what_another_control_plane_changes_is_noticed(plane: Plane, tmp_path: Path) -> None:
    other = Plane(tmp_path / "control.db")
    await other.control.start()
    try:
        made = await other.deployed()
        async with asyncio.timeout(20):
            while not plane.published or plane.published[-1] != {"acme/intent": made}:  # noqa: ASYNC110  # another process's, as it were
                await asyncio.sleep(0.01)
    finally:
        await other.control.close()


async def test_two_who_deploy_at_once_get_one_number(plane: Plane) -> None:
    found = await asyncio.gather(*(plane.change(type="reserve", digest=DIGEST, parts=[""], suffix="") for _ in range(8)))
    assert {tuple(version.number for version in releases.versions) for releases in found} == {(1,)}


@pytest.mark.parametrize(
    ("operation", "body", "said"),
    [
        ("ChangeRelease", {"Model": "acme/x", "Change": {"type": "promote", "version": 1}}, "ResourceNotFound: no version of acme/x"),
        ("ChangeRelease", {"Model": "acme/x", "Change": {"type": "nonsense"}} | FIRST, "SerializationException: the body is not"),
        ("ChangeRelease", {"Model": "acme/x", "Chnage": {}}, "SerializationException: the body is not"),
        ("ChangeRelease", {"Model": "../x", "Change": {"type": "ready", "version": 1}} | FIRST, "tenant '..' must be"),
        (
            "ChangeRelease",
            {"Model": "acme/x", "Change": {"type": "promote", "version": 1}} | FIRST,
            "ConflictException: acme/x has no version 1",
        ),
        ("DescribeReleases", {"Model": "acme/x"}, "ResourceNotFound: no version of acme/x was ever deployed here"),
        ("Nonsense", {}, "UnknownOperationException"),
    ],
)
async def test_what_is_wrong_is_said_as_other_control_calls_say_it(
    plane: Plane, operation: str, body: dict[str, object], said: str
) -> None:
    status, sentence = _said(await plane.call(operation, body))
    assert status == 400
    assert said in sentence


async def test_a_model_keeps_its_kind(plane: Plane) -> None:
    await plane.deployed()
    change = {"type": "ready", "version": 1}
    body = {"Model": "acme/intent", "Change": change, "Kind": "embedding", "EndpointName": "flatshare-embedding"}
    reply = await plane.call("ChangeRelease", body)
    assert "give one of another kind another name" in _said(reply)[1]


async def test_the_automatic_way_back_is_written_down_once(plane: Plane) -> None:
    await plane.deployed()
    await plane.change(type="reserve", digest="b" * 64, parts=[""], suffix="")
    await plane.change(type="ready", version=2)
    await plane.change(type="canary", version=2, share=0.5)
    for _ in range(2):
        await plane.control.releases.end_canary("acme/intent", "live", 2, "too slow")
    made = plane.published[-1]["acme/intent"]
    assert made.aliases["live"].canary is None
    last, before = made.history[-1], made.history[-2]
    assert (last.who, last.what, last.why) == ("flatshare", "canary of version 2 ended, live stays version 1", "too slow")
    assert before.who == "me"
