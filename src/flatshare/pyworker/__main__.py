"""`python -m flatshare.pyworker FD`: one worker process. The instance starts it, with one end of a socket pair as FD."""

import argparse
import ctypes
import os
import resource
import signal
import socket
import sys
import traceback

from flatshare.pyworker.host import Host
from flatshare.pyworker.hygiene import Hygiene
from flatshare.pyworker.link import InstanceGone, Link
from flatshare.pyworker.prints import BoundedPrints

_PR_SET_PDEATHSIG = 1


def main() -> None:
    parser = argparse.ArgumentParser(prog="flatshare.pyworker")
    parser.add_argument("descriptor", type=int)
    parser.add_argument("--private-bytes", type=int, default=0, help="most private memory; what asks for more gets a MemoryError")
    parser.add_argument("--no-hygiene", action="store_true", help="leave gradients, garbage and freed memory to the models")
    arguments = parser.parse_args()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the operator's terminal is the server's to handle
    if arguments.private_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (arguments.private_bytes, arguments.private_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is reported, and a core of gigabytes helps nobody
    sys.stdout = sys.stderr = BoundedPrints(2)
    link = Link(socket.socket(fileno=arguments.descriptor))
    status = 0
    try:
        Host(link, Hygiene(is_on=not arguments.no_hygiene)).run()
    except InstanceGone:
        status = 0
    except BaseException:  # noqa: BLE001  # the worker's main
        os.write(2, traceback.format_exc().encode())
        status = 70  # EX_SOFTWARE
    os._exit(status)  # models' threads and exit handlers must not hold up the end


if __name__ == "__main__":
    main()
