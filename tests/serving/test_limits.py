"""The default of --memory over control groups as the kernels and container engines lay them out."""

from pathlib import Path

import pytest

from flatshare.core.sizes import MIB
from flatshare.serving.limits import default_memory_bytes

GIB = 1024 * MIB
UNLIMITED_V1 = str(2**63 - 4096)


def tree(root: Path, files: dict[str, str], *, machine_bytes: int = 16 * GIB) -> Path:
    """A file system with these files, and a machine of so much memory."""
    files = {"proc/meminfo": f"MemTotal:       {machine_bytes // 1024} kB\nMemFree:  1 kB\n"} | files
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


CASES: dict[str, tuple[dict[str, str], int]] = {
    "no control groups": ({}, 8 * GIB),
    "version 2, no limit": ({"proc/self/cgroup": "0::/user.slice\n", "sys/fs/cgroup/user.slice/memory.max": "max\n"}, 8 * GIB),
    "version 2, a container that sees its own group as the root": (
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{2 * GIB}\n"},
        int(1.5 * GIB) - 192 * MIB,
    ),
    "version 2, a systemd unit": (
        {
            "proc/self/cgroup": "0::/system.slice/flatshare.service\n",
            "sys/fs/cgroup/system.slice/flatshare.service/memory.max": f"{4 * GIB}",
        },
        3 * GIB - 192 * MIB,
    ),
    "version 2, the slice above is tighter": (
        {
            "proc/self/cgroup": "0::/a.slice/b.service\n",
            "sys/fs/cgroup/a.slice/memory.max": f"{2 * GIB}",
            "sys/fs/cgroup/a.slice/b.service/memory.max": f"{4 * GIB}",
        },
        int(1.5 * GIB) - 192 * MIB,
    ),
    "version 1": (
        {
            "proc/self/cgroup": "9:name=systemd:/x\n4:memory:/docker/abc\n0::/\n",
            "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": f"{2 * GIB}",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": UNLIMITED_V1,
        },
        int(1.5 * GIB) - 192 * MIB,
    ),
    "version 1, the host's path is not visible in the container": (
        {"proc/self/cgroup": "4:cpu,memory:/docker/abc\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}"},
        int(1.5 * GIB) - 192 * MIB,
    ),
    "version 1, no limit": (
        {"proc/self/cgroup": "4:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": UNLIMITED_V1},
        8 * GIB,
    ),
    "hybrid, the limit in the unified tree": (
        {"proc/self/cgroup": "4:memory:/\n0::/unit\n", "sys/fs/cgroup/unified/unit/memory.max": f"{2 * GIB}"},
        int(1.5 * GIB) - 192 * MIB,
    ),
    "a limit above the machine's memory": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{64 * GIB}"}, 8 * GIB),
    "a tiny container": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{128 * MIB}"}, 256 * MIB),
    "nonsense": ({"proc/self/cgroup": "0::/../../x\n", "sys/fs/cgroup/x/memory.max": "soon\n"}, 8 * GIB),
}


@pytest.mark.parametrize("name", CASES)
def test_the_budget_follows_the_tightest_limit(tmp_path: Path, name: str) -> None:
    files, expected = CASES[name]
    assert default_memory_bytes(tree(tmp_path, files)) == expected


def test_a_limit_near_the_machines_memory_leaves_room_for_others(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{15 * GIB}"}
    assert default_memory_bytes(tree(tmp_path, files)) == 8 * GIB


def test_without_proc_there_is_a_default_all_the_same(tmp_path: Path) -> None:
    assert default_memory_bytes(tmp_path) == 2 * GIB


def test_this_machine_has_an_answer() -> None:
    assert default_memory_bytes() >= 256 * MIB
