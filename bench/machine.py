"""What the figures were measured on."""

from __future__ import annotations

import datetime as dt
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from broker import __version__


def describe(folder: Path) -> dict[str, Any]:
    """Machine, versions and the file system that ``folder`` is on."""
    return {
        "time": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "broker": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "file_system": _file_system(folder),
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _file_system(folder: Path) -> str:
    done = subprocess.run(
        ["stat", "-f", "-c", "%T", str(folder)], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def find_process(program: str, folder: Path) -> int | None:
    """Process id of a program that works in ``folder``."""
    for entry in Path("/proc").iterdir():
        try:
            name = (entry / "cmdline").read_bytes().partition(b"\0")[0].decode("utf-8", "replace")
            if Path(name).name == program and Path(os.readlink(entry / "cwd")) == folder:
                return int(entry.name)
        except (OSError, ValueError):
            continue
    return None


def cpu_seconds(pid: int) -> float:
    """Processor time, user and system, that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
