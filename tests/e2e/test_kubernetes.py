"""The Kubernetes recipes, run as their manifests say, with a kubelet that rotates the pod's identity."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from broker.canonical import Json
from tests.e2e.running import MIB, ROOT, Stack, noise, read_tree, until, write_tree
from tests.kubelet import CLUSTER, ENTRYPOINT, IMAGE_ENV, Cluster, Pod, why_not

RECIPE = ROOT / "examples" / "kubernetes"
UID = "7b0c2f3e-3a49-4a5e-9a5b-5f8d1a0c9e42"
OTHER_UID = "8c1d3a4f-4b5a-4b6f-8b6c-6a9e2b1d0f53"
ACCOUNT = ("training", "train")
FILES = {
    "config.json": b'{"hidden_size": 4096}',
    "model.safetensors": noise(2 * MIB + 7, "kubernetes"),
    "notes.txt": b"read under the second identity",
}


def documents(name: str) -> list[Json]:
    return list(yaml.safe_load_all((RECIPE / name).read_text()))


def recipe_config() -> str:
    [found] = [each for each in documents("base.yaml") if each["kind"] == "ConfigMap"]
    assert found["metadata"]["name"] == "broker-profile"
    return str(found["data"]["config.toml"])


@pytest.fixture(scope="module")
def own(new_stack: Callable[..., Stack]) -> Stack:
    if why := why_not():
        pytest.skip(why)
    stack = new_stack()
    pub = stack.add("pub", "--role", "publisher", "--group", "acme")
    tree = write_tree(stack.home.parent / "weights", FILES)
    pub.cli("put", tree, "acme/llama-7b@step-1000", "--extent-size", "1MiB")
    return stack


@pytest.fixture(scope="module")
def cluster(own: Stack, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """Registered as the page says, with keys that the broker cannot fetch."""
    found = Cluster(uids={ACCOUNT: UID})
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "jwks.json").write_text(json.dumps({"keys": [found.key.jwk()]}))
    text = (RECIPE / "issuer-map.toml").read_text()
    assert text.count("00000000-0000-0000-0000-000000000000") == 1
    (folder / "issuer-map.toml").write_text(text.replace("00000000-0000-0000-0000-000000000000", UID))
    options = ("--kind", "kubernetes", "--issuer", CLUSTER, "--map", "issuer-map.toml", "--jwks", "jwks.json")
    own.admin.cli("admin", "issuer", "add", "prod-cluster", *options, cwd=folder)
    return found


@pytest.fixture
def start(own: Stack, tmp_path: Path) -> Iterator[Callable[[str, Cluster], Pod]]:
    """Makes the pod of a recipe: the site's names in it are those of the stack."""
    profile = (own.home / "profiles" / "pub" / "config.toml").read_text()
    config = "".join(line for line in profile.splitlines(keepends=True) if not line.startswith("principal"))
    assert set(tomllib.loads(config)) == set(tomllib.loads(recipe_config()))
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, words in {"broker": '-P -m broker "$@"', "python": '-P "$@"'}.items():
        (programs / name).write_text(f"#!/bin/sh\nexec {sys.executable} {words}\n")
        (programs / name).chmod(0o755)
    made: list[Pod] = []

    def make(recipe: str, cluster: Cluster) -> Pod:
        text = (
            (RECIPE / recipe)
            .read_text()
            .replace("audience: https://broker.example.com", f"audience: {tomllib.loads(config)['issuer']}")
        )
        pod = Pod(
            job=yaml.safe_load(text),
            home=tmp_path / "pod",
            cluster=cluster,
            configs={"broker-profile": {"config.toml": config}},
            programs=programs,
            image_env={"PYTHONPATH": str(ROOT)},
        )
        made.append(pod)
        return pod

    yield make
    for pod in made:
        pod.stop()


def tokens(stack: Stack, before: int) -> list[dict[str, Any]]:
    return [entry for entry in stack.entries()[before:] if entry["type"] == "token"]


