"""A real Slurm for tests: one controller and a few nodes, all on loopback, in a folder of its own.

The programs are Debian's (``slurmctld``, ``slurmd``, ``slurm-client``, ``munge``) or any site's, from 22.05
on. Nothing of the system's own configuration is read or changed: configuration, state, logs and MUNGE's
key and socket are in the folder. Where the programs are not installed, the tests that need them are
skipped and say so.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from broker.dev.child import start_child, stop_child

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "sinfo", "scontrol")
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
NODES = ("n1", "n2")
START_SECONDS = 60.0
STOP_SECONDS = 15.0
JOB_SECONDS = 180.0


def search_path() -> str:
    """Where programs are looked for: daemons are often beyond a user's own path."""
    return f"{os.environ.get('PATH', os.defpath)}:{SBIN}"


def why_not() -> str:
    """Why there can be no cluster on this machine; "" when there can be one."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=search_path()) is None]
    if missing:
        return f"the Slurm lane does not run: {', '.join(missing)} not installed (Debian: slurm-wlm, munge)"
    return ""


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in held:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in held]


@dataclass
class Slurm:
    """One cluster.

    Attributes:
        home: Folder of all that it writes.
        settings: More lines of ``slurm.conf``.
    """

    home: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    children: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> Slurm:
        """Start it and wait until every node is idle."""
        if why := why_not():
            pytest.skip(why)
        for name in ("munge", "state", *(f"spool-{node}" for node in NODES)):
            (self.home / name).mkdir(mode=0o700, parents=True)
        self._start_munge()
        (self.home / "slurm.conf").write_text(self._configuration())
        self._daemon("slurmctld", "-D")
        for node in NODES:
            self._daemon("slurmd", "-D", "-N", node, log=f"slurmd-{node}")
        self._wait("idle nodes", lambda: self._idle_nodes() == len(NODES))
        return self

    def stop(self) -> None:
        """Stop every daemon, the last started first; stopping twice is fine."""
        while self.children:
            stop_child(self.children.pop(), timeout=STOP_SECONDS)

    def env(self, **more: str) -> dict[str, str]:
        """What its commands need, and nothing of this process's own but the path."""
        return {"PATH": search_path(), "SLURM_CONF": str(self.home / "slurm.conf"), **more}

    def run(self, *command: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
        """One command of the cluster, as a user on a login node would give it."""
        return subprocess.run(
            command,
            env=self.env(**env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=JOB_SECONDS,
        )

    def logs(self) -> str:
        """The last words of all daemons."""
        return "\n".join(f"{path.name}:\n{path.read_text()[-3000:]}" for path in self.home.glob("*.log"))

    # -- the parts ----------------------------------------------------------------------------------------

    def _daemon(self, *command: str, log: str = "") -> None:
        program = shutil.which(command[0], path=search_path())
        assert program is not None
        out = self.home / f"{log or command[0]}.log"
        self.children.append(start_child([program, *command[1:]], env=self.env(), log=out, cwd=self.home))

    def _start_munge(self) -> None:
        folder = self.home / "munge"
        key = folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        self._daemon(
            "munged",
            "--foreground",
            "--force",
            f"--key-file={key}",
            f"--socket={self._socket}",
            f"--pid-file={folder / 'pid'}",
            f"--log-file={folder / 'log'}",
            f"--seed-file={folder / 'seed'}",
        )
        self._wait("MUNGE's socket", self._socket.exists)

    @property
    def _socket(self) -> Path:
        return self.home / "munge.socket"

    def _configuration(self) -> str:
        user, host, ports = getpass.getuser(), socket.gethostname(), _free_ports(1 + len(NODES))
        lines = {
            "ClusterName": "loopback",
            "SlurmctldHost": f"{host}(127.0.0.1)",
            "SlurmctldPort": str(ports[0]),
            "CommunicationParameters": "NoCtldInAddrAny,NoInAddrAny",
            "SlurmUser": user,
            "SlurmdUser": user,
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={self._socket}",
            "CredType": "cred/munge",
            "StateSaveLocation": str(self.home / "state"),
            "SlurmdSpoolDir": str(self.home / "spool-%n"),
            "SlurmctldPidFile": str(self.home / "slurmctld.pid"),
            "SlurmdPidFile": str(self.home / "slurmd-%n.pid"),
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "JobAcctGatherType": "jobacct_gather/none",
            "AccountingStorageType": "accounting_storage/none",
            "SwitchType": "switch/none",
            "MpiDefault": "none",
            "SlurmdParameters": "config_overrides",
            "ReturnToService": "2",
            **self.settings,
        }
        nodes = [
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 State=UNKNOWN"
            for node, port in zip(NODES, ports[1:], strict=True)
        ]
        partition = f"PartitionName=main Nodes={','.join(NODES)} Default=YES State=UP"
        return "\n".join([*(f"{name}={value}" for name, value in lines.items()), *nodes, partition, ""])

    def _idle_nodes(self) -> int:
        found = self.run("sinfo", "--noheader", "--Node", "--states=idle", "--format=%N", cwd=self.home)
        return len(found.stdout.split())

    def _wait(self, what: str, condition: object) -> None:
        assert callable(condition)
        deadline = time.monotonic() + START_SECONDS
        while not condition():
            ended = [child.args for child in self.children if child.poll() is not None]
            assert not ended, f"a daemon stopped: {ended}\n{self.logs()}"
            assert time.monotonic() < deadline, f"waited for {what}\n{self.logs()}"
            time.sleep(0.05)


@contextlib.contextmanager
def running(home: Path, **settings: str) -> Iterator[Slurm]:
    """A cluster that runs for the duration of a with-block."""
    cluster = Slurm(home=home, settings=settings)
    try:
        yield cluster.start()
    finally:
        cluster.stop()
