"""An instance as a process of its own."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest

from flatshare.client.instance import InstanceClient
from tests.checkpoints import write_checkpoint
from tests.e2e.servers import clean_environment

ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def running_instance(module: str, folder: Path, settings: str) -> AsyncIterator[InstanceClient]:
    """`flatshare instance` on a socket in the folder."""
    (folder / "settings.toml").write_text(settings)
    socket, place = folder / "socket", ["--store", str(folder / "store"), "--settings", str(folder / "settings.toml")]
    command = [sys.executable, "-m", module, "instance", "--socket", str(socket), "--follow-stdin", "--json-logs", *place]
    environment = clean_environment({"PYTHONPATH": f"{ROOT}/src:{ROOT}"})
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, env=environment, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.STDOUT)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            while (line := await process.stdout.readline()) and b"instance_listens" not in line:
                pass
        assert line, "the instance ended"
        client = InstanceClient(str(socket))
        yield client
        client.close()
    finally:
        process.kill()
        await process.communicate()


@pytest.mark.slow
async def test_as_many_models_load_at_once_as_the_settings_say(tmp_path: Path) -> None:
    folders = [write_checkpoint(tmp_path / f"models/{seed}", seed=seed) for seed in range(3)]
    async with running_instance("tests.instance.meeting_engine", tmp_path, "[queue]\nparallel_loads = 3\n") as client:
        bodies = [orjson.dumps({"model_name": folder.name, "url": str(folder)}) for folder in folders]
        replies = await asyncio.gather(*(client.request("POST", "/models", body=body) for body in bodies))
    assert [reply.status for reply in replies] == [200] * 3, [reply.body for reply in replies]
