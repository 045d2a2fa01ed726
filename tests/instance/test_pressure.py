"""What the kernel says, read from files as kernels write them, and from this one."""

import mmap
import os
import subprocess
from pathlib import Path

import pytest

from flatshare.instance.pressure import Kernel

MEMINFO = "MemTotal:       8000000 kB\nMemFree:  1000 kB\nMemAvailable:   4000000 kB\n"
KB = 1024


def write(root: Path, files: dict[str, str]) -> Kernel:
    for name, text in ({"proc/meminfo": MEMINFO} | files).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return Kernel(root)


def test_without_a_cgroup_the_machine_counts(tmp_path: Path) -> None:
    signs = write(tmp_path, {"proc/pressure/memory": "some avg10=12.50 avg60=0.00 avg300=0.00 total=1\nfull avg10=1.00"}).signs(0.0)
    assert (signs.total, signs.available, signs.stalled_percent) == (8_000_000 * KB, 4_000_000 * KB, 12.5)


def test_a_cgroup_of_the_second_version_is_heeded_also_one_further_up(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/pod/container\n",
        "sys/fs/cgroup/pod/container/memory.max": "max\n",
        "sys/fs/cgroup/pod/container/memory.current": "1000\n",
        "sys/fs/cgroup/pod/container/memory.pressure": "some avg10=33.00 avg60=0.00 avg300=0.00 total=1\n",
        "sys/fs/cgroup/pod/memory.max": "1000000000\n",
        "sys/fs/cgroup/pod/memory.current": "900000000\n",
        "sys/fs/cgroup/pod/memory.stat": "anon 300000000\nactive_file 500000000\ninactive_file 100000000\n",
    }
    signs = write(tmp_path, files).signs(0.0)
    assert (signs.total, signs.available, signs.stalled_percent) == (1_000_000_000, 700_000_000, 33.0)


def test_a_cgroup_of_the_first_version_is_heeded(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "5:devices:/\n4:memory:/docker/abc\n0::/\n",
        "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": "500000000\n",
        "sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes": "450000000\n",
        "sys/fs/cgroup/memory/docker/abc/memory.stat": "cache 1\ntotal_active_file 200000000\ntotal_inactive_file 50000000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "5\n",
    }
    signs = write(tmp_path, files).signs(0.0)
    assert (signs.total, signs.available) == (500_000_000, 300_000_000)


def test_refaults_are_a_rate(tmp_path: Path) -> None:
    kernel = write(tmp_path, {"proc/vmstat": "workingset_refault_file 1000\n"})
    assert kernel.signs(10.0).refaults_per_s == 0
    (tmp_path / "proc/vmstat").write_text("workingset_refault_file 5000\n")
    assert kernel.signs(12.0).refaults_per_s == 2_000


def test_major_faults_of_this_process_are_a_rate(tmp_path: Path) -> None:
    stat = "7 (an odd) name) S 1 1 1 0 -1 4194304 500 0 {} 9 0 0 0 0 20 0 1 0 5 6 7"
    kernel = write(tmp_path, {"proc/self/stat": stat.format(100)})
    assert kernel.signs(10.0).major_faults_per_s == 0
    (tmp_path / "proc/self/stat").write_text(stat.format(150))
    assert kernel.signs(12.0).major_faults_per_s == 25
    assert kernel.last().major_faults_per_s == 25


def test_a_page_that_has_to_come_from_the_disk_is_seen(tmp_path: Path) -> None:
    kernel, path = Kernel(), tmp_path / "weights"
    path.write_bytes(os.urandom(1 << 20))
    if subprocess.check_output(["/usr/bin/stat", "-f", "-c", "%T", path], text=True).strip() in {"tmpfs", "ramfs"}:
        pytest.skip("the temporary folder is memory: nothing there comes from a disk")
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        kernel.signs(0.0)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as weights:
            assert sum(weights[:: mmap.PAGESIZE]) >= 0
    assert kernel.signs(1.0).major_faults_per_s >= 1


def test_this_kernel_answers() -> None:
    signs = Kernel().signs(0.0)
    assert 0 < signs.available <= signs.total
