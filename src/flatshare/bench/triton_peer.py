"""Real NVIDIA Triton out of the nvidia-pytriton wheel, in a virtual environment of its own (`make .stamps/triton`), on free ports.

The peer of `bench packages`, and the second server of the contract suite.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_START_S = 60


@dataclass(frozen=True, slots=True)
class TritonServer:
    """A running server. `pid` is tritonserver's; its Python models are its children."""

    pid: int
    sagemaker_port: int
    http_port: int
    grpc_port: int
    log: Path
    repository: Path
    """Where models may be put that are then loaded by name."""


def triton_files(venv: Path) -> Path | None:
    """The folder of the server's files; None if the environment has none."""
    found = sorted(venv.glob("lib/python*/site-packages/pytriton/tritonserver"))
    return found[0] if found else None


@contextmanager
def triton_server(
    venv: Path, folder: Path, others: Mapping[str, Path] | None = None, *, before: Sequence[str] = ()
) -> Iterator[TritonServer]:
    """Started without models, stopped whatever happens. `others` are backends written in Python, since the wheel brings only that one.

    `before` is put before its command.
    """
    files = triton_files(venv)
    if files is None:
        raise FileNotFoundError(f"no Triton in {venv}: install nvidia-pytriton there, or run `make .stamps/triton`")
    backends, repository = folder / "backends", folder / "repository"
    repository.mkdir(parents=True)
    _lay_out(files, backends, others or {})
    ports = _free_ports(4)
    log = folder / "triton.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*before, *_command(files, repository, backends, ports)], stdout=output, stderr=output, env=_environment(files, venv)
        )
    server = TritonServer(process.pid, ports[0], ports[1], ports[2], log, repository)
    try:
        _wait_until_ready(process, server)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _lay_out(files: Path, backends: Path, others: Mapping[str, Path]) -> None:
    """The stub belongs beside the backend."""
    python = backends / "python"
    shutil.copytree(files / "backends" / "python", python)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = shutil.copy(files / "python_backend_stubs" / version / "triton_python_backend_stub", python)
    Path(stub).chmod(0o755)
    for name, code in others.items():
        (backends / name).mkdir()
        shutil.copy(code, backends / name / "model.py")


def _command(files: Path, repository: Path, backends: Path, ports: list[int]) -> list[str]:
    sagemaker, http, grpc, metrics = map(str, ports)
    return [
        str(files / "bin" / "tritonserver"), f"--model-repository={repository}", f"--backend-directory={backends}",
        "--model-control-mode=explicit", "--http-address=127.0.0.1", f"--http-port={http}",
        "--grpc-address=127.0.0.1", f"--grpc-port={grpc}",
        "--metrics-address=127.0.0.1", f"--metrics-port={metrics}", "--allow-gpu-metrics=false", "--allow-sagemaker=true",
        f"--sagemaker-port={sagemaker}", "--backend-config=python,shm-default-byte-size=16777216",
    ]  # fmt: skip


def _environment(files: Path, venv: Path) -> dict[str, str]:
    """Its models' Python is the one on PATH, which finds torch and onnxruntime by a .pth file (Makefile)."""
    packages = files.parent.parent
    libraries = f"{packages / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}"
    return os.environ | {
        "LD_LIBRARY_PATH": libraries,
        "PYTHONPATH": str(packages),
        "PATH": f"{venv / 'bin'}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }


def _wait_until_ready(process: "subprocess.Popen[bytes]", server: TritonServer) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"tritonserver ended with {process.returncode}: {server.log.read_text()[-2000:]}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.sagemaker_port}/ping", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise RuntimeError(f"tritonserver was not ready within {_START_S} s")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