def held(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_the_image_is_the_projects() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert f"ENTRYPOINT {json.dumps(ENTRYPOINT)}" in lines
    assert all(any(f"{name}={value}" in line for line in lines) for name, value in IMAGE_ENV.items())


def test_an_init_container_fetches(own: Stack, cluster: Cluster, start: Callable[..., Pod]) -> None:
    pod = start("init-container.yaml", cluster)
    before = own.size()
    held(pod.run("weights"))
    assert read_tree(pod.volume("weights")) == FILES
    assert held(pod.run("train")).split() == ["weights:", *FILES]
    [token] = tokens(own, before)
    assert (token["principal"], token["issuer"]) == ("workload:prod-cluster/training/train", "prod-cluster")
    grants = [entry for entry in own.entries()[before:] if entry["type"] == "grant"]
    assert {entry["jkt"] for entry in grants} == {token["jkt"]}
    # A restarted container has the same key, so the pod's token is still good for it.
    held(pod.run("weights"))
    assert {entry["jkt"] for entry in tokens(own, before)} == {token["jkt"]}


def test_nothing_can_be_written_but_volumes(cluster: Cluster, start: Callable[..., Pod]) -> None:
    pod = start("init-container.yaml", cluster)
    script = (
        "for each in /run/broker/profile /run/broker/identity /tmp /run /; do touch $each/x && exit 1; done"
    )
    more = "touch /mnt/weights/x /run/broker/state/x"
    pod.container("weights")
    for each in pod.spec["initContainers"]:
        each |= {"command": ["/bin/sh", "-c"], "args": [f"{script}; {more}"]}
    held(pod.run("weights"))
    assert (pod.volume("weights") / "x").exists()


def test_another_service_account_is_nobody(own: Stack, cluster: Cluster, start: Callable[..., Pod]) -> None:
    """The same names, signed by the same cluster: but made anew, so with another uid."""
    pod = start("init-container.yaml", Cluster(uids={ACCOUNT: OTHER_UID}, key=cluster.key))
    before = own.size()
    done = pod.run("weights")
    assert done.returncode == 4, done.stderr
    assert read_tree(pod.volume("weights")) == {}
    assert tokens(own, before) == []


def test_a_sidecar_serves(own: Stack, cluster: Cluster, start: Callable[..., Pod]) -> None:
    pod = start("sidecar.yaml", cluster)
    before = own.size()
    assert not pod.probe("broker-agent")
    sidecar = pod.begin("broker-agent")
    until(lambda: pod.probe("broker-agent") or sidecar.poll() is not None, what="the sidecar")
    assert sidecar.poll() is None, sidecar.communicate()
    assert held(pod.run("train")) == f"config: {FILES['config.json'].decode()}\n"
    [first] = tokens(own, before)

    # The kubelet replaces the identity while the sidecar runs; the next token rests on the new one.
    pod.rotate("broker-identity")
    own.admin.cli("admin", "revoke", "--token", first["token"])
    # Another file: what is leased already is good until its lease ends.
    for each in pod.spec["containers"]:
        each["args"] = [each["args"][0].replace("config.json", "notes.txt")]
    assert FILES["notes.txt"].decode() in held(pod.run("train"))
    [_, second] = tokens(own, before)
    assert second["jkt"] == first["jkt"]
    assert second["subject_digest"] != first["subject_digest"]

    sidecar.terminate()
    out, err = sidecar.communicate(timeout=30)
    assert (sidecar.returncode, out) == (0, "")
    secrets = [line.partition("=")[2] for line in (pod.volume("broker-agent") / "env").read_text().split()]
    assert not [secret for secret in secrets if len(secret) > 30 and secret in err]


def test_the_sidecars_secret_is_for_its_pod_alone(cluster: Cluster, start: Callable[..., Pod]) -> None:
    pod = start("sidecar.yaml", cluster)
    sidecar = pod.begin("broker-agent")
    until(lambda: pod.probe("broker-agent") or sidecar.poll() is not None, what="the sidecar")
    env = pod.volume("broker-agent") / "env"
    assert env.stat().st_mode & 0o777 == 0o600
    source = ". /run/broker/agent/env\n"
    for each in pod.spec["containers"]:
        assert source in each["args"][0]
        each["args"] = [each["args"][0].replace(source, f"{source}export AWS_SECRET_ACCESS_KEY=guessed\n")]
    done = pod.run("train")
    assert done.returncode == 1
    assert "SignatureDoesNotMatch" in done.stderr
