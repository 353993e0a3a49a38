"""The memory that is left to a process, on machines whose groups and limits are made of files."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from metaflow_artifacts._transfer.free_memory import free_memory

MIB = 1 << 20
MACHINE = 5000
V1 = "9:cpu,cpuacct:/elsewhere\n4:memory:{}\n0::/elsewhere\n"
V2 = "0::{}\n"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text(f"MemTotal: 9999999 kB\nMemAvailable: {MACHINE * 1024} kB\n")
    return tmp_path / "proc"


def groups(proc: Path, version: int, own: str, mounted: str, **limits: tuple[str, int, int]) -> None:
    """Describe groups: for each directory (`_` between its parts) the limit, what is used, and unused files, in MiB."""
    top = proc.parent / "groups"
    (proc / "self" / "cgroup").write_text((V1, V2)[version - 1].format(own))
    kind = ("cgroup cgroup rw,memory", "cgroup2 cgroup rw")[version - 1]
    (proc / "self" / "mountinfo").write_text(
        "27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
        f"33 31 0:30 / {top}/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
        f"35 31 0:32 {mounted} {top} rw,relatime shared:9 - {kind}\n"
    )
    names = (("memory.limit_in_bytes", "memory.usage_in_bytes"), ("memory.max", "memory.current"))[version - 1]
    for name, (limit, used, files) in limits.items():
        directory = top.joinpath(*name.split("_"))
        directory.mkdir(parents=True, exist_ok=True)
        (directory / names[0]).write_text(f"{int(limit) * MIB}\n" if limit.isdigit() else f"{limit}\n")
        (directory / names[1]).write_text(f"{used * MIB}\n")
        # In version 1, the second is the one that counts groups below.
        stat = "inactive_file {1}\n" if version == 2 else "inactive_file 7\ntotal_inactive_file {1}\n"
        (directory / "memory.stat").write_text(("anon {0}\n" + stat).format(used * MIB, files * MIB))


@pytest.mark.parametrize("version", [1, 2])
def test_the_least_of_all_limits_counts(proc: Path, version: int) -> None:
    none = "max" if version == 2 else str((1 << 63) // MIB - 1)
    # As Slurm and systemd set them: below what is mounted, and not at the innermost directory.
    groups(proc, version, "/job/step/task", "/", job=("3000", 500, 0), job_step=("400", 300, 50))
    assert free_memory(str(proc)) == 150 * MIB
    groups(proc, version, "/job/step/task", "/", job=("3000", 2900, 0), job_step=(none, 300, 50))
    assert free_memory(str(proc)) == 100 * MIB
    groups(proc, version, "/job/step/task", "/", job=(none, 2900, 0), job_step_task=("300", 260, 0))
    assert free_memory(str(proc)) == 40 * MIB
    groups(proc, version, "/other", "/", job=("300", 300, 0))
    assert free_memory(str(proc)) == MACHINE * MIB


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("own", "mounted"), [("/", "/"), ("/docker/1", "/docker/1"), ("/../2", "/"), ("/", "/..")])
def test_a_container_sees_its_own_group_at_the_top(proc: Path, version: int, own: str, mounted: str) -> None:
    groups(proc, version, own, mounted, **{"": ("400", 300, 0)})
    assert free_memory(str(proc)) == 100 * MIB


def test_a_group_within_a_container_with_a_name_that_is_escaped(proc: Path) -> None:
    groups(proc, 2, "/a\\x2d b/1", "/a\\134x2d\\040b", **{"1": ("400", 300, 0), "": ("900", 100, 0)})
    assert free_memory(str(proc)) == 100 * MIB


def test_the_limit_that_slows_a_group_down_counts_too(proc: Path) -> None:
    groups(proc, 2, "/job", "/", job=("max", 300, 0))
    (proc.parent / "groups" / "job" / "memory.high").write_text(f"{350 * MIB}\n")
    assert free_memory(str(proc)) == 50 * MIB


@pytest.mark.parametrize("name", ["cgroup", "mountinfo"])
@pytest.mark.parametrize("content", [None, "", "nonsense cgroup\n", "1:2\n3 cgroup -\n"])
def test_what_is_not_understood_is_left_out(proc: Path, name: str, content: str | None) -> None:
    groups(proc, 2, "/", "/", **{"": ("400", 300, 0)})
    (proc / "self" / name).unlink()
    if content is not None:
        (proc / "self" / name).write_text(content)
    assert free_memory(str(proc)) == MACHINE * MIB
    (proc / "meminfo").unlink()
    assert free_memory(str(proc)) is None


def test_this_machine_says_it() -> None:
    total = int(subprocess.check_output(["awk", "/^MemTotal/ {print $2}", "/proc/meminfo"])) << 10
    free = free_memory()
    assert free is not None
    assert 0 < free <= total
