"""What the kernel says about memory, where this process runs: machine, cgroup v1 or v2, stalls, refaults, major faults. Linux."""

from dataclasses import dataclass
from pathlib import Path

from flatshare.policy.pressure import Signs

_UNLIMITED = 1 << 60


@dataclass(frozen=True, slots=True)
class _Group:
    """One memory cgroup with a limit, in bytes."""

    limit: int
    used: int
    """Without the page cache, which the kernel takes back before it kills."""
    cached: int


class Kernel:
    """Reads /proc and /sys below `root`. `signs` costs a tenth of a millisecond, `last` nothing."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._groups = tuple(_group_folders(root))
        self._refaults, self._major_faults = _Rate(), _Rate()
        self._last = Signs(0, 0)

    def signs(self, now_s: float) -> Signs:
        meminfo = _numbers(self._root / "proc/meminfo")
        total, available, free = (1024 * meminfo.get(f"Mem{what}:", 0) for what in ("Total", "Available", "Free"))
        for folder in self._groups:
            group = _read_group(folder)
            if group is not None and group.limit < _UNLIMITED:
                total = min(total, group.limit)
                available = min(available, max(0, group.limit - group.used))
                free = min(free, max(0, group.limit - group.used - group.cached))
        refaults, major_faults = (
            self._refaults.now(now_s, self._count_refaults()),
            self._major_faults.now(now_s, self._count_major_faults()),
        )
        self._last = Signs(total, available, self._stalled_percent(), refaults, free, major_faults)
        return self._last

    def last(self) -> Signs:
        """What it said at the last look."""
        return self._last

    def _stalled_percent(self) -> float:
        for folder in self._groups:
            if (folder / "memory.pressure").exists():
                return _some_avg10(folder / "memory.pressure")
        return _some_avg10(self._root / "proc/pressure/memory")

    def _count_refaults(self) -> int:
        """Of our cgroup if it counts them, else of the machine."""
        for path in (*(folder / "memory.stat" for folder in self._groups), self._root / "proc/vmstat"):
            numbers = _numbers(path)
            found = numbers.get("total_workingset_refault_file", numbers.get("workingset_refault_file"))
            if found is not None:
                return found
        return 0

    def _count_major_faults(self) -> int:
        """Of all threads of this process, since it began (proc(5), majflt)."""
        fields = _text(self._root / "proc/self/stat").rpartition(")")[2].split()
        return int(fields[9]) if fields else 0


class _Rate:
    """Of a count that only grows: how much a second since the last look."""

    def __init__(self) -> None:
        self._looked_s: float | None = None
        self._count = 0

    def now(self, now_s: float, count: int) -> float:
        before_s, before, self._looked_s, self._count = self._looked_s, self._count, now_s, count
        if before_s is None or now_s <= before_s:
            return 0.0
        return max(0, count - before) / (now_s - before_s)


def _group_folders(root: Path) -> list[Path]:
    """The memory cgroups that this process is in, innermost first, as far as they can be seen from here."""
    folders = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            folders += _upwards(root / "sys/fs/cgroup", path) + _upwards(root / "sys/fs/cgroup/unified", path)
        elif "memory" in controllers.split(","):
            folders += _upwards(root / "sys/fs/cgroup/memory", path)
    return [folder for folder in folders if (folder / "memory.max").exists() or (folder / "memory.limit_in_bytes").exists()]


def _upwards(base: Path, path: str) -> list[Path]:
    parts = [part for part in path.split("/") if part and part != ".."]
    return [base.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]


def _read_group(folder: Path) -> _Group | None:
    stat = _numbers(folder / "memory.stat")
    if (folder / "memory.max").exists():
        limit, used = _text(folder / "memory.max").strip(), _text(folder / "memory.current").strip()
        cache = stat.get("active_file", 0) + stat.get("inactive_file", 0)
    else:
        limit, used = _text(folder / "memory.limit_in_bytes").strip(), _text(folder / "memory.usage_in_bytes").strip()
        cache = stat.get("total_active_file", 0) + stat.get("total_inactive_file", 0)
    if not used.isdigit() or not limit.isdigit():  # "max", or the cgroup has gone
        return None
    return _Group(int(limit), max(0, int(used) - cache), cache)


def _some_avg10(path: Path) -> float:
    for line in _text(path).splitlines():
        if line.startswith("some "):
            return float(line.split()[1].removeprefix("avg10="))
    return 0.0


def _numbers(path: Path) -> dict[str, int]:
    pairs = (line.split() for line in _text(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) >= 2 and pair[1].isdigit()}


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # not every kernel has every file
        return ""
