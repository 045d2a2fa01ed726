"""The folder of the instances' sockets, and those that servers which were killed have left behind."""

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

_PREFIX = "flatshare-run-"
_OWNER = "owner"


class SocketFolder:
    """A folder of our own, mode 0700: nobody else may dial. Making one sweeps away those whose server lives no more."""

    def __init__(self) -> None:
        _sweep(Path(tempfile.gettempdir()))
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        unlocked = self.path / f"{_OWNER}.new"
        self._owner: int | None = os.open(unlocked, os.O_RDWR | os.O_CREAT, 0o600)  # not inherited by the instances
        fcntl.flock(self._owner, fcntl.LOCK_EX)
        unlocked.rename(self.path / _OWNER)  # nobody sees it before it is locked

    def remove(self) -> None:
        """Once is enough."""
        if self._owner is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._owner)
            self._owner = None


def _sweep(folder: Path) -> None:
    """The kernel unlocks the owner's file when the owner dies; process ids would say nothing across containers that share a /tmp."""
    for owner in folder.glob(f"{_PREFIX}*/{_OWNER}"):
        with suppress(OSError):  # another user's, or somebody else sweeps too
            descriptor = os.open(owner, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(owner.parent, ignore_errors=True)
            finally:
                os.close(descriptor)
