"""A control plane that is killed at the n-th step of an operation and started again, for every n. Run by test_kill_anywhere.py.

A process of its own forks one child that dies by SIGKILL at step n, and then another that starts over the same database: both have
nothing but what the first left on disk. Instances are real processes that end as real ones do, when the pipe to their stdin breaks.
A line of JSON on stdout tells of each step.
"""

import asyncio
import json
import os
import shutil
import signal
import sys
import traceback
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NoReturn

import orjson

from flatshare.control.database import Database
from flatshare.control.drivers.base import InstanceSpec, RunningInstance
from flatshare.control.plane import Control
from flatshare.core.clock import SystemClock
from flatshare.core.errors import InstanceGone
from flatshare.core.ids import InstanceId
from flatshare.core.settings import ControlSettings, FleetSettings
from flatshare.core.state import Routes
from flatshare.policy.diff import Phase
from flatshare.telemetry import log
from flatshare.wire.aws_json import sagemaker_codec
from flatshare.wire.http import Request
from tests.control.calls import container, variant

IN_PROGRESS = {"Creating", "Updating", "RollingBack", "Deleting"}
FAILING = "bad"  # instances of this variant do not start


class Steps:
    """Counts what is done, and ends the process without a word at the step that it was given."""

    def __init__(self, kill_at: int) -> None:
        self.reached: list[str] = []
        self.is_counting = False
        self._kill_at = kill_at

    def reach(self, name: str) -> None:
        if not self.is_counting:
            return
        self.reached.append(name)
        if len(self.reached) == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


class ProcessDriver:
    """An instance is a `cat`: it ends when its stdin does."""

    def __init__(self, steps: Steps, pids: Path) -> None:
        self._steps = steps
        self._pids = pids
        self.processes: dict[InstanceId, Process] = {}

    async def start(self, spec: InstanceSpec) -> RunningInstance:
        self._steps.reach(f"start {spec.name}")
        if spec.name.endswith(f"/{FAILING}"):
            raise InstanceGone("it does not start")
        process = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=DEVNULL)
        with self._pids.open("a") as pids:
            pids.write(f"{process.pid}\n")
        self.processes[spec.id] = process
        self._steps.reach(f"started {spec.name}")
        return RunningInstance(spec.id, f"/{spec.id}.sock", process.pid)

    async def stop(self, instance_id: InstanceId) -> None:
        self._steps.reach("stop")
        process = self.processes.pop(instance_id, None)
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()
        self._steps.reach("stopped")

    async def set_memory(self, instance_id: InstanceId, memory_bytes: int) -> None:
        self._steps.reach("set memory")

    async def exited(self, instance_id: InstanceId) -> None:
        if instance_id in self.processes:
            await self.processes[instance_id].wait()

    def is_alive(self, instance_id: InstanceId) -> bool:
        return instance_id in self.processes and self.processes[instance_id].returncode is None

    async def close(self) -> None:
        for instance_id in list(self.processes):
            await self.stop(instance_id)


