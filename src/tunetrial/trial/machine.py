"""What machine this is, asked without torch."""

import shutil
import subprocess
from pathlib import Path

import psutil

from tunetrial.plan import catalogue

WAIT_S = 5.0
# Of cgroups of version 2 and 1: the limit, what is used, and the line of memory.stat of what the kernel can take back.
CGROUPS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)


def free_host_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory of the host that processes may still take: what the system has left, or the container's limit leaves."""
    return min([psutil.virtual_memory().available, *(_left(cgroup, *names) for names in CGROUPS)])


def _left(cgroup: Path, limit: str, used: str, stat: str, line: str) -> float:
    """What a limit leaves; without a limit there is no end to it."""
    try:
        bound, taken = (cgroup / limit).read_text().strip(), int((cgroup / used).read_text())
        stats = dict(row.split() for row in (cgroup / stat).read_text().splitlines())
    except (OSError, ValueError):
        return float("inf")
    return float("inf") if bound == "max" else max(0, int(bound) - taken + int(stats.get(line, 0)))


def gpu_name() -> str | None:
    """The GPU as plans know it, or in its maker's words; None without one, or without NVIDIA's tools."""
    name = driver_name()
    return name and short_name(name)


def driver_name() -> str | None:
    """The first GPU in its maker's words; None without one, or without NVIDIA's tools."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    try:
        asked = [tool, "--query-gpu=name", "--format=csv,noheader"]
        said = subprocess.run(asked, capture_output=True, text=True, timeout=WAIT_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return said.splitlines()[0].strip() if said.strip() else None


def short_name(name: str) -> str:
    """`NVIDIA A100-SXM4-80GB` is `a100-80`; a name that plans do not know stays as it is."""
    found = catalogue.find(name)
    return found.name if found else name
