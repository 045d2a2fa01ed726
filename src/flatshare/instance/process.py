"""One instance as a process: put together, served on a Unix socket or a port, drained when asked to stop or when its parent is gone."""

import asyncio
import os
import resource
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flatshare.core.call import ModelSource
from flatshare.core.clock import SystemClock
from flatshare.core.settings import MAX_BODY_BYTES, InstanceSettings, Listening, WorkerSettings
from flatshare.instance import importing
from flatshare.instance.app import InstanceApp
from flatshare.instance.backends.engines import Engines
from flatshare.instance.backends.generate.engine import GenerateBackend
from flatshare.instance.backends.mapped import MappedBackend
from flatshare.instance.backends.triton.backend import TritonBackend
from flatshare.instance.books import Books, anonymous_bytes
from flatshare.instance.cache import ModelCache
from flatshare.instance.finding import ModelFinder
from flatshare.instance.serve import Server
from flatshare.instance.workbench import Workbench
from flatshare.serving.connection import Bounds
from flatshare.serving.server import HandlerServer, settle_memory, stop_on_signals
from flatshare.store.tensors import TensorStore
from flatshare.telemetry.journal import Journal
from flatshare.telemetry.log import get_logger

log = get_logger("instance")
_LOADERS = 2  # loads under way at once: enough to hide the disk, few enough to leave the cores to requests
_LOOKERS = 4  # looks at artifacts, which may hang on a store: apart from the loaders, which also unload
_KEEP_ALIVE_S = 3600  # the gateway closes its connections, not we


async def serve_until_stopped(settings: InstanceSettings, own_code: WorkerSettings, at: Listening, model_dir: Path | None) -> None:
    """Serve until SIGTERM, or end of file on stdin if that is followed; then finish what is under way, within the drain time.

    `model_dir` is the one model of POST /invocations.
    """
    store = TensorStore(settings.store_dir)
    _repair(store)
    threads = ThreadPoolExecutor(_LOADERS, thread_name_prefix="loader")
    lookers = ThreadPoolExecutor(_LOOKERS, thread_name_prefix="looker")
    writer = GenerateBackend(threads=settings.workers, cache_bytes=settings.cache_bytes, max_jobs=settings.max_waiting)
    triton = TritonBackend(own_code)
    backend = Engines({"mapped": MappedBackend(concurrent_runs=settings.workers), "generate": writer, "triton": triton})
    workbench = Workbench(settings.workers, settings.max_waiting)
    finder = ModelFinder(store, lookers, settings.disk_bytes)
    journal = Journal()
    books = Books(settings.memory_bytes, settings.anonymous_share, anonymous_bytes(), lambda: triton.pool.anonymous_bytes)
    cache = ModelCache(
        backend, finder, books, threads, SystemClock(), journal, patience_s=settings.patience_s, recheck_s=settings.recheck_s
    )
    app = InstanceApp(Server(cache, workbench), cache, workbench, journal, backend, _source_of(model_dir))
    server = HandlerServer(app.handle, Bounds(max_body_bytes=MAX_BODY_BYTES, idle_s=_KEEP_ALIVE_S), drain_s=settings.drain_s)
    stop_on_signals(server.stop)
    await _listen(server, at)
    if at.follow_stdin:
        _stop_at_end_of_input(server)
    log.info("instance_starts", memory_bytes=settings.memory_bytes, pid=os.getpid())
    settle_memory()
    await server.run()
    await triton.pool.close()
    finder.close()
    workbench.close()
    writer.close()
    for pool in (threads, lookers):
        pool.shutdown(wait=True, cancel_futures=True)
    log.info("instance_stopped")


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
