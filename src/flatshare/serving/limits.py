"""What memory this process may take: the machine's, or less if a control group (a container, a systemd unit) limits it. Linux."""

from collections.abc import Iterator
from pathlib import Path

from flatshare.core.sizes import MIB

_UNLIMITED = 1 << 60  # version 1 says "none" as a number near 2^63
_MACHINE_SHARE = 0.5  # others live there too
_GROUP_SHARE = 0.75
_BESIDE_BYTES = 192 * MIB  # the gateway (about 100 MB with gRPC), and an import process for a while
_LEAST_BYTES = 256 * MIB


def default_memory_bytes(root: Path = Path("/")) -> int:
    """What all instances may take if nobody says: half of the machine's memory, or three quarters of a limit that holds for us,
    less what the gateway takes. `root` is the file system, for tests.
    """
    machine = _machine_bytes(root)
    group = min(_group_limits(root), default=machine)
    budget = int(min(_MACHINE_SHARE * machine, _GROUP_SHARE * group - _BESIDE_BYTES) if group < machine else _MACHINE_SHARE * machine)
    return max(_LEAST_BYTES, budget // MIB * MIB)


def _machine_bytes(root: Path) -> int:
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "MemTotal":
            return int(value.split()[0]) * 1024
    return 4096 * MIB  # no Linux: as much as any machine has


def _group_limits(root: Path) -> Iterator[int]:
    """Of the groups that this process is in, the outer ones too, by version 1 and 2, as far as they can be seen from here."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            places = [("sys/fs/cgroup", "memory.max"), ("sys/fs/cgroup/unified", "memory.max")]
        elif "memory" in controllers.split(","):
            places = [("sys/fs/cgroup/memory", "memory.limit_in_bytes")]
        else:
            continue
        for base, file in places:
            for folder in _upwards(root / base, path):
                limit = _text(folder / file).strip()
                if limit.isdigit() and 0 < int(limit) < _UNLIMITED:
                    yield int(limit)


def _upwards(base: Path, path: str) -> Iterator[Path]:
    """A group's folder and those above it. Within a container the path may name a group that only the host sees: the base remains."""
    parts = [part for part in path.split("/") if part not in {"", ".", ".."}]
    for count in range(len(parts), -1, -1):
        yield base.joinpath(*parts[:count])


def _text(path: Path) -> str:
    """Nothing for a file that is not there or may not be read: then it tells of no limit."""
    try:
        return path.read_text()
    except OSError:
        return ""
