"""A real `flatshare serve` in a process of its own, on a free port, stopped whatever happens; and its callers."""

import os
import select
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from botocore.exceptions import ClientError
from numpy.typing import NDArray

from flatshare.bench.server import RunningServer, _first_json
from flatshare.client.deploy import EndpointPlan, ensure_endpoint
from flatshare.wire.texts import as_vectors
from tests.e2e.checkpoints import TEXT, expected

ROLE = "arn:aws:iam::000000000000:role/flatshare"
START_DEADLINE_S = 30.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said, and what the headers said about it."""

    vectors: NDArray[np.float32]
    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def digest(self) -> str:
        return self.headers["x-flatshare-model-digest"]

    @property
    def is_cold(self) -> bool:
        return "x-flatshare-cold-start-ms" in self.headers


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as boto3 raises it."""

    code: str
    status: int
    message: str
    body: dict[str, Any]


class Endpoint:
    """One endpoint of a server, called with boto3. Its models lie below `folder`, if it is a local one."""

    def __init__(self, server: RunningServer, name: str, folder: Path) -> None:
        self.server = server
        self.name = name
        self.folder = folder

    def invoke(self, target: str, text: str | list[str] = TEXT) -> Answer:
        return self.send(TargetModel=target, ContentType="application/json", Body=orjson.dumps({"inputs": text}))

    def send(self, **members: Any) -> Answer:
        reply = self.server.runtime.invoke_endpoint(EndpointName=self.name, **members)
        body = orjson.loads(reply["Body"].read())
        return Answer(as_vectors(body), body, reply["ResponseMetadata"]["HTTPHeaders"])

    def failure(self, **members: Any) -> Failure:
        """The error that the call must end in."""
        call = {"EndpointName": self.name, "TargetModel": "a", "ContentType": "application/json", "Body": b'{"inputs": "hello"}'} | members
        return failure_of(lambda: self.server.runtime.invoke_endpoint(**{k: v for k, v in call.items() if v is not None}))

    def require_right(self, target: str, text: str = TEXT) -> Answer:
        """The model's answer, compared with numpy's."""
        answer = self.invoke(target, text)
        require_vector(answer.vectors[0], self.folder / target, text)
        return answer

    def instances(self) -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"{self.server.url}/flatshare/status", timeout=10) as answer:
            return [instance for instance in orjson.loads(answer.read())["instances"] if instance["endpoint"] == self.name]

    def decisions(self, kind: str) -> int:
        return sum(instance["decision_counts"].get(kind, 0) for instance in self.instances())


def require_vector(vector: NDArray[np.float32], checkpoint: Path, text: str = TEXT) -> None:
    np.testing.assert_allclose(vector, expected(checkpoint, text), atol=1e-5)


def failure_of(call: Callable[[], object]) -> Failure:
    try:
        call()
    except ClientError as error:
        response: Any = error.response
        fields = response["Error"]
        return Failure(fields["Code"], response["ResponseMetadata"]["HTTPStatusCode"], fields["Message"], response)
    raise AssertionError("the call was answered, an error was expected")


def deploy(server: RunningServer, name: str, folder: Path, *, instance_count: int = 1) -> Endpoint:
    folder.mkdir(parents=True, exist_ok=True)
    ensure_endpoint(server.sagemaker, EndpointPlan(name, f"file://{folder}/", instance_count=instance_count))
    return Endpoint(server, name, folder)


def command(data: Path, memory: str) -> list[str]:
    arguments = ["serve", "--data", str(data), "--port", "0", "--memory", memory, "--json", "--log-level", "info"]
    return [sys.executable, "-m", "flatshare", *arguments]


@contextmanager
def serving(
    data: Path, *, memory: str = "1GiB", environment: Mapping[str, str] | None = None, options: Sequence[str] = ()
) -> Iterator[RunningServer]:
    """A server over `data`, its log in DATA/server.log. What the test has not ended itself is ended here, by pid."""
    data.mkdir(parents=True, exist_ok=True)
    with (data / "server.log").open("ab") as log:
        process = subprocess.Popen(
            [*command(data, memory), *options], stdout=subprocess.PIPE, stderr=log, env=clean_environment(environment)
        )
    with process:
        try:
            greeting = _first_json(process)
            yield RunningServer(process, greeting["url"], grpc_address=greeting["grpc"])
        finally:
            stop(process)


def stop(process: "subprocess.Popen[bytes]") -> int:
    """SIGTERM, then SIGKILL. Its exit status."""
    process.terminate()
    try:
        return process.wait(timeout=40)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def clean_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours, without what an operator's AWS set-up would change."""
    return {name: value for name, value in os.environ.items() if not name.startswith("AWS_")} | dict(more or {})


def wait_for_ends(pids: list[int], *, within_s: float) -> list[int]:
    """Wait until these processes, anybody's, have ended; those that have not. A pidfd is readable once its process is gone."""
    descriptors = {}
    for pid in pids:
        with suppress(ProcessLookupError):
            descriptors[os.pidfd_open(pid)] = pid
    try:
        left, deadline_s = dict(descriptors), time.monotonic() + within_s
        while left and (remaining_s := deadline_s - time.monotonic()) > 0:
            for descriptor in select.select(list(left), [], [], remaining_s)[0]:
                del left[descriptor]
        return list(left.values())
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def until(holds: Callable[[], bool], *, within_s: float = 60.0) -> None:
    """Look again and again; each look is a call to the server, which takes its time, so this neither sleeps nor spins."""
    deadline_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline_s, "it did not come true in time"