class House:
    """One control plane in this process."""

    def __init__(self, database_url: str, pids: Path, steps: Steps) -> None:
        self.steps = steps
        self.routes = Routes({})
        self.driver = ProcessDriver(steps, pids)
        settings = ControlSettings(database_url=database_url, tick_s=0.05)
        fleet = FleetSettings(memory_bytes=1 << 20)
        self.control = Control(settings, fleet, driver=self.driver, clock=SystemClock(), publish=self._publish)

    def _publish(self, routes: Routes) -> None:
        self.steps.reach("publish")
        self.routes = routes
        self.steps.reach("published")

    async def call(self, operation: str, **params: Any) -> dict[str, Any]:
        reply = await self.control.handle(Request("POST", "/", {b"x-amz-target": f"SageMaker.{operation}".encode()}, orjson.dumps(params)))
        answer: dict[str, Any] = orjson.loads(reply.body or b"{}")
        return answer

    async def described(self) -> dict[str, Any] | None:
        answer = await self.call("DescribeEndpoint", EndpointName="e")
        return None if "__type" in answer else answer

    async def settle(self) -> dict[str, Any] | None:
        """Until nothing is in progress and what runs is what is wanted."""
        while True:
            described = await self.described()
            snapshot = self.control.snapshot()
            running = sum(len(endpoint.instances) for endpoint in snapshot)
            is_ready = all(i.phase is Phase.READY for endpoint in snapshot for i in endpoint.instances)
            status = described["EndpointStatus"] if described else None
            wanted = sum(v["DesiredInstanceCount"] for v in described["ProductionVariants"]) if described and status == "InService" else 0
            if status not in IN_PROGRESS and is_ready and running == wanted == len(self.driver.processes) == self.routed():
                return described
            await asyncio.sleep(0.002)

    def routed(self) -> int:
        return sum(len(v.instances) for e in self.routes.endpoints.values() for v in e.variants)

    async def report(self) -> dict[str, Any]:
        """Everything that a client can see, but for times."""
        described = await self.settle()
        lists = {kind: await self.call(f"List{kind}") for kind in ("Models", "EndpointConfigs", "Endpoints")}
        arn = "arn:aws:sagemaker:us-east-1:000000000000:endpoint/e"
        return {
            "endpoint": _timeless(described),
            "lists": _timeless(lists),
            "tags": await self.call("ListTags", ResourceArn=arn),
            "running": len(self.driver.processes),
            "routed": self.routed(),
        }


async def create(house: House) -> None:
    await house.call("CreateModel", ModelName="m", PrimaryContainer=container(), Tags=[{"Key": "a", "Value": "b"}])
    await house.call("CreateEndpointConfig", EndpointConfigName="c", ProductionVariants=[variant("v", count=2)])
    await house.call("CreateEndpoint", EndpointName="e", EndpointConfigName="c", Tags=[{"Key": "a", "Value": "b"}])


async def prepare(house: House) -> None:
    await create(house)
    await house.call("CreateEndpointConfig", EndpointConfigName="next", ProductionVariants=[variant("v"), variant("w")])
    await house.call("CreateEndpointConfig", EndpointConfigName="failing", ProductionVariants=[variant("v"), variant(FAILING)])


async def update(house: House) -> None:
    await house.call("UpdateEndpoint", EndpointName="e", EndpointConfigName="next")


async def update_to_what_fails(house: House) -> None:
    await house.call("UpdateEndpoint", EndpointName="e", EndpointConfigName="failing")


async def canary(house: House) -> None:
    await shift(house, {"Type": "CANARY", "CanarySize": {"Type": "INSTANCE_COUNT", "Value": 1}, "WaitIntervalInSeconds": 0})


async def linear_to_what_fails(house: House) -> None:
    size = {"Type": "CAPACITY_PERCENT", "Value": 50}
    await shift(house, {"Type": "LINEAR", "LinearStepSize": size, "WaitIntervalInSeconds": 0}, "failing")


async def shift(house: House, routing: dict[str, Any], config: str = "next") -> None:
    policy = {"BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": routing}}
    await house.call("UpdateEndpoint", EndpointName="e", EndpointConfigName=config, DeploymentConfig=policy)


async def roll(house: House) -> None:
    size = {"Type": "CAPACITY_PERCENT", "Value": 50}
    policy = {"RollingUpdatePolicy": {"MaximumBatchSize": size, "WaitIntervalInSeconds": 0}}
    await house.call("UpdateEndpoint", EndpointName="e", EndpointConfigName="next", DeploymentConfig=policy)


async def scale(house: House) -> None:
    change = {"VariantName": "v", "DesiredInstanceCount": 3, "DesiredWeight": 5.0}
    await house.call("UpdateEndpointWeightsAndCapacities", EndpointName="e", DesiredWeightsAndCapacities=[change])


async def delete(house: House) -> None:
    await house.call("DeleteEndpoint", EndpointName="e")
    while await house.described() is not None:  # noqa: ASYNC110  (only a call can tell)
        await asyncio.sleep(0.002)
    await house.call("DeleteEndpointConfig", EndpointConfigName="c")
    await house.call("DeleteModel", ModelName="m")


