"""The GitHub Actions recipe: the workflow's own steps, run as a runner runs them, with real tokens.

The runner's endpoint for identity tokens is a server of the test's: it wants the job's request token and an
audience, and signs claims of the shape that GitHub documents.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from broker.canonical import Json
from tests.e2e.running import MIB, ROOT, Done, Stack, noise, read_tree, write_tree
from tests.foreign import ForeignKey

RECIPE = ROOT / "examples" / "github-actions"
ISSUER = "https://token.actions.githubusercontent.com"
WORKFLOW = "acme/eval/.github/workflows/evaluate.yml@refs/heads/main"
FILES = {"config.json": b'{"hidden_size": 4096}', "model.safetensors": noise(MIB + 3, "actions")}
INSTALLING = "pipx install "
"""The one step that is not run: what it would install is this checkout."""


class Runner:
    """What a runner gives to a job: the endpoint, and the token with which the job may ask it.

    Attributes:
        claims: What it says of the job, beside the usual members.
        asked: The audiences that were asked for.
    """

    def __init__(self) -> None:
        self.key = ForeignKey("RS256")
        self.bearer = secrets.token_urlsafe(32)
        self.claims: dict[str, str] = {}
        self.asked: list[str] = []
        runner = self

        class Endpoint(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = runner.answer(self.path, self.headers.get("Authorization"))
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *words: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/12/idtoken/34/56?api-version=2.0"

    def answer(self, path: str, authorization: str | None) -> tuple[int, bytes]:
        parts = urlsplit(path)
        query = parse_qs(parts.query)
        if authorization != f"Bearer {self.bearer}" or parts.path != "/12/idtoken/34/56":
            return 401, b"{}"
        if query.get("api-version") != ["2.0"] or len(query.get("audience", [])) != 1:
            return 400, b"{}"
        [audience] = query["audience"]
        self.asked.append(audience)
        return 200, json.dumps({"count": 1, "value": self.token(audience)}).encode()

    def token(self, audience: str) -> str:
        """Claims as in GitHub's reference of OpenID Connect."""
        now = int(time.time())
        usual = {
            "jti": secrets.token_hex(16),
            "sub": "repo:acme/eval:environment:evaluation",
            "environment": "evaluation",
            "aud": audience,
            "ref": "refs/heads/main",
            "sha": "7d3f1a2b4c5e6f708192a3b4c5d6e7f801234567",
            "repository": "acme/eval",
            "repository_owner": "acme",
            "actor_id": "4242",
            "repository_visibility": "private",
            "repository_id": "123456789",
            "repository_owner_id": "9876543",
            "run_id": "7001",
            "run_number": "10",
            "run_attempt": "1",
            "runner_environment": "github-hosted",
            "actor": "octocat",
            "workflow": "evaluate",
            "head_ref": "",
            "base_ref": "",
            "event_name": "push",
            "ref_type": "branch",
            "job_workflow_ref": WORKFLOW,
            "iss": ISSUER,
            "nbf": now,
            "exp": now + 900,
            "iat": now,
        }
        return self.key.jwt({**usual, **self.claims}, x5t="c29tZSBjZXJ0aWZpY2F0ZSBpZA")

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def own(new_stack: Callable[..., Stack]) -> Stack:
    stack = new_stack()
    pub = stack.add("pub", "--role", "publisher", "--group", "acme")
    pub.cli("put", write_tree(stack.home.parent / "ckpt", FILES), "acme/llama-7b@step-1000")
    return stack


