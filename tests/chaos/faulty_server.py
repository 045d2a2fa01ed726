"""`flatshare serve` whose instances are those of faulty_engine.py."""

import sys
from functools import partial

from flatshare import build
from flatshare.cli import main as cli
from flatshare.control.drivers.local import LocalDriver

if __name__ == "__main__":
    sys.argv[0] = "flatshare"
    command = (sys.executable, "-m", "tests.chaos.faulty_engine", "instance", "--template")
    setattr(build, "LocalDriver", partial(LocalDriver, command=command))  # noqa: B010  # build has no seam for it, and needs none
    cli.main()
