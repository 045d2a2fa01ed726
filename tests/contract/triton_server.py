"""Where the tests find real Triton, and the backends that they give it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flatshare.bench.triton_peer import TritonServer, triton_files, triton_server

VENV = Path(os.environ.get("FLATSHARE_TRITON_VENV", Path(__file__).parents[2] / ".venv-triton"))
_BACKENDS = Path(__file__).parent / "backends"


def triton_or_skip() -> None:
    """In CI it may not be missing: a contract that was tested on ourselves alone would look green as well."""
    if triton_files(VENV) is None:
        reason = f"no real Triton in {VENV}: run `make .stamps/triton`"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


@contextmanager
def running_triton(folder: Path) -> Iterator[TritonServer]:
    """Models of other backends than python run through the shims in `backends/`."""
    others = {name: _BACKENDS / f"{name}_model.py" for name in ("onnxruntime", "pytorch")}
    with triton_server(VENV, folder, others) as server:
        yield server
