"""A kubelet for tests: runs the containers of a manifest as processes, with what the manifest gives them.

Each container gets a mount namespace of its own: its volumes are where the manifest says, read-only where it
says so, the root file system cannot be written, and nothing but the manifest's variables is in its
environment. It has no capabilities and cannot gain any; loopback is the pod's own machine's. What it does
not get is another user id and a seccomp filter: the files of this checkout may be readable for one user
alone. An image is a folder of programs here.

Service-account tokens are signed with a key of the test's, written as a real kubelet writes them (a link to
a folder that is replaced as a whole), and rotated when the test says so.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from broker.canonical import Json
from tests.foreign import ForeignKey

TOOLS = ("unshare", "mount", "setpriv")
CLUSTER = "https://kubernetes.default.svc"
ENTRYPOINT = ("broker",)
"""Of the project's image; a test compares it with the Dockerfile."""
IMAGE_ENV = {"HOME": "/tmp", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}


def why_not() -> str:
    """Why no container can run on this machine; "" when one can."""
    missing = [name for name in TOOLS if shutil.which(name) is None]
    if missing:
        return f"the Kubernetes lane does not run: {', '.join(missing)} not installed"
    tried = subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "t", "/mnt"], capture_output=True)
    return "" if tried.returncode == 0 else "the Kubernetes lane does not run: no mount namespace can be had"


@dataclass(kw_only=True)
class Cluster:
    """What signs service-account tokens, and knows the accounts' uids."""

    uids: Mapping[tuple[str, str], str]
    key: ForeignKey = field(default_factory=lambda: ForeignKey("RS256"))
    issued: int = 0

    def token(self, *, namespace: str, account: str, audience: str, seconds: int, pod: str) -> str:
        """A bound token as the API server issues them."""
        self.issued += 1
        now = int(time.time())
        return self.key.jwt(
            {
                "aud": [audience],
                "exp": now + seconds,
                "iat": now,
                "iss": CLUSTER,
                "jti": f"00000000-0000-4000-8000-{self.issued:012d}",
                "kubernetes.io": {
                    "namespace": namespace,
                    "node": {"name": "node-1", "uid": "5d9f7c1e-9f6b-4c7e-8a53-0f3b8a7f1c11"},
                    "pod": {"name": pod, "uid": "0f3b8a7f-1c11-4c7e-8a53-5d9f7c1e9f6b"},
                    "serviceaccount": {"name": account, "uid": self.uids[namespace, account]},
                },
                "nbf": now,
                "sub": f"system:serviceaccount:{namespace}:{account}",
            },
            typ=None,
        )


