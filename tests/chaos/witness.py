"""Who answered, with whose weights, and do the books balance? `harmed` (conftest.py) asks at the end of every chaos test, by itself."""

import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import orjson

from flatshare.bench.machine import family
from flatshare.bench.server import PlainCaller, RunningServer
from flatshare.client.deploy import EndpointPlan, ensure_endpoint
from flatshare.core.spec import StoredModel
from flatshare.store.tensors import TensorStore
from flatshare.wire.texts import as_vectors
from tests.e2e.checkpoints import TEXT
from tests.e2e.servers import Answer, Endpoint, require_vector

TOLERANCE_BYTES = 64 << 20
"""Of private memory that the kernel counts and nobody booked: what the allocator keeps between two runs."""


class HarmedServer(RunningServer):
    """It knows what was deployed, so that all of it can be looked at in the end."""

    def __init__(self, process: "subprocess.Popen[bytes]", url: str, data: Path) -> None:
        super().__init__(process, url)
        self.data = data
        self.victims: list[Victim] = []


class Victim(Endpoint):
    """An endpoint whose every answer is held against the model's first one: whatever is done to it, the weights are the same."""

    def __init__(self, server: HarmedServer, name: str, folder: Path, address: str | None = None, *, instance_count: int = 1) -> None:
        """Deployed as it is made; `address` is where the models lie, if not in `folder`."""
        super().__init__(server, name, folder)
        ensure_endpoint(server.sagemaker, EndpointPlan(name, address or f"file://{folder}/", instance_count=instance_count))
        server.victims.append(self)
        self.data = server.data
        self.digest_of: dict[str, str] = {}
        self.lost: set[str] = set()
        """Models that need not answer in the end: shut out for what they did."""

    def note(self, name: str, digest: str) -> None:
        """`name` was answered with these weights."""
        assert self.digest_of.setdefault(name, digest) == digest, f"{name} was answered with the weights of another model"

    def send(self, **members: Any) -> Answer:
        answer = super().send(**members)
        self.note(members["TargetModel"], answer.digest)
        return answer

    def prove(self, name: str) -> None:
        """It answers, and rightly."""
        body = Caller(self).until_answered(name)
        require_vector(as_vectors(orjson.loads(body))[0], self.folder / name, TEXT)

    def require_unharmed(self) -> None:
        """Whoever was ever answered is answered, with the weights of then, which are nobody else's; and the books balance."""
        survivors = self.digest_of.keys() - self.lost
        assert survivors, "nobody was ever answered"
        for name in survivors:
            self.prove(name)
        assert len(set(self.digest_of.values())) == len(self.digest_of), "two models have the same weights"
        require_balanced(self)


@dataclass
class Caller:
    """Plain HTTP, so that nothing is retried behind our back. Everything that was answered is kept."""

    endpoint: Victim
    statuses: list[int] = field(default_factory=list)

    def call(self, name: str, text: str = TEXT) -> tuple[int, bytes]:
        return self.send(name, {"inputs": text})

    def send(self, name: str, content: object) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json", "X-Amzn-SageMaker-Target-Model": name}
        with closing(HTTPConnection("127.0.0.1", self.endpoint.server.port, timeout=70)) as connection:
            connection.request("POST", f"/endpoints/{self.endpoint.name}/invocations", orjson.dumps(content), headers)
            answer = connection.getresponse()
            body = answer.read()
        self.statuses.append(answer.status)
        if answer.status == 200:
            self.endpoint.note(name, answer.headers["x-flatshare-model-digest"])
        return answer.status, body

    def until_answered(self, name: str, text: str = TEXT, *, within_s: float = 60.0) -> bytes:
        """As a client with retries: the platform may say 503 or 429 for a while, and nothing else."""
        deadline_s = time.monotonic() + within_s
        while True:
            status, body = self.call(name, text)
            if status == 200:
                return body
            assert status in {429, 503, 530}, body  # 530: the store that the model lies in does not answer
            assert time.monotonic() < deadline_s, f"still {status} after {within_s} s: {body!r}"


def require_balanced(endpoint: Victim, tolerance_bytes: int = TOLERANCE_BYTES) -> None:
    """For each instance, once it is at rest: leases of nobody, ledgers that add up, the very packs that the kernel has mapped, and no
    private memory beyond the tolerance that no book knows."""
    eventually(partial(_require_all_balanced, endpoint, tolerance_bytes))


def _require_all_balanced(endpoint: Victim, tolerance_bytes: int) -> None:
    for instance in endpoint.instances():
        _require_one_balanced(endpoint, instance, tolerance_bytes)


def _require_one_balanced(endpoint: Victim, instance: dict[str, Any], tolerance_bytes: int) -> None:
    assert "balance" in instance, instance.get("error")
    books = _books(instance)
    assert books["imbalances"] == []
    balance, models = instance["balance"], instance["models"]
    assert [model["uri"] for model in models if model["leases"]] == []
    assert balance["models"] == len(models)
    stored, [pid] = _stored(endpoint.data, models), instance_pids(endpoint, instance["socket"])
    assert balance["mapped"] == sum({tensor: size for model in stored for tensor, size in model.manifest.distinct_pieces.items()}.values())
    assert mapped_packs(pid) == {place.pack for model in stored for place in model.places.values()}
    assert balance["measured_anonymous"] <= balance["anonymous"] + tolerance_bytes
    assert balance["anonymous"] + balance["mapped"] <= balance["memory_limit"]


def eventually(check: Callable[[], object], *, within_s: float = 20.0) -> None:
    """Whatever is on its way in or out arrives meanwhile; what is wrong stays wrong, and says so."""
    deadline_s = time.monotonic() + within_s
    while True:
        try:
            check()
        except AssertionError:
            if time.monotonic() > deadline_s:
                raise
        else:
            return


def _books(instance: dict[str, Any]) -> dict[str, Any]:
    with PlainCaller.to_socket(instance["socket"]) as caller:
        status, body = caller.request("GET", "/flatshare/books", b"")
    assert status == 200, body
    books: dict[str, Any] = orjson.loads(body)
    return books


def _stored(data: Path, models: list[dict[str, Any]]) -> list[StoredModel]:
    """What the catalog on the disk says of them."""
    store = TensorStore(data / "store")
    found = [store.stored(model["digest"]) for model in models]
    assert None not in found, "a model is in memory that the disk knows nothing of"
    return [model for model in found if model is not None]


def mapped_packs(pid: int) -> set[str]:
    """By the kernel's word; one whose file is gone has `(deleted)` behind its name."""
    paths = [line.split(maxsplit=5)[5] for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if ".pack" in line]
    return {Path(path).name.replace(".pack", "") for path in paths}


def instance_pids(endpoint: Endpoint, socket: str = "") -> list[int]:
    """Processes of the instances, as the operating system knows them; of the one at this socket, if it is named."""
    pids = family(endpoint.server.process.pid)[1:]
    return [pid for pid in pids if {b"instance", b"--socket"} <= (said := set(words(pid))) and (not socket or socket.encode() in said)]


def words(pid: int) -> list[bytes]:
    """Of the command; nothing if it ended while we looked."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").split(b" ")
    except (FileNotFoundError, ProcessLookupError):
        return []
