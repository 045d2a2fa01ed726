"""The instance's door: the container contract's codes, and an answer for every request."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import orjson
import pytest

from flatshare.core.errors import BadPackage, DiskFull, StoreUnavailable
from flatshare.core.settings import QueueSettings, SharingSettings
from flatshare.instance.app import InstanceApp
from flatshare.instance.explain import Explainer
from flatshare.instance.serve import Server
from flatshare.instance.workbench import Workbench
from flatshare.policy.pressure import Signs
from flatshare.wire import container
from flatshare.wire.http import Reply, Request
from tests.instance.conftest import BASE, SESSION, Flat, key_of, running_flat, source

JSON = {b"content-type": b"application/json"}
BODY = orjson.dumps({"inputs": ["a b", "c"]})


@dataclass
class Door:
    flat: Flat
    app: InstanceApp

    async def call(self, method: str, path: str, body: Any = b"", headers: dict[bytes, bytes] | None = None, query: bytes = b"") -> Reply:
        content = body if isinstance(body, bytes) else orjson.dumps(body)
        return await self.app.handle(Request(method, path, headers or {}, content, query))

    async def load(self, name: str) -> Reply:
        return await self.call("POST", "/models", {"model_name": key_of(name), "url": source(name).uri, "root": source(name).root})

    async def invoke(self, name: str, *, with_source: bool = True, body: bytes = BODY, content_type: bytes = b"application/json") -> Reply:
        headers = {b"content-type": content_type}
        if with_source:
            headers |= dict(container.source_headers(source(name)))
        return await self.call("POST", f"/models/{key_of(name)}/invoke", body, headers)


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    async with running_flat(BASE + SESSION + 8_000, anonymous_share=0.9, patience_s=0.05) as flat:
        for index in range(6):
            flat.finder.put(f"m{index}")
        workbench = Workbench(1, SharingSettings(queue=QueueSettings(max_waiting=2)))
        explainer = Explainer(flat.cache, flat.finder, flat.journal)
        server, signs = Server(flat.cache, workbench), Signs(8, 6, major_faults_per_s=5.0)
        yield Door(flat, InstanceApp(server, flat.cache, workbench, flat.journal, flat.backend, explainer, lambda: signs))
        workbench.close()


def sentence(reply: Reply) -> str:
    return container.error_sentence(reply)


async def test_a_model_is_loaded_described_listed_and_unloaded(door: Door) -> None:
    described = {"modelName": key_of("m0"), "modelUrl": source("m0").uri}
    loaded = await door.load("m0")
    assert (loaded.status, orjson.loads(loaded.body)) == (200, described)
    shown = await door.call("GET", f"/models/{key_of('m0')}")
    assert (shown.status, orjson.loads(shown.body)) == (200, described)
    listed = await door.call("GET", "/models")
    assert orjson.loads(listed.body) == {"models": [described]}
    assert (await door.call("DELETE", f"/models/{key_of('m0')}")).status == 200
    assert (await door.call("GET", f"/models/{key_of('m0')}")).status == 404


async def test_loading_twice_is_a_conflict(door: Door) -> None:
    await door.load("m0")
    assert (await door.load("m0")).status == 409


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("DELETE", ""), ("POST", "/invoke")])
async def test_a_model_that_is_not_loaded_is_not_found(door: Door, method: str, path: str) -> None:
    reply = await door.call(method, f"/models/{key_of('m0')}{path}", BODY, JSON)
    assert reply.status == 404
    assert "is not loaded" in sentence(reply)


async def test_a_model_that_never_fits_is_507_and_the_others_stay(door: Door) -> None:
    await door.load("m0")
    door.flat.finder.put("huge", 10**6)
    reply = await door.load("huge")
    assert (reply.status, dict(reply.headers)[container.ERROR]) == (507, b"NeverFits")
    assert door.flat.resident == {"m0"}


async def test_no_room_while_all_are_in_use_is_507(door: Door) -> None:
    door.flat.finder.put("all", 8_000 - 1_000)
    async with door.flat.cache.lease(key_of("all"), source("all")):
        reply = await door.load("m0")
    assert (reply.status, dict(reply.headers)[container.ERROR]) == (507, b"OutOfMemory")


@pytest.mark.parametrize(
    ("failure", "status"), [(BadPackage("bad"), 400), (StoreUnavailable("down"), 503), (DiskFull("full"), 507), (ValueError("bug"), 500)]
)
async def test_what_the_finder_met_gets_its_status_and_its_sentence(door: Door, failure: Exception, status: int) -> None:
    door.flat.finder.failures["m0"] = failure
    reply = await door.invoke("m0")
    assert reply.status == status
    assert str(failure) in sentence(reply)


async def test_a_sentence_that_utf8_cannot_carry_is_answered_too(door: Door) -> None:
    door.flat.finder.failures["m0"] = BadPackage("the file 'caf\udce9' is bad")
    reply = await door.invoke("m0")
    assert (reply.status, sentence(reply)) == (400, "the file 'caf\\udce9' is bad")


async def test_an_unknown_model_is_not_found(door: Door) -> None:
    assert (await door.invoke("absent")).status == 404


async def test_a_cold_answer_says_how_long_the_load_took_and_a_warm_one_not(door: Door) -> None:
    cold, warm = dict((await door.invoke("m0")).headers), dict((await door.invoke("m0", with_source=False)).headers)
    assert container.COLD_START_MS in cold
    assert container.COLD_START_MS not in warm
    assert cold[container.MODEL_DIGEST] == warm[container.MODEL_DIGEST] == door.flat.finder.models["m0"].manifest.digest.encode()


async def test_an_answer_has_a_row_for_each_text_of_the_right_model(door: Door) -> None:
    for name in ("m0", "m1"):
        answer = orjson.loads((await door.invoke(name)).body)
        assert [row[:2] for row in answer["embeddings"]] == [[ord("m"), ord(name[1])]] * 2
        assert answer["tokens"] == [2, 1]


@pytest.mark.parametrize(
    ("body", "content_type"), [(b"{", b"application/json"), (b"{}", b"application/json"), (b"a", b"image/png"), (b"\xff", b"text/plain")]
)
async def test_a_body_that_cannot_be_read_loads_nothing(door: Door, body: bytes, content_type: bytes) -> None:
    assert (await door.invoke("m0", body=body, content_type=content_type)).status == 400
    assert door.flat.finder.searches == 0


@pytest.mark.parametrize(
    ("method", "path"),
    [("PUT", "/models"), ("GET", "/"), ("GET", "/models/a/b"), ("PATCH", "/models/a"), ("GET", "/models/a/invoke"), ("POST", "/models/é")],
)
async def test_what_is_not_in_the_contract_is_said_to_be(door: Door, method: str, path: str) -> None:
    reply = await door.call(method, path)
    assert reply.status == 400
    assert "not part of the container contract" in sentence(reply)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"model_name": "a/b", "url": "/x"}', b'{"model_name": "a", "url": "/x", "root": 1}'])
async def test_a_load_that_names_no_model_is_refused(door: Door, body: bytes) -> None:
    assert (await door.call("POST", "/models", body)).status == 400


async def test_an_address_that_is_not_utf8_is_refused(door: Door) -> None:
    reply = await door.call("POST", "/models/abc/invoke", BODY, {**JSON, container.SOURCE_URI.encode(): b"file:///\xff"})
    assert reply.status == 400


async def test_the_list_comes_in_pages(door: Door) -> None:
    await door.flat.cache.set_memory(10**6)
    for index in range(150):
        door.flat.finder.put(f"p{index}", 0)
        await door.load(f"p{index}")
    first = orjson.loads((await door.call("GET", "/models")).body)
    second = orjson.loads((await door.call("GET", "/models", query=b"next_page_token=" + first["nextPageToken"].encode())).body)
    names = [model["modelName"] for model in first["models"] + second["models"]]
    assert (len(first["models"]), len(second["models"]), "nextPageToken" in second) == (100, 50, False)
    assert names == sorted({key_of(f"p{index}") for index in range(150)})


async def test_too_many_requests_are_turned_away_and_nobody_is_forgotten(door: Door) -> None:
    await door.load("m0")
    replies = await asyncio.gather(*(door.invoke("m0") for _ in range(20)))
    assert {reply.status for reply in replies} <= {200, 503}
    assert sum(reply.status == 200 for reply in replies) >= 3
    assert door.flat.cache.snapshot()[0].leases == 0


async def test_the_budget_can_be_changed(door: Door) -> None:
    for name in ("m0", "m1"):
        await door.load(name)
    reply = await door.call("PUT", "/flatshare/memory", {"memory_bytes": BASE + SESSION + 3_000})
    assert (reply.status, orjson.loads(reply.body)["models"]) == (200, 1)
    assert (await door.call("PUT", "/flatshare/memory", {"memory_bytes": -1})).status == 400


async def test_the_status_shows_books_models_and_decisions(door: Door) -> None:
    await door.load("m0")
    status = orjson.loads((await door.call("GET", "/flatshare/status")).body)
    assert status["balance"]["models"] == 1
    assert status["models"][0]["uri"] == source("m0").uri
    assert status["decisions"][0]["kind"] == "load"
    assert status["decision_counts"] == {"load": 1}
    assert status["engine"] == {"loads": 1, "shrinks": 0}


async def test_the_status_counts_refusals_by_reason_and_who_waits_by_class(door: Door) -> None:
    door.flat.finder.put("huge", 10**6)
    await door.load("huge")
    await door.flat.use("m0")
    await door.flat.slow_load("m0", 60.0)
    headers = {b"content-type": b"application/json", container.DEADLINE_MS.encode(): b"500", **dict(container.source_headers(source("m0")))}
    assert (await door.call("POST", f"/models/{key_of('m0')}/invoke", BODY, headers)).status == 503
    status = orjson.loads((await door.call("GET", "/flatshare/status")).body)
    assert status["refusal_counts"] == {"never_fits": 1, "too_late": 1}
    assert status["waiting_by_class"].keys() == {"short", "long", "load"}
    assert status["thrash"].keys() == {"loads", "reloads", "index", "lacks_memory"}
    assert (status["signs"]["available"], status["signs"]["major_faults_per_s"]) == (6, 5.0)


async def test_the_door_answers_a_ping(door: Door) -> None:
    assert (await door.call("GET", "/ping")).status == 200
