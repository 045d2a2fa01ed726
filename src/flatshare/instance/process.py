"""One instance as a process: put together, served on a Unix socket or a port, drained when asked to stop or when its parent is gone."""

import asyncio
import os
import resource
import sys
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from flatshare.core.call import ModelSource
from flatshare.core.clock import SystemClock
from flatshare.core.settings import MAX_BODY_BYTES, CacheSettings, InstanceSettings, Listening, WorkerSettings
from flatshare.instance import importing
from flatshare.instance.app import InstanceApp
from flatshare.instance.backends import prepacked
from flatshare.instance.backends.base import Backend
from flatshare.instance.backends.engines import Engines
from flatshare.instance.backends.generate.engine import GenerateBackend
from flatshare.instance.backends.mapped import MappedBackend
from flatshare.instance.backends.triton.backend import TritonBackend
from flatshare.instance.board import Board
from flatshare.instance.books import Books, anonymous_bytes
from flatshare.instance.cache import ModelCache
from flatshare.instance.explain import Explainer
from flatshare.instance.finding import ModelFinder
from flatshare.instance.hot import HotSet
from flatshare.instance.inside import InnerModels
from flatshare.instance.prefetch import Prefetcher
from flatshare.instance.pressure import Kernel
from flatshare.instance.promote import Promoter
from flatshare.instance.quarantine import Quarantine
from flatshare.instance.scrub import Scrubber
from flatshare.instance.serve import Server
from flatshare.instance.watch import Watch
from flatshare.instance.workbench import Workbench
from flatshare.serving.connection import Bounds
from flatshare.serving.server import HandlerServer, settle_memory, stop_on_signals
from flatshare.store.tensors import TensorStore
from flatshare.telemetry.journal import Entry, Journal
from flatshare.telemetry.log import get_logger

log = get_logger("instance")
_LOADERS = 2  # threads at least: they unload too
_LOOKERS = 4  # looks at artifacts, which may hang on a store: apart from the loaders, which also unload
EngineMaker = Callable[[InstanceSettings], Backend]
_LAST_RUNS_S = 2.0  # after the drain: what has not ended by then hangs
_WARM_AHEAD_S = 2.0  # a start takes half a second; later a cold start costs its caller some 15 ms, and no instance all of them
_KEEP_ALIVE_S = 3600  # the gateway closes its connections, not we
_BOUNDS = Bounds(max_body_bytes=MAX_BODY_BYTES, idle_s=_KEEP_ALIVE_S, has_outlets=True)


def _mapped(settings: InstanceSettings) -> Backend:
    return MappedBackend(concurrent_runs=settings.workers)


async def serve_until_stopped(
    settings: InstanceSettings, own_code: WorkerSettings, at: Listening, model_dir: Path | None, engines: EngineMaker = _mapped
) -> None:
    """Serve until SIGTERM, or end of file on stdin; then finish what is under way. `model_dir` is the one model of POST /invocations."""
    store, clock, journal, sharing = TensorStore(settings.store_dir), SystemClock(), Journal(), settings.sharing
    _repair(store)
    memory = _Memory(settings.store_dir / "instances", settings.name, clock)
    threads = ThreadPoolExecutor(max(_LOADERS, sharing.queue.parallel_loads), thread_name_prefix="loader")
    lookers = ThreadPoolExecutor(_LOOKERS, thread_name_prefix="looker")
    writer = GenerateBackend(threads=settings.workers, cache_bytes=settings.cache_bytes, max_jobs=sharing.queue.max_waiting)
    mapped, workbench = engines(settings), Workbench(settings.workers, sharing)
    triton = TritonBackend(own_code, InnerModels(mapped, workbench, threads), sharing)
    backend = Engines({"mapped": mapped, "generate": writer, "triton": triton})
    finder = _finder(store, lookers, settings, partial(_note_leaving, journal, clock))
    books = Books(settings.memory_bytes, settings.anonymous_share, anonymous_bytes(), lambda: triton.pool.anonymous_bytes)
    cache = ModelCache(
        backend, finder, books, threads, clock, journal,
        patience_s=settings.patience_s, recheck_s=settings.recheck_s, sharing=sharing, board=memory.board,
    )  # fmt: skip
    door, explainer, kernel = Server(cache, workbench, sharing, memory.quarantine.guard), Explainer(cache, finder, journal), Kernel()
    app = InstanceApp(door, cache, workbench, journal, backend, explainer, kernel.last, _source_of(model_dir), triton.pool.metrics.readings)
    server = HandlerServer(app.handle, _BOUNDS, drain_s=settings.drain_s)
    watch = Watch(cache, workbench, kernel, sharing, clock, journal, recycle=server.stop)
    stop_on_signals(server.stop)
    if at.follow_stdin:
        _stop_at_end_of_input(server)
    hot, suspects = memory.hot_set(cache), frozenset(memory.quarantine.records())
    await hot.warm_ahead(suspects, _WARM_AHEAD_S)
    await _listen(server, at)
    log.info("instance_starts", memory_bytes=settings.memory_bytes, pid=os.getpid())
    settle_memory()
    prefetcher = Prefetcher(cache, finder, store.catalog, sharing.disk.prefetch_every_s)
    beside = [hot.warm(suspects), hot.follow(), hot.prefetch(), Scrubber(store, cache).run(), prefetcher.run()]
    await _run(server, watch.run(), *beside, *_promoting(cache, clock, workbench, memory.quarantine, sharing.memory))
    await triton.pool.close()
    finder.close()
    writer.close()
    _end_work(workbench, threads, lookers)
    memory.board.close()
    log.info("instance_stopped")


