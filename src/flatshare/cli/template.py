"""`flatshare instance --template`: the process from which the fleet driver forks its instances, told by a socket at stdin."""

import gc
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path


def fork_instances(live: Callable[[list[str]], None]) -> None:
    """Import what an instance needs, and fork instances until the driver has gone. In each of them, call `live` with its arguments."""
    from flatshare.instance.template import Template

    _import_all()
    channel = socket.socket(fileno=os.dup(0))
    gc.collect()
    gc.freeze()  # the instances' collections would write to every page that they share, and so copy it
    has_threads = _thread_count() > 1
    if has_threads:
        print("a library started threads when it was imported, so instances are started afresh: each takes half a second", flush=True)
    arguments = Template(channel).serve()
    if arguments is not None:
        _begin(arguments, afresh=has_threads)
        live(list(arguments))


def _import_all() -> None:
    """Every module that an instance has loaded when it answers its first /ping."""
    import setproctitle
    import uvloop  # noqa: F401

    import flatshare.instance.process
    import flatshare.telemetry.log  # noqa: F401

    setproctitle.setproctitle("flatshare template")


def _begin(arguments: tuple[str, ...], *, afresh: bool) -> None:
    """To the eye of `ps`, and if need be in truth, a `flatshare instance` with these arguments."""
    if afresh:  # another's threads do not survive a fork, and the locks that they held stay locked
        os.execv(sys.executable, (sys.executable, "-m", "flatshare", "instance", *arguments))  # noqa: S606
    import setproctitle

    setproctitle.setproctitle(" ".join(("flatshare", "instance", *arguments)))


def _thread_count() -> int:
    return len(list(Path("/proc/self/task").iterdir()))
