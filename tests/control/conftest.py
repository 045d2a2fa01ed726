"""A control plane with a fake fleet behind a real HTTP port, and a real boto3 in front of it."""

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import boto3
import pytest
import sqlalchemy as sql
from botocore.config import Config
from sqlalchemy.engine import make_url

from flatshare.control.drivers.fake import FakeDriver
from flatshare.control.plane import Control, EndpointSnapshot
from flatshare.control.residence import Below
from flatshare.core.clock import ManualClock, SystemClock
from flatshare.core.settings import ControlSettings, FleetSettings
from flatshare.core.state import Routes
from flatshare.policy.diff import Status
from flatshare.serving.connection import Bounds
from flatshare.serving.server import HandlerServer

from .postgres import running_postgres

T = TypeVar("T")
_NUMBERS = itertools.count(1)
MEMORY_BYTES = 2_000_000_000


@dataclass(slots=True)
class House:
    """One control plane on one event loop, with everything that a test looks at."""

    control: Control
    driver: FakeDriver
    clock: ManualClock | SystemClock
    published: list[Routes]

    @property
    def routes(self) -> Routes:
        return self.published[-1]

    def endpoint(self, name: str) -> EndpointSnapshot:
        return next(endpoint for endpoint in self.control.snapshot() if endpoint.name == name)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Let everybody run until it holds."""
        async with asyncio.timeout(5):
            while not holds():  # noqa: ASYNC110  (a condition over many objects has no event)
                await asyncio.sleep(0)

    async def until_status(self, name: str, status: Status) -> None:
        await self.until(lambda: any(e.name == name and e.status is status for e in self.control.snapshot()))


@asynccontextmanager
async def running_house(
    database_url: str = "sqlite://",
    *,
    driver: FakeDriver | None = None,
    clock: ManualClock | None = None,
    max_instances: int = 16,
    below: Below | None = None,
) -> AsyncIterator[House]:
    """In all-resident mode if somebody says what lies `below` prefixes."""
    driver = driver or FakeDriver()
    published: list[Routes] = []
    used_clock = clock or SystemClock()
    control = Control(
        ControlSettings(database_url=database_url, tick_s=0.05, is_all_resident=below is not None),
        FleetSettings(memory_bytes=MEMORY_BYTES, max_instances=max_instances),
        driver=driver,
        clock=used_clock,
        publish=published.append,
        below=below,
    )
    await control.start()
    try:
        yield House(control, driver, used_clock, published)
    finally:
        await control.close()


@dataclass(frozen=True, slots=True)
class Server:
    """The house on a thread of its own, behind a real port."""

    url: str
    house: House
    loop: asyncio.AbstractEventLoop

    def on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout=10)

    def call(self, function: Callable[..., None], *args: Any) -> None:
        self.loop.call_soon_threadsafe(function, *args)

    def client(self, retries: Any = None) -> Any:
        chosen: Any = retries or {"total_max_attempts": 1}
        return boto3.client(
            "sagemaker",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
            config=Config(retries=chosen),
        )


@contextmanager
def running_server(database_url: str = "sqlite://", *, max_instances: int = 16, below: Below | None = None) -> Iterator[Server]:
    started: list[Server] = []
    is_up = threading.Event()
    stop = threading.Event()

    async def main() -> None:
        async with running_house(database_url, max_instances=max_instances, below=below) as house:
            server = HandlerServer(house.control.handle, Bounds(max_body_bytes=1 << 20), drain_s=5.0)
            port = await server.listen_on_port("127.0.0.1", 0)
            serving = asyncio.create_task(server.run())
            started.append(Server(f"http://127.0.0.1:{port}", house, asyncio.get_running_loop()))
            is_up.set()
            await asyncio.to_thread(stop.wait)
            server.stop()
            await serving

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    try:
        assert is_up.wait(15)
        yield started[0]
    finally:
        stop.set()
        thread.join(15)


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server() as running:
        yield running


@pytest.fixture
def sagemaker(server: Server) -> Any:
    return server.client()


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with running_house() as running:
        yield running


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A real PostgreSQL: the address of a database in it, with `{database}` for its name."""
    with running_postgres() as address:
        yield address


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database, of either kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/new/control.db"
        return
    address: str = request.getfixturevalue("postgres")
    name = f"t{next(_NUMBERS)}"
    engine = sql.create_engine(
        make_url(address.format(database="postgres")).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name} STRATEGY FILE_COPY")
    yield address.format(database=name)
    with engine.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    engine.dispose()
