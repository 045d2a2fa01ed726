"""Try a package before it is published: a real instance loads each artifact and answers the sample."""

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from math import prod
from pathlib import Path
from typing import Any

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


def try_package(package: Package) -> Mapping[str, Tried]:
    """By part, which model answered what. Raises BadPackage with what went wrong; nothing is left behind."""
    return asyncio.run(_try(package))


async def _try(package: Package) -> Mapping[str, Tried]:
    with tempfile.TemporaryDirectory(prefix="flatshare-trial-") as name:
        async with _instance(Path(name), _memory_bytes(package)) as client:
            return {part.name: await _answered(client, package, part) for part in package.record.parts}


def _memory_bytes(package: Package) -> int:
    """Plenty: whether it fits is asked where it is deployed."""
    return 2048 * MIB + 6 * sum(part.size_bytes for part in package.record.parts)


@asynccontextmanager
async def _instance(folder: Path, memory_bytes: int) -> AsyncIterator[InstanceClient]:
    """An instance process with a store of its own. It ends when its stdin is closed, or when it does not heed that."""
    socket, log = folder / "i.sock", folder / "log"
    command = ["-m", "flatshare", "instance", "--socket", str(socket), "--store", str(folder / "store"), "--memory", str(memory_bytes)]
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            "--workers",
            "1",
            "--follow-stdin",
            stdin=asyncio.subprocess.PIPE,
            stdout=out,
            stderr=out,
            env=_environment(),
        )
    client = InstanceClient(str(socket))
    try:
        await _until_it_answers(client, process, log)
        yield client
    finally:
        client.close()
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(10):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def _environment() -> dict[str, str]:
    """Without the keys to stores: a package that is tried lies on this disk."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("AWS_SECRET", "AWS_SESSION"))}


async def _until_it_answers(client: InstanceClient, process: asyncio.subprocess.Process, log: Path) -> None:
    """There is no event for a socket that appears: look, a little more seldom each time."""
    loop = asyncio.get_running_loop()
    deadline_s, pause_s = loop.time() + _START_S, 0.01
    while True:
        try:
            await client.request("GET", "/ping", timeout_s=5.0)
        except (InstanceGone, TimeoutError):
            if process.returncode is not None or loop.time() > deadline_s:
                said = (await asyncio.to_thread(log.read_text, errors="replace"))[-500:]
                raise BadPackage(f"the instance that was to try the package did not start: {said}") from None
        else:
            return
        await asyncio.sleep(pause_s)
        pause_s = min(0.1, 1.5 * pause_s)


async def _answered(client: InstanceClient, package: Package, part: PackedPart) -> Tried:
    what = f"part '{part.name}'" if part.name else "the model"
    artifact = package.artifact(part).absolute()
    source = ModelSource(f"file://{artifact}", f"file://{artifact.parent}")
    key = model_key(ArtifactUri(source.uri))
    headers = [_JSON_TYPE, *container.source_headers(source)]
    sample = package.record.sample_of(part.name)
    try:
        if not sample:
            described = await client.request("GET", f"/models/{key}/metadata", headers=headers, timeout_s=_ANSWER_S)
            if described.status >= 300:
                raise BadPackage(f"{what} cannot be loaded: {container.error_sentence(described)}")
            sample = sample_for(container.parse_metadata(described.body).signature)
        answer = await client.request("POST", f"/models/{key}/invoke", headers=headers, body=orjson.dumps(sample), timeout_s=_ANSWER_S)
    except (InstanceGone, TimeoutError) as error:
        raise BadPackage(f"{what} brought down the instance that tried it: {error}") from error
    if answer.status >= 300:
        raise BadPackage(f"{what} does not answer its sample: {container.error_sentence(answer)}")
    if answer.content_type.startswith(b"application/json") and _has_no_number(orjson.loads(answer.body)):
        raise BadPackage(f"{what} answers its sample with something that is not a number: its weights hold NaN or infinity")
    return Tried(dict(answer.headers)[container.MODEL_DIGEST].decode(), sample)


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