OPERATIONS: dict[str, Callable[[House], Awaitable[None]]] = {
    "create": create,
    "update": update,
    "update_to_what_fails": update_to_what_fails,
    "canary": canary,
    "linear_to_what_fails": linear_to_what_fails,
    "roll": roll,
    "scale": scale,
    "delete": delete,
}


def main(folder: Path, operation: str) -> None:
    log.configure(json=False, level="critical")
    sagemaker_codec()  # once, before the forks
    prepared = folder / "prepared"
    if operation != "create":
        _forked(lambda: _in_house(prepared, 0, lambda house: _then_settle(house, prepare)))
    step = 0
    while True:
        told = _killed_at(step, folder, operation)
        print(json.dumps(told), flush=True)
        if step and not told["was_killed"]:
            return
        step += 1


def _killed_at(step: int, folder: Path, operation: str) -> dict[str, Any]:
    """What became of it. Nothing is killed at step 0."""
    place, pids = folder / str(step), folder / str(step) / "pids"
    if (folder / "prepared").exists():
        shutil.copytree(folder / "prepared", place)
    else:
        place.mkdir()
    pids.write_text("")
    was_killed = _forked(lambda: _in_house(place, step, lambda house: _perform(house, operation, place)))
    started = pids.read_text().split()
    _forked(lambda: _in_house(place, 0, lambda house: _again(house, operation, place)))
    reached = (place / "reached").read_text().splitlines() if not was_killed else []
    after = {name: json.loads((place / name).read_text()) for name in ("report", "alone")}
    shutil.rmtree(place)
    return {"step": step, "was_killed": was_killed, "reached": reached, "pids": started} | after


def _forked(work: Callable[[], None]) -> bool:
    """Do the work in a child. Whether it was killed."""
    pid = os.fork()
    if pid == 0:
        _work_and_exit(work)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    assert os.WIFEXITED(status)
    assert os.WEXITSTATUS(status) == 0, "the child failed, see above"
    return False


def _work_and_exit(work: Callable[[], None]) -> NoReturn:
    status = 1
    try:
        work()
        status = 0
    finally:
        if status:
            traceback.print_exc()
        os._exit(status)


def _in_house(place: Path, kill_at: int, work: Callable[[House], Awaitable[None]]) -> None:
    place.mkdir(exist_ok=True)
    steps = Steps(kill_at)
    _watch(steps)

    async def run() -> None:
        async with asyncio.timeout(30):
            house = House(f"sqlite:///{place}/control.db", place / "pids", steps)
            await house.control.start()
            await work(house)
            steps.is_counting = False
            await house.control.close()

    asyncio.run(run())


def _watch(steps: Steps) -> None:
    """Every transaction has three steps."""
    write = Database.write

    def watched(self: Database, operation: Any) -> Any:
        def inside(connection: Any) -> Any:
            steps.reach("transaction begun")
            result = operation(connection)
            steps.reach("transaction about to commit")
            return result

        result = write(self, inside)
        steps.reach("transaction committed")
        return result

    Database.write = watched  # type: ignore[method-assign]  # in a child that ends soon


async def _perform(house: House, operation: str, place: Path) -> None:
    await house.settle()
    house.steps.is_counting = True
    await _then_settle(house, OPERATIONS[operation])
    (place / "reached").write_text("\n".join(house.steps.reached))


async def _again(house: House, operation: str, place: Path) -> None:
    """What was begun goes on by itself, to the end or back; a client that was not answered calls again."""
    before = await house.settle()
    await OPERATIONS[operation](house)
    (place / "report").write_text(json.dumps(await house.report()))
    (place / "alone").write_text(json.dumps(before and before["EndpointConfigName"]))


async def _then_settle(house: House, work: Callable[[House], Awaitable[None]]) -> None:
    await work(house)
    await house.settle()


def _timeless(value: Any) -> Any:
    """Without moments, and without why an earlier change failed, which the end of a later one forgets."""
    if isinstance(value, dict):
        left_out = {"CreationTime", "LastModifiedTime", "ResolutionTime", "FailureReason"}
        return {key: _timeless(item) for key, item in value.items() if key not in left_out}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
