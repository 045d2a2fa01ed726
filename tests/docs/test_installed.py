"""The Containerfile and the systemd unit, done by hand: there is no container engine where the tests run, and no systemd.

What the build stage copies is installed as the Containerfile says, from the package index and into an environment with nothing else in it.
What both files start is started there, by a user who owns nothing but the folder of state.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from flatshare.bench.server import RunningServer
from flatshare.client.deploy import EndpointPlan, ensure_endpoint
from flatshare.core.access import AccessKey, Principal
from tests.docs.test_packaging import ROOT, UNIT, instructions
from tests.e2e.checkpoints import TEXT, write_checkpoint
from tests.e2e.servers import Endpoint, clean_environment, stop, until, wait_for_ends

# The index may be slow: a hundred megabytes come from it.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
PREFIX, STATE = "/opt/flatshare", "/var/lib/flatshare"
IS_ROOT = os.geteuid() == 0
UID = int(dict(instructions())["USER"].partition(":")[0])
# Of root's rights it keeps that to read, since our interpreter may lie in root's home: in the container it lies where everybody may read.
_AS_USER = f"setpriv --reuid {UID} --regid {UID} --clear-groups --no-new-privs".split() + [
    f"--{kind}=-all,+dac_read_search" for kind in ("inh-caps", "ambient-caps", "bounding-set")
]


@dataclass(frozen=True, slots=True)
class Service:
    """A command line of ours, and what is around it."""

    words: Sequence[str]
    umask: int


@dataclass(frozen=True, slots=True)
class Place:
    """What stands for the container's file system."""

    folder: Path

    @property
    def prefix(self) -> Path:
        return self.folder / "opt"

    @property
    def bytecode(self) -> Path:
        return self.folder / "bytecode"

    def adapted(self, text: str, state: Path) -> str:
        return text.replace(PREFIX, str(self.prefix)).replace(STATE, str(state))

    def popen(self, words: Sequence[str], state: Path, *, umask: int = -1, **streams: Any) -> "subprocess.Popen[bytes]":
        """As the service's user, with the container's environment and nothing of ours."""
        environment = {"PATH": f"{self.prefix}/bin:/usr/bin:/bin", "HOME": str(state), "PYTHONUNBUFFERED": "1"}
        environment["PYTHONPYCACHEPREFIX"] = str(self.bytecode)  # in the container it lies beside the code, which nobody may write to
        return subprocess.Popen([*(_AS_USER if IS_ROOT else ()), *words], env=environment, cwd=state, umask=umask, **streams)

    def output(self, words: Sequence[str], state: Path) -> bytes:
        with self.popen(words, state, stdout=subprocess.PIPE) as process:
            out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        return out


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="flatshare-image-") as name:  # pytest's own folders are closed to other users
        built = Place(Path(name))
        built.folder.chmod(0o755)
        source = built.folder / "src"
        source.mkdir()
        built.bytecode.mkdir()
        built.bytecode.chmod(0o777)
        stages = [index for index, (instruction, _) in enumerate(instructions()) if instruction == "FROM"]
        # Bytecode of everything would take half as long again; and of ours nothing may find its way in but Python itself.
        ours = {"PIP_COMPILE": "0", "PIP_QUIET": "2", "PYTHONPATH": "", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        for instruction, rest in instructions()[: stages[1]]:
            if instruction == "COPY":
                _copy(rest.split(), source)
            elif instruction == "RUN":
                subprocess.run(["sh", "-ec", rest.replace(PREFIX, str(built.prefix))], cwd=source, env=clean_environment(ours), check=True)
        yield built


def _copy(words: list[str], into: Path) -> None:
    for name in words[:-1]:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, into / words[-1], ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, into / words[-1])


@pytest.fixture
def state(place: Place) -> Iterator[Path]:
    """The one folder that the service's user may write to; models, which it may read, lie beside it."""
    with tempfile.TemporaryDirectory(dir=place.folder) as name:
        Path(name).chmod(0o755)
        folder = Path(name) / "state"
        folder.mkdir()
        write_checkpoint(folder.parent / "models" / "m", 1)
        if IS_ROOT:
            os.chown(folder, UID, UID)
        yield folder


