"""An instance whose loads end only when three of them are under way. Started by test_process.py."""

import sys
import threading
from functools import partial

from flatshare.cli import main as cli
from flatshare.core.settings import InstanceSettings
from flatshare.core.spec import StoredModel
from flatshare.instance import process
from flatshare.instance.backends.base import Backend
from flatshare.instance.backends.mapped import MappedBackend, MappedModel

_meeting = threading.Barrier(3)


class MeetingBackend(MappedBackend):
    def load(self, stored: StoredModel) -> MappedModel:
        _meeting.wait(20)
        return super().load(stored)


def _engines(settings: InstanceSettings) -> Backend:
    return MeetingBackend(concurrent_runs=settings.workers)


if __name__ == "__main__":
    sys.argv[0] = "flatshare"
    process.serve_until_stopped = partial(process.serve_until_stopped, engines=_engines)
    cli.main()