@dataclass(kw_only=True)
class Pod:
    """The pod of a Job's template.

    Attributes:
        job: The manifest.
        home: Folder for its volumes.
        configs: Name -> data of the ConfigMaps that there are.
        programs: Folder of the programs of every image.
    """

    job: Json
    home: Path
    cluster: Cluster
    configs: Mapping[str, Mapping[str, str]]
    programs: Path
    image_env: Mapping[str, str] = field(default_factory=dict)
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if why := why_not():
            pytest.skip(why)
        for volume in self.spec["volumes"]:
            self._make_volume(volume)

    @property
    def spec(self) -> Json:
        found: Json = self.job["spec"]["template"]["spec"]
        return found

    def container(self, name: str) -> Json:
        """A container or init container."""
        [found] = [
            each
            for each in (*self.spec.get("initContainers", ()), *self.spec["containers"])
            if each["name"] == name
        ]
        return dict(found)

    def volume(self, name: str) -> Path:
        """The folder that is mounted as a volume."""
        return self.home / "volumes" / name

    # -- volumes --------------------------------------------------------------------------------------------

    def _make_volume(self, volume: Json) -> None:
        folder = self.volume(volume["name"])
        folder.mkdir(parents=True)
        if "configMap" in volume:
            self._project(folder, dict(self.configs[volume["configMap"]["name"]]))
        elif "projected" in volume:
            self.rotate(volume["name"])
        else:
            assert "emptyDir" in volume

    def rotate(self, name: str) -> None:
        """Replace the service-account tokens of a projected volume."""
        [volume] = [each for each in self.spec["volumes"] if each["name"] == name]
        found = {}
        for source in volume["projected"]["sources"]:
            wanted = source["serviceAccountToken"]
            found[wanted["path"]] = self.cluster.token(
                namespace=self.job["metadata"]["namespace"],
                account=self.spec["serviceAccountName"],
                audience=wanted["audience"],
                seconds=wanted["expirationSeconds"],
                pod=f"{self.job['metadata']['name']}-x7k2p",
            )
        self._project(self.volume(name), found)

    def _project(self, folder: Path, files: Mapping[str, str]) -> None:
        """``file`` -> ``..data/file``, and ``..data`` -> a new folder: the swap of one link replaces all."""
        stamped = folder / f"..{time.time_ns()}"
        stamped.mkdir()
        for name, text in files.items():
            (stamped / name).write_text(text)
            (stamped / name).chmod(0o640)
        (folder / "..data_tmp").symlink_to(stamped.name)
        (folder / "..data_tmp").rename(folder / "..data")
        for name in files:
            if not (folder / name).is_symlink():
                (folder / name).symlink_to(f"..data/{name}")

    # -- containers -------------------------------------------------------------------------------------

    def begin(self, name: str) -> subprocess.Popen[str]:
        """Start a container and return at once."""
        child = subprocess.Popen(
            self._command(name, self._arguments(name)),
            env=self._environment(name),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.running.append(child)
        return child

    def run(self, name: str, *, seconds: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run a container to its end."""
        child = self.begin(name)
        out, err = child.communicate(timeout=seconds)
        return subprocess.CompletedProcess(child.args, child.returncode, out, err)

    def probe(self, name: str, probe: str = "startupProbe") -> bool:
        """Whether a container's probe, a command, succeeds in its surroundings."""
        command = self.container(name)[probe]["exec"]["command"]
        done = subprocess.run(
            self._command(name, command),
            env=self._environment(name),
            cwd="/",
            capture_output=True,
            timeout=30,
        )
        return done.returncode == 0

    def stop(self) -> None:
        """SIGTERM for every container that runs; they are waited for."""
        for child in self.running:
            if child.poll() is None:
                child.terminate()
            child.communicate(timeout=30)

    def _arguments(self, name: str) -> list[str]:
        found = self.container(name)
        return [*found.get("command", ENTRYPOINT), *found.get("args", ())]

    def _environment(self, name: str) -> dict[str, str]:
        own = {each["name"]: each["value"] for each in self.container(name).get("env", ())}
        path = f"{self.programs}:{os.defpath}"
        return {**IMAGE_ENV, "PATH": path, **self.image_env, **own}

    def _command(self, name: str, command: Sequence[str]) -> list[str]:
        container = self.container(name)
        allowed = container["securityContext"]
        assert allowed["readOnlyRootFilesystem"] is True
        assert allowed["allowPrivilegeEscalation"] is False
        assert allowed["capabilities"] == {"drop": ["ALL"]}
        drop = ("setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--")
        script = f"{self._mounts(container)}\nexec {shlex.join([*drop, *command])}"
        return ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-ec", script]

    def _mounts(self, container: Json) -> str:
        mounts = container.get("volumeMounts", [])
        tops = sorted({f"/{each['mountPath'].split('/')[1]}" for each in mounts} | {"/dev/shm"})
        lines = [f"mount -t tmpfs -o mode=0755 tmpfs {top}" for top in tops]
        for each in mounts:
            target = shlex.quote(each["mountPath"])
            lines.append(f"mkdir -p {target}")
            lines.append(f"mount --bind {shlex.quote(str(self.volume(each['name'])))} {target}")
            if each.get("readOnly"):
                lines.append(f"mount -o remount,bind,ro {target}")
        # What the image holds, and the folders that the mounts needed, cannot be written.
        lines += [f"mount -o remount,bind,ro {top}" for top in (*tops, "/") if top != "/dev/shm"]
        return "\n".join(lines)