@pytest.fixture(scope="module")
def service(own: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """GitHub, registered with its keys beside it: discovery of the real one cannot be had here."""
    runner = Runner()
    folder = tmp_path_factory.mktemp("github")
    (folder / "jwks.json").write_text(json.dumps({"keys": [runner.key.jwk()]}))
    options = ("--kind", "github", "--issuer", ISSUER, "--map", RECIPE / "issuer-map.toml")
    own.admin.cli("admin", "issuer", "add", "github", *options, "--jwks", "jwks.json", cwd=folder)
    yield runner
    runner.close()


@pytest.fixture
def runner(service: Runner) -> Runner:
    service.claims = {}
    service.asked = []
    return service


def workflow() -> Json:
    [job] = yaml.safe_load((RECIPE / "workflow.yml").read_text())["jobs"].values()
    return dict(job)


def expand(text: str, values: Mapping[str, str]) -> str:
    """The expressions of a value, as far as the workflow uses them."""
    return re.sub(r"\$\{\{ ([\w.]+) \}\}", lambda found: values[found[1]], text)


class Job:
    """A fresh machine that runs the steps one after the other."""

    def __init__(self, own: Stack, runner: Runner, folder: Path) -> None:
        config = (own.home / "profiles" / "pub" / "config.toml").read_text()
        [vkey] = re.findall(r'^vkey = "(.+)"$', config, flags=re.M)
        values = {"vars.BROKER_URL": own.url, "vars.BROKER_LOG_VKEY": vkey, "github.run_id": "7001"}
        programs, self.workspace = folder / "bin", folder / "work"
        for each in (programs, self.workspace, folder / "home", folder / "runtime"):
            each.mkdir(mode=0o700)
        for name, words in {"broker": '-P -m broker "$@"', "python3": '-P "$@"'}.items():
            (programs / name).write_text(f"#!/bin/sh\nexec {sys.executable} {words}\n")
            (programs / name).chmod(0o755)
        self.env = {
            "PATH": f"{programs}:{os.defpath}",
            "PYTHONPATH": str(ROOT),
            "HOME": str(folder / "home"),
            "XDG_RUNTIME_DIR": str(folder / "runtime"),
            "CI": "true",
            "GITHUB_ACTIONS": "true",
            "ACTIONS_ID_TOKEN_REQUEST_URL": runner.url,
            "ACTIONS_ID_TOKEN_REQUEST_TOKEN": runner.bearer,
            **{name: expand(value, values) for name, value in workflow()["env"].items()},
        }

    def run(self, script: str) -> Done:
        """One step, as runners start bash."""
        (self.workspace.parent / "step.sh").write_text(script)
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(self.workspace.parent / "step.sh")],
            env=self.env,
            cwd=self.workspace,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=120,
        )
        return Done(code=done.returncode, data=done.stdout, err=done.stderr.decode())


@pytest.fixture
def job(own: Stack, runner: Runner, tmp_path: Path) -> Job:
    return Job(own, runner, tmp_path / "machine")


@pytest.fixture(autouse=True)
def machine(tmp_path: Path) -> None:
    (tmp_path / "machine").mkdir()


def grants(stack: Stack, before: int) -> list[dict[str, Any]]:
    return [entry for entry in stack.entries()[before:] if entry["type"] == "grant"]


def test_every_step_runs(own: Stack, runner: Runner, job: Job) -> None:
    before = own.size()
    steps = [step for step in workflow()["steps"] if not step["run"].startswith(INSTALLING)]
    assert len(steps) == len(workflow()["steps"]) - 1
    outputs = []
    for step in steps:
        done = job.run(step["run"])
        assert done.code == 0, f"{step['name']}: exit {done.code}\n{done.out}{done.err}"
        assert runner.bearer not in done.out + done.err
        outputs.append(done.out)
    assert "workload:github/acme/eval" in outputs[0]
    assert read_tree(job.workspace / "ckpt") == FILES
    assert outputs[-1] == "hidden size: 4096\n"
    # The audience is the broker's own name, which the job learned from the broker.
    assert set(runner.asked) == {own.url}
    assert {entry["principal"] for entry in grants(own, before)} == {"workload:github/acme/eval"}
    assert {entry["issuer"] for entry in own.entries()[before:] if entry["type"] == "token"} == {"github"}


def test_both_forms_of_the_subject(runner: Runner, job: Job) -> None:
    runner.claims = {"sub": "repo:acme@9876543/eval@123456789:environment:evaluation"}
    done = job.run("broker whoami")
    assert "workload:github/acme/eval" in done.out, done.err


@pytest.mark.parametrize(
    "claims",
    [
        {"job_workflow_ref": "acme/eval/.github/workflows/evaluate.yml@refs/heads/mine"},
        {"environment": "production", "sub": "repo:acme/eval:environment:production"},
        {"repository_id": "123456780"},
        {"repository_owner_id": "9876540"},
        {"event_name": "pull_request", "sub": "repo:acme/eval:pull_request"},
    ],
    ids=["another-branch", "another-environment", "name-taken-over", "owner-taken-over", "pull-request"],
)
def test_other_jobs_are_nobody(own: Stack, runner: Runner, job: Job, claims: dict[str, str]) -> None:
    before = own.size()
    runner.claims = claims
    done = job.run("broker get acme/llama-7b@step-1000 ./ckpt")
    assert done.code == 4, done.err
    assert grants(own, before) == []


def test_a_job_without_the_permission_is_told_so(runner: Runner, job: Job) -> None:
    job.env["ACTIONS_ID_TOKEN_REQUEST_TOKEN"] = "expired"
    done = job.run("broker whoami")
    assert done.code == 9, done.err
    assert "id-token: write" in done.err