def _container(place: Place, state: Path) -> Service:
    named = dict(instructions())
    words = [*json.loads(named["ENTRYPOINT"]), *json.loads(named["CMD"]), "--port", "0", "--grpc-port", "0"]
    return Service([place.adapted(word, state) for word in words], umask=-1)


def _unit(place: Place, state: Path) -> Service:
    settings = dict(re.findall(r"^(\w+)=(.*)$", UNIT, re.MULTILINE))
    line = settings["ExecStart"].replace("${STATE_DIRECTORY}", str(state)).replace("$FLATSHARE_OPTIONS", "--port 0 --grpc-port 0")
    return Service(shlex.split(place.adapted(line, state)), umask=int(settings["UMask"], 8))


@contextmanager
def _running(place: Place, service: Service, state: Path) -> Iterator[RunningServer]:
    create = place.adapted("flatshare keys create operator --admin --data /var/lib/flatshare --json", state)
    made = orjson.loads(place.output(create.split(), state))
    key = AccessKey(Principal("operator", made["id"], ()), made["secret"], 0.0)
    with place.popen(service.words, state, umask=service.umask, stderr=subprocess.PIPE) as process:
        try:
            assert process.stderr is not None
            events = map(orjson.loads, process.stderr)  # each line is JSON
            url = next(event["url"] for event in events if event["event"] == "serving")
            yield RunningServer(process, url, key=key)
            stop(process)
            assert [event for event in events if event["level"] in {"warning", "error"}] == []
        finally:
            stop(process)


def _long_request(server: RunningServer, pool: ThreadPoolExecutor) -> "Future[int]":
    """A request that takes seconds; returns once an instance works on it."""
    body = orjson.dumps({"inputs": [f"{TEXT} " * 12] * 2048})

    def call() -> int:
        reply = server.runtime.invoke_endpoint(EndpointName="embeddings", TargetModel="m", ContentType="application/json", Body=body)
        status: int = reply["ResponseMetadata"]["HTTPStatusCode"]
        return status

    future = pool.submit(call)
    until(lambda: future.done() or any(instance.get("in_flight") for instance in _instances(server)))
    assert not future.done(), "the request was over before the test began: make it longer"
    return future


def _instances(server: RunningServer) -> list[dict[str, Any]]:
    """As the server's status says, which takes a signature."""
    request = AWSRequest("GET", f"http://127.0.0.1:{server.port}/flatshare/status")
    credentials = server.runtime._request_signer._credentials  # the key that the server was given
    SigV4Auth(Credentials(credentials.access_key, credentials.secret_key), "sagemaker", "us-east-1").add_auth(request)
    with urllib.request.urlopen(urllib.request.Request(str(request.url), headers=dict(request.headers.items())), timeout=10) as answer:
        instances: list[dict[str, Any]] = orjson.loads(answer.read())["instances"]
        return instances


@pytest.mark.parametrize("described", [_container, _unit], ids=["Containerfile", "unit"])
def test_what_is_started_answers_without_root_and_drains_at_sigterm(place: Place, state: Path, described: Any) -> None:
    with _running(place, described(place, state), state) as server, ThreadPoolExecutor(1) as pool:
        ensure_endpoint(server.sagemaker, EndpointPlan("embeddings", f"file://{state.parent}/models/"))
        Endpoint(server, "embeddings", state.parent / "models").require_right("m")
        health = json.loads(dict(instructions())["HEALTHCHECK"].partition(" CMD ")[2])
        place.output([word.replace(":8080/", f":{server.port}/") for word in health], state)
        pids = server.pids()
        assert {Path(f"/proc/{pid}").stat().st_uid for pid in pids} == {UID if IS_ROOT else os.geteuid()}
        under_way = _long_request(server, pool)
        server.process.terminate()
        assert under_way.result(timeout=60) == 200
        assert server.process.wait(timeout=60) == 0
        assert wait_for_ends(pids, within_s=20) == []


def test_the_image_has_what_is_declared_and_no_training_library(place: Place) -> None:
    [packages] = place.prefix.glob("lib/python*/site-packages")
    there = {path.name for path in packages.iterdir()}
    assert {"flatshare", "onnxruntime"} <= there
    assert there & {"torch", "ray", "transformers", "openvino", "pytest"} == set()
