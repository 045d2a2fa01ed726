"""What a benchmark ran on, and what its processes cost: CPU and memory as the kernel counts them."""

import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def describe() -> dict[str, object]:
    """The machine and the versions that matter, for the head of every report."""
    models = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    memory_kib = int(Path("/proc/meminfo").read_text().split("MemTotal:")[1].split()[0])
    packages = {name: version(name) for name in ("flatshare", "onnxruntime", "numpy", "tokenizers", "boto3")}
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory_kib / 2**20, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **packages,
    }


def family(pid: int) -> list[int]:
    """The process and all of its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, IndexError):  # a process that ended while we looked
                children.setdefault(int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1]), []).append(int(entry.name))
    found, left = [], [pid]
    while left:
        current = left.pop()
        found.append(current)
        left += children.get(current, [])
    return found


@dataclass(frozen=True, slots=True)
class Memory:
    """Sums over processes, in MB (10^6 bytes)."""

    anonymous_mb: float
    pss_mb: float
    maps: int
    descriptors: int


def memory_of(pids: list[int]) -> Memory:
    """Sums from smaps_rollup. Anonymous is what only swapping or killing could take back.

    What instances share since they were forked counts in each of them: a little too much, never too little.
    """
    anonymous = pss = maps = descriptors = 0
    for pid in pids:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        anonymous += int(rollup.split("\nAnonymous:")[1].split()[0])
        pss += int(rollup.split("Pss:")[1].split()[0])
        maps += Path(f"/proc/{pid}/maps").read_text().count("\n")
        descriptors += len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return Memory(anonymous * 1.024e-3, pss * 1.024e-3, maps, descriptors)


def cpu_seconds(pids: list[int]) -> float:
    """User and system time that the processes have used so far."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks * _TICK_S


def busy_seconds() -> float:
    """CPU time that the whole machine has used so far, to see what others took from a measurement."""
    fields = [int(n) for n in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) * _TICK_S