def _promoting(
    cache: ModelCache, clock: SystemClock, workbench: Workbench, quarantine: Quarantine, settings: CacheSettings
) -> list[Coroutine[Any, Any, None]]:
    if settings.prepacked == "off" or not prepacked.is_available():
        return []
    return [Promoter(cache, clock, workbench.expected_s, quarantine.guard).run()]


def _finder(store: TensorStore, lookers: ThreadPoolExecutor, settings: InstanceSettings, note: Callable[[str, str], None]) -> ModelFinder:
    return ModelFinder(store, lookers, settings.disk_bytes, settings.sharing, note)


def _note_leaving(journal: Journal, clock: SystemClock, uri: str, reason: str) -> None:
    journal.note(Entry(clock.wall_s(), "forget", uri, reason))
    log.info("model_forget", uri=uri, reason=reason)


def _end_work(workbench: Workbench, *pools: ThreadPoolExecutor) -> None:
    if not workbench.close(within_s=_LAST_RUNS_S):
        log.error("instance_hangs", reason="a run did not end: the process ends with it")
        os._exit(3)  # its thread can be ended in no other way; the board tells the next instance which model it was
    for pool in pools:
        pool.shutdown(wait=True, cancel_futures=True)


async def _run(server: HandlerServer, *beside: Coroutine[Any, Any, None]) -> None:
    """Serve, and do beside it what nobody asks for."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in beside]
        await server.run()
        for task in tasks:
            task.cancel()


class _Memory:
    """What outlives an instance, by its name: what it was doing, whom that makes a suspect, and what it served."""

    def __init__(self, folder: Path, name: str, clock: SystemClock) -> None:
        self._folder = folder
        self._name = sha256(name.encode()).hexdigest()[:16]
        self.quarantine = Quarantine(folder, self._name, clock)
        self.board = Board(folder / f"{self._name}.{os.getpid()}.board")

    def hot_set(self, cache: ModelCache) -> HotSet:
        return HotSet(cache, self._folder, self._name)


async def _listen(server: HandlerServer, at: Listening) -> None:
    if at.socket_path is not None:
        await server.listen_on_socket(at.socket_path)
        log.info("instance_listens", socket=at.socket_path)
        return
    port = await server.listen_on_port(at.host, at.port)
    log.info("instance_listens", host=at.host, port=port)


def _source_of(model_dir: Path | None) -> ModelSource | None:
    """The one model of a single-model container: everything else is loaded by POST /models."""
    if model_dir is None:
        return None
    uri = f"file://{model_dir.absolute()}"
    return ModelSource(uri, uri)


def _repair(store: TensorStore) -> None:
    """Before the first request: what a killed import left goes, and models without their files are imported anew."""
    report = importing.repair(store)
    if report.removed_files or report.dropped_models:
        log.warning(
            "store_repaired",
            removed_files=report.removed_files,
            lost_packs=report.lost_packs,
            dropped_models=report.dropped_models,
        )


def _stop_at_end_of_input(server: HandlerServer) -> None:
    """The parent holds the other end of stdin: when it dies, however it dies, we read end of file."""
    loop, descriptor = asyncio.get_running_loop(), sys.stdin.fileno()

    def on_input() -> None:
        if not os.read(descriptor, 4096):
            loop.remove_reader(descriptor)
            server.stop()

    os.set_blocking(descriptor, False)
    loop.add_reader(descriptor, on_input)


def raise_descriptor_limit() -> None:
    """As many descriptors as the system lets us have: connections and packs being opened."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
