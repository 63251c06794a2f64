"""Jobs that prove who they are to a real broker, with tokens of a real OpenID Connect issuer."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.e2e.jobs import is_bound, job_config, project, run_job
from tests.e2e.running import MIB, Done, Stack, User, noise, read_tree, until, write_tree
from tests.oidc import OidcIssuer, oidc_issuer, running

__all__ = ["oidc_issuer"]

FILES = {"config.json": b"{}", "shard-0/a.bin": noise(3 * MIB, "a"), "shard-1/b.bin": noise(2 * MIB, "b")}
REF = "acme/for-jobs@v1"
MAPPING = """
[[rules]]
name = "training"
match = { project = "llm", branch = ["main", "release/*"] }
principal = "{team}/{job}"
groups = ["acme"]
attributes = { project = "{project}" }

[[rules]]
name = "publishing"
match = { project = "release" }
principal = "publisher"
groups = ["acme"]
roles = ["publisher"]
"""
LLM = {"sub": "job:7", "project": "llm", "branch": "main", "team": "nlp", "job": "train"}


@dataclass
class Job:
    """A pod: a configuration and a projected token, both below links, and a runtime folder of its own."""

    stack: Stack
    issuer: OidcIssuer
    name: str
    """The issuer's, at the broker."""
    folder: Path

    @property
    def principal(self) -> str:
        return f"workload:{self.name}/nlp/train"

    @property
    def token(self) -> Path:
        return self.folder / "token" / "token"

    def renew(self, **claims: Any) -> str:
        """The kubelet writes another token."""
        text = self.issuer.token(self.stack.url, claims={**LLM, **claims})
        project(self.folder / "token", "token", text)
        return text

    def env(self, **more: object) -> dict[str, object]:
        return {
            "BROKER_PROFILE_DIR": self.folder / "etc",
            "BROKER_TOKEN_FILE": self.token,
            "XDG_RUNTIME_DIR": self.folder,
            **more,
        }

    def run(self, *words: object, expect: int = 0, **more: object) -> Done:
        return run_job(*words, env=self.env(**more), expect=expect, cwd=self.folder)


