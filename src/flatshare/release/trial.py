"""Try packages before they are published: a real instance loads each artifact and answers the sample."""

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Self

import orjson

from flatshare.client.instance import InstanceClient
from flatshare.core.call import ModelSource
from flatshare.core.errors import BadPackage, InstanceGone
from flatshare.core.ids import ArtifactUri, model_key
from flatshare.core.signature import Signature, TensorInfo
from flatshare.core.sizes import MIB
from flatshare.core.tensor import BYTES
from flatshare.package.build import Package, PackedPart, Tried
from flatshare.wire import container

_START_S, _ANSWER_S = 60.0, 120.0
_JSON_TYPE = (b"content-type", b"application/json")


class Trial:
    """An instance on which packages are tried one after the other. It starts at once, and one that a package brought down is replaced."""

    def __init__(self, size_bytes: int) -> None:
        """`size_bytes` of the largest package that is known; a larger one has the instance replaced by one with more memory."""
        self._size_bytes = size_bytes
        self._runner = asyncio.Runner()
        self._instance: _Instance | None = None

    def __enter__(self) -> Self:
        self._instance = self._runner.run(_started(self._size_bytes))
        return self

    def __exit__(self, *_: object) -> None:
        with self._runner:
            self._runner.run(self._end())

    def answers(self, package: Package) -> Mapping[str, Tried]:
        """By part, which model answered what. Raises BadPackage with what went wrong."""
        return self._runner.run(self._answers(package))

    async def _answers(self, package: Package) -> Mapping[str, Tried]:
        size_bytes = sum(part.size_bytes for part in package.record.parts)
        if self._instance is not None and size_bytes > self._size_bytes:
            await self._end()
        self._size_bytes = max(size_bytes, self._size_bytes)
        instance = self._instance = self._instance or await _started(self._size_bytes)
        await instance.until_it_answers()
        tried = {}
        for part in package.record.parts:
            try:
                tried[part.name] = await _answered(instance.client, package, part)
            except (InstanceGone, TimeoutError) as error:
                await self._end()  # the next package has another one
                raise BadPackage(f"{_named(part)} brought down the instance that tried it: {error}") from error
        return tried

    async def _end(self) -> None:
        ended, self._instance = self._instance, None
        if ended is not None:
            await ended.stop()


@dataclass(slots=True)
class _Instance:
    """A process with a store of its own. It ends when its stdin is closed, or when it does not heed that."""

    folder: Path
    process: asyncio.subprocess.Process
    client: InstanceClient
    is_up: bool = False

    async def until_it_answers(self) -> None:
        """There is no event for a socket that appears: look, a little more seldom each time."""
        loop = asyncio.get_running_loop()
        deadline_s, pause_s = loop.time() + _START_S, 0.01
        while not self.is_up:
            try:
                await self.client.request("GET", "/ping", timeout_s=5.0)
                self.is_up = True
            except (InstanceGone, TimeoutError):
                if self.process.returncode is not None or loop.time() > deadline_s:
                    said = (await asyncio.to_thread((self.folder / "log").read_text, errors="replace"))[-500:]
                    raise BadPackage(f"the instance that was to try the package did not start: {said}") from None
                await asyncio.sleep(pause_s)
                pause_s = min(0.1, 1.5 * pause_s)

    async def stop(self) -> None:
        self.client.close()
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            async with asyncio.timeout(10):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
        await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)


async def _started(size_bytes: int) -> _Instance:
    """On its way up. It has plenty of memory: whether a package fits is asked where it is deployed."""
    folder = Path(tempfile.mkdtemp(prefix="flatshare-trial-"))
    options = {
        "--socket": str(folder / "i.sock"),
        "--store": str(folder / "store"),
        "--memory": str(2048 * MIB + 6 * size_bytes),
        "--disk": str(2048 * MIB + 6 * size_bytes),  # of hundreds that are tried, the earlier ones go
        "--workers": "1",
    }
    command = ["-m", "flatshare", "instance", "--follow-stdin", *(word for option in options.items() for word in option)]
    with (folder / "log").open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, stdin=asyncio.subprocess.PIPE, stdout=out, stderr=out, env=_environment()
        )
    return _Instance(folder, process, InstanceClient(options["--socket"]))


def _environment() -> dict[str, str]:
    """Without the keys to stores: a package that is tried lies on this disk."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("AWS_SECRET", "AWS_SESSION"))}


async def _answered(client: InstanceClient, package: Package, part: PackedPart) -> Tried:
    """Raises BadPackage, and InstanceGone or TimeoutError if there is no answer."""
    artifact = package.artifact(part).absolute()
    source = ModelSource(f"file://{artifact}", f"file://{package.folder.absolute().parent}")  # trunks lie there, as below a prefix
    key = model_key(ArtifactUri(source.uri))
    headers = [_JSON_TYPE, *container.source_headers(source)]
    sample = package.record.sample_of(part.name)
    if not sample:
        described = await client.request("GET", f"/models/{key}/metadata", headers=headers, timeout_s=_ANSWER_S)
        if described.status >= 300:
            raise BadPackage(f"{_named(part)} cannot be loaded: {container.error_sentence(described)}")
        sample = sample_for(container.parse_metadata(described.body).signature)
    answer = await client.request("POST", f"/models/{key}/invoke", headers=headers, body=orjson.dumps(sample), timeout_s=_ANSWER_S)
    if answer.status >= 300:
        raise BadPackage(f"{_named(part)} does not answer its sample: {container.error_sentence(answer)}")
    if answer.content_type.startswith(b"application/json") and _has_no_number(orjson.loads(answer.body)):
        raise BadPackage(f"{_named(part)} answers its sample with something that is not a number: its weights hold NaN or infinity")
    return Tried(dict(answer.headers)[container.MODEL_DIGEST].decode(), sample)


def _named(part: PackedPart) -> str:
    return f"part '{part.name}'" if part.name else "the model"


def sample_for(signature: Signature) -> dict[str, object]:
    """A v2 request of zeros, and of one word where texts are wanted, with every size that the model leaves open being one."""
    return {"inputs": [_zeros(info) for info in signature.inputs if not info.is_optional]}


def _zeros(info: TensorInfo) -> dict[str, object]:
    shape = [max(1, size) for size in info.shape]
    zero: object = "hello" if info.datatype == BYTES else False if info.datatype == "BOOL" else 0
    return {"name": info.name, "datatype": info.datatype, "shape": shape, "data": [zero] * prod(shape)}


def _has_no_number(value: Any) -> bool:
    """JSON says NaN as null."""
    if isinstance(value, list):
        return any(_has_no_number(item) for item in value)
    if isinstance(value, dict):
        return any(_has_no_number(item) for item in value.values())
    return value is None