@pytest.fixture(scope="module")
def registered(
    stack: Stack, oidc_issuer: OidcIssuer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The issuer, known to the broker by this name."""
    path = tmp_path_factory.mktemp("map") / "map.toml"
    path.write_text(MAPPING)
    stack.admin.cli("admin", "issuer", "add", "ci", "--issuer", oidc_issuer.url, "--map", path)
    yield "ci"
    stack.admin.cli("admin", "issuer", "rm", "ci")


@pytest.fixture(scope="module", autouse=True)
def artifact(pub: User, tmp_path_factory: pytest.TempPathFactory) -> str:
    pub.cli("put", write_tree(tmp_path_factory.mktemp("tree"), FILES), REF, "--extent-size", "1MiB")
    return REF


@pytest.fixture
def job(stack: Stack, oidc_issuer: OidcIssuer, registered: str, tmp_path: Path) -> Job:
    made = Job(stack=stack, issuer=oidc_issuer, name=registered, folder=tmp_path)
    project(tmp_path / "etc", "config.toml", job_config(stack.admin))
    made.renew()
    return made


def said(done: Done) -> str:
    return done.out + done.err


# -- administering ------------------------------------------------------------------------------------------


def test_an_administrator_tries_a_token_before_anything_depends_on_it(
    stack: Stack, job: Job, tmp_path: Path
) -> None:
    admin, before = stack.admin, stack.size()
    found = admin.cli("admin", "issuer", "test", "ci", "--token-file", job.token, "-o", "json").json()
    assert found["principal"] == job.principal
    assert (found["rule"], found["groups"], found["attributes"]) == ("training", ["acme"], {"project": "llm"})
    job.renew(branch="feature/x")
    refused = admin.cli("admin", "issuer", "test", "ci", "--token-file", job.token, expect=4)
    assert "no rule" in refused.err
    (tmp_path / "new.toml").write_text(MAPPING.replace('"release/*"', '"feature/*"'))
    tried = ("admin", "issuer", "test", "ci", "--token-file", job.token, "--map", tmp_path / "new.toml")
    assert admin.cli(*tried, "-o", "json").json()["principal"] == job.principal
    foreign = job.issuer.token("https://elsewhere.example", claims=LLM)
    (tmp_path / "foreign").write_text(foreign)
    refused = admin.cli("admin", "issuer", "test", "ci", "--token-file", tmp_path / "foreign", expect=4)
    assert "another audience" in refused.err
    assert foreign not in said(refused)
    assert not [entry for entry in stack.entries()[before:] if entry["type"] == "token"]


def test_issuers_are_listed_and_shown(stack: Stack, job: Job) -> None:
    [row] = [
        row
        for row in stack.admin.cli("admin", "issuer", "ls", "-o", "json").json()["issuers"]
        if row["name"] == "ci"
    ]
    assert (row["kind"], row["url"], row["audience"]) == ("oidc", job.issuer.url, stack.url)
    shown = stack.admin.cli("admin", "issuer", "show", "ci", "-o", "json").json()
    assert {key["kid"] for key in shown["keys"]} >= set(job.issuer.kids[:1])
    text = stack.admin.cli("admin", "issuer", "show", "ci").out
    assert "rule       training: " in text
    entry = [entry for entry in stack.entries() if entry["type"] == "issuer"][-1]
    assert entry["mapping"] == row["mapping_digest"]


def test_only_administrators_register_issuers(ana: User, tmp_path: Path) -> None:
    (tmp_path / "map.toml").write_text(MAPPING)
    add = ("admin", "issuer", "add", "x", "--issuer", "https://x.example", "--map", tmp_path / "map.toml")
    ana.cli(*add, expect=3)
    (tmp_path / "map.toml").write_text("[[rules]]\nname = 'all'\nmatch = {}\nprincipal = 'x'\n")
    done = ana.cli(*add, expect=2)
    assert "match names" in done.err


# -- a pod --------------------------------------------------------------------------------------------------


def test_a_pod_reads_with_a_mounted_configuration_and_a_projected_token(job: Job, tmp_path: Path) -> None:
    text = job.token.read_text()
    got = [job.run("get", REF, tmp_path / name, "--purpose", "training") for name in ("one", "two")]
    assert read_tree(tmp_path / "one") == read_tree(tmp_path / "two") == FILES
    who = job.run("whoami", "-o", "json").json()
    assert who["principal"]["id"] == job.principal
    assert "acme" in who["principal"]["groups"]
    identity = who["token"]["identity"]
    assert (identity["issuer"], identity["rule"], identity["groups"]) == ("ci", "training", ["acme"])
    shown = job.run("whoami").out
    for word in ("issuer ci, rule training", "project=llm", f"token in {job.token}"):
        assert word in shown
    assert not {path.name for path in (tmp_path / "etc").iterdir()} & {"key.jwk", "token.json", "treehead"}
    assert text not in "".join(map(said, got)) + shown
    mine = [entry for entry in job.stack.entries() if entry.get("principal") == job.principal]
    assert {"enrolment", "token", "grant", "completion"} <= {entry["type"] for entry in mine}
    assert len({entry["jkt"] for entry in mine[-4:]}) == 1
    [token] = [entry for entry in mine if entry["type"] == "token"][-1:]
    assert token["issuer"] == "ci"
    assert token["mapping"].startswith("sha256:")


def test_a_pod_that_can_write_nothing_reads_all_the_same(job: Job, tmp_path: Path) -> None:
    if not is_bound():
        pytest.skip("this process may write whatever the modes say")
    (tmp_path / "out").mkdir()
    (tmp_path / "etc").chmod(0o555)
    env = job.env(XDG_RUNTIME_DIR="/proc/nowhere")
    run_job("get", REF, tmp_path / "out", env=env, cwd=tmp_path, read_only=True)
    assert read_tree(tmp_path / "out") == FILES
    assert [path.name for path in (tmp_path / "etc").iterdir() if not path.name.startswith("..")] == [
        "config.toml"
    ]
    # What was exchanged by a process that is gone is pinned to a key that is gone, and that is said.
    done = run_job("info", REF, env=env, cwd=tmp_path, read_only=True, expect=4)
    assert "exchanged by another key" in done.err
    job.renew()
    run_job("info", REF, env=env, cwd=tmp_path, read_only=True)
    (tmp_path / "etc").chmod(0o755)


def test_a_pod_without_any_file_of_ours(job: Job, tmp_path: Path) -> None:
    job.renew()
    env = {
        "BROKER_URL": job.stack.url,
        "BROKER_LOG_VKEY": job.stack.ready["log"]["vkey"],
        "BROKER_TOKEN_FILE": job.token,
        "XDG_RUNTIME_DIR": tmp_path,
    }
    run_job("get", REF, tmp_path / "out", env=env, cwd=tmp_path)
    assert read_tree(tmp_path / "out") == FILES
    other = {**env, "BROKER_LOG_VKEY": "other.example/log+00000000+AAAA"}
    assert "BROKER_LOG_VKEY" in run_job("info", REF, env=other, cwd=tmp_path, expect=2).err
    del other["BROKER_LOG_VKEY"]
    done = run_job("info", REF, env=other, cwd=tmp_path, expect=2)
    assert "BROKER_LOG_VKEY" in done.err


def test_a_copied_token_is_of_no_use(job: Job, tmp_path: Path) -> None:
    text = job.token.read_text()
    job.run("info", REF)
    project(tmp_path / "thief", "config.toml", job_config(job.stack.admin))
    elsewhere = {"BROKER_PROFILE_DIR": tmp_path / "thief", "XDG_RUNTIME_DIR": tmp_path / "thief"}
    done = job.run("info", REF, **elsewhere, expect=4)
    assert "exchanged by another key" in done.err
    assert text not in said(done)


def test_what_a_job_is_told_when_its_token_does_not_do(job: Job) -> None:
    job.renew(exp=1_700_000_000)
    done = job.run("info", REF, expect=4)
    assert f"the workload's token in {job.token} has expired" in done.err
    job.renew(project="other")
    done = job.run("info", REF, expect=4)
    assert f"the workload's token in {job.token} is not accepted" in done.err
    assert "no rule of the issuer's mapping" in done.err
    done = job.run("info", REF, BROKER_TOKEN_FILE=job.folder / "none", expect=2)
    assert "there is no token in" in done.err


def test_a_job_with_the_role_publishes(job: Job, tmp_path: Path) -> None:
    ref = "acme/by-a-job@v1"
    job.run("put", write_tree(tmp_path / "tree", FILES), ref, expect=3)
    job.renew(project="release")
    job.run("put", tmp_path / "tree", ref)
    job.run("get", ref, tmp_path / "out")
    assert read_tree(tmp_path / "out") == FILES


def test_an_exchanged_token_is_printed_for_another_program(job: Job) -> None:
    words = ("token", "exchange", "--scope", "acme/for-jobs")
    found = job.run(*words, "-o", "json").json()
    assert (found["principal"], found["token_type"]) == (job.principal, "DPoP")
    assert Path(found["state"], "key.jwk").stat().st_mode & 0o777 == 0o600
    done = job.run(*words)
    assert done.out.count(".") == 2
    inspected = job.run("token", "inspect", done.out.strip(), "-o", "json").json()
    assert inspected["identity"]["issuer"] == "ci"
    assert inspected["limits"][0][0]["identifier"] == "acme/for-jobs"


# -- GitHub Actions -----------------------------------------------------------------------------------------


@pytest.fixture
def runner(oidc_issuer: OidcIssuer) -> Iterator[tuple[str, list[str | None]]]:
    """The endpoint that a runner offers to its job, with the issuer behind it."""
    seen: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization"))
            [audience] = parse_qs(urlsplit(self.path).query)["audience"]
            body = json.dumps({"value": oidc_issuer.token(audience, claims=LLM)}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/idtoken?api-version=2.0", seen
    server.shutdown()
    server.server_close()


def test_a_step_of_github_actions(job: Job, runner: tuple[str, list[str | None]], tmp_path: Path) -> None:
    url, seen = runner
    env = {
        "BROKER_URL": job.stack.url,
        "BROKER_LOG_VKEY": job.stack.ready["log"]["vkey"],
        "ACTIONS_ID_TOKEN_REQUEST_URL": url,
        "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "runner-secret",
        "XDG_RUNTIME_DIR": "/proc/nowhere",
    }
    # Without a folder each process has a key of its own, and a token of its own for it.
    done = [run_job("get", REF, tmp_path / name, env=env, cwd=tmp_path) for name in ("one", "two")]
    assert read_tree(tmp_path / "one") == read_tree(tmp_path / "two") == FILES
    assert seen == ["Bearer runner-secret"] * 2
    away = {**env, "ACTIONS_ID_TOKEN_REQUEST_URL": "http://127.0.0.1:1/"}
    done.append(run_job("info", REF, env=away, cwd=tmp_path, expect=9))
    abroad = {**env, "ACTIONS_ID_TOKEN_REQUEST_URL": "http://runner.example/"}
    done.append(run_job("info", REF, env=abroad, cwd=tmp_path, expect=2))
    assert "runner-secret" not in "".join(map(said, done))
    run_job("whoami", "--profile", "nobody", env=env, cwd=tmp_path, expect=2)


# -- what ends, and what changes ----------------------------------------------------------------------------


def test_an_issuer_that_is_removed_ends_its_jobs(stack: Stack, tmp_path: Path) -> None:
    with running() as issuer:
        (tmp_path / "map.toml").write_text(MAPPING)
        add = ("admin", "issuer", "add", "gone", "--issuer", issuer.url, "--map", tmp_path / "map.toml")
        stack.admin.cli(*add)
        job = Job(stack=stack, issuer=issuer, name="gone", folder=tmp_path)
        project(tmp_path / "etc", "config.toml", job_config(stack.admin))
        job.renew()
        job.run("info", REF)
        stack.admin.cli("admin", "issuer", "rm", "gone")
        done = job.run("info", REF, expect=4)
        assert "no issuer of this name is known here" in done.err
        stack.admin.cli(*add)
        job.run("info", REF)


def test_an_issuer_rotates_its_keys_and_nobody_restarts_anything(job: Job, tmp_path: Path) -> None:
    job.run("get", REF, tmp_path / "before")
    job.issuer.rotate()
    job.renew()
    # The access token is still good; its end is what makes the job exchange the new token.
    job.run("token", "revoke", job.run("whoami", "-o", "json").json()["token"]["id"])

    def reads() -> bool:
        done = run_job("info", REF, env=job.env(), expect=None, cwd=tmp_path)
        assert done.code in (0, 4), said(done)
        return done.code == 0

    # An unknown key makes the broker ask again, at most once a minute.
    until(reads, what="the issuer's new keys", seconds=90)
    job.run("get", REF, tmp_path / "after")
    assert read_tree(tmp_path / "after") == FILES
    assert job.run("whoami", "-o", "json").json()["principal"]["id"] == job.principal
    job.stack.add("late-auditor", "--role", "auditor").cli("ledger", "verify", "--full")
