"""A launcher and its ranks: narrow tokens by the command line, renewed, used up, ended."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.client.grants import Ask, GrantClient, all_runs
from broker.client.sdk import Client
from broker.client.settings import load_profile
from broker.client.versions import fetch_version
from broker.errors import InvalidToken
from broker.names import parse_ref
from tests.e2e.jobs import is_bound, run_job
from tests.e2e.running import MIB, Done, Stack, User, noise, read_tree, until, write_tree

REF = "acme/sharded@v1"
FILES = {
    "config.json": b"{}",
    **{f"model-0000{n}.bin": noise(2 * MIB, n) for n in range(1, 9)},
}
NUMBER = itertools.count()


@pytest.fixture(scope="module", autouse=True)
def artifact(pub: User, tmp_path_factory: pytest.TempPathFactory) -> str:
    pub.cli("put", write_tree(tmp_path_factory.mktemp("tree"), FILES), REF, "--extent-size", "1MiB")
    return REF


@pytest.fixture
def launcher(stack: Stack) -> User:
    """Somebody who starts a job."""
    return stack.add(f"lea{next(NUMBER)}", "--role", "engineer", "--group", "acme")


def mint(launcher: User, *words: object, expect: int = 0, scope: str = REF) -> Done:
    return launcher.cli("token", "mint", "--scope", scope, *words, expect=expect)


def rank(folder: Path, *words: object, expect: int | None = 0, token: Path | None = None) -> Done:
    """A command of a rank whose profile is in this folder."""
    env: dict[str, object] = {"BROKER_PROFILE_DIR": folder, "XDG_RUNTIME_DIR": "/proc/nowhere"}
    env |= {} if token is None else {"BROKER_TOKEN_FILE": token}
    return run_job(*words, env=env, expect=expect, cwd=folder.parent)


def minted_entry(stack: Stack, id: str) -> dict[str, Any]:
    [found] = [e for e in stack.entries() if e["type"] == "token" and e["token"] == id]
    return found


def test_a_rank_makes_its_own_key_and_reads_its_shards(stack: Stack, launcher: User, tmp_path: Path) -> None:
    jkt = launcher.cli("token", "key", "--out", tmp_path / "rank.jwk").out.strip()
    assert launcher.cli("token", "key", "--out", tmp_path / "rank.jwk").out.strip() == jkt
    assert (tmp_path / "rank.jwk").stat().st_mode & 0o777 == 0o600
    done = mint(launcher, "--paths", "model-0000[1-4]*", "--ttl", "10m", "--for-key", jkt)
    text = done.out.strip()
    assert text.count(".") == 2
    assert text not in done.err
    assert "to end it: broker token revoke t_" in done.err

    # What the launcher sends over: a configuration, and the token; the key never left the rank.
    home = tmp_path / "rank"
    home.mkdir(mode=0o700)
    config = (launcher.profile / "config.toml").read_text()
    (home / "config.toml").write_text(
        "".join(line for line in config.splitlines(True) if not line.startswith("principal"))
    )
    (tmp_path / "rank.jwk").rename(home / "key.jwk")
    (tmp_path / "rank.token").write_text(text)
    token = tmp_path / "rank.token"
    rank(home, "get", REF, tmp_path / "out", "--include", "model-0000[1-4]*", token=token)
    assert read_tree(tmp_path / "out") == {
        f"model-0000{n}.bin": FILES[f"model-0000{n}.bin"] for n in range(1, 5)
    }
    refused = rank(home, "get", REF, tmp_path / "more", token=token, expect=3)
    assert "scope does not cover" in refused.err
    rank(home, "get", f"{REF}/model-00005.bin", tmp_path / "more", token=token, expect=3)
    rank(home, "put", tmp_path / "out", "acme/sharded@v2", token=token, expect=3)
    rank(home, "ledger", "search", token=token, expect=3)

    entry = minted_entry(stack, json.loads(rank(home, "whoami", "--json", token=token).out)["token"]["id"])
    assert entry["jkt"] == jkt
    assert entry["minter"]["principal"] == entry["principal"] == launcher.id
    assert entry["minter"]["jkt"] == load_profile(launcher.profile).key.jkt
    assert entry["parent"] == entry["minter"]["token"]
    # With another key the token is worth nothing, and is not even sent.
    stolen = launcher.cli("whoami", expect=2, BROKER_TOKEN_FILE=str(tmp_path / "rank.token"))
    assert "for another key" in stolen.err


def test_a_rank_profile_is_ready_to_use_and_private(launcher: User, tmp_path: Path) -> None:
    home = tmp_path / "ranks" / "0"
    done = mint(launcher, "--out", home, "--ttl", "5m", "-o", "json")
    found = done.json()
    assert found["out"] == str(home)
    text = (home / "token").read_text().strip()
    assert text not in done.out + done.err
    assert {p.name: p.stat().st_mode & 0o777 for p in home.iterdir()} == {
        "config.toml": 0o644,
        "key.jwk": 0o600,
        "token": 0o600,
    }
    assert home.stat().st_mode & 0o777 == 0o700
    rank(home, "get", REF, tmp_path / "out")
    assert read_tree(tmp_path / "out") == FILES
    # Again: the same key, another token.
    again = mint(launcher, "--out", home, "-o", "json").json()
    assert again["jkt"] == found["jkt"]
    assert again["id"] != found["id"]
    rank(home, "info", REF)
    # Named with the same key, or another.
    mint(launcher, "--out", home, "--for-key", found["jkt"])
    mint(launcher, "--out", home, "--for-key", "A" * 43, expect=2)
    assert "enrolled key" in mint(launcher, "--out", launcher.profile, expect=2).err


def test_a_rank_whose_folder_is_read_only(launcher: User, tmp_path: Path) -> None:
    if not is_bound():
        pytest.skip("this process may write whatever the modes say")
    home = tmp_path / "rank"
    mint(launcher, "--out", home)
    home.chmod(0o555)
    env = {"BROKER_PROFILE_DIR": home, "XDG_RUNTIME_DIR": "/proc/nowhere"}
    run_job("get", REF, tmp_path / "out", env=env, cwd=tmp_path, read_only=True)
    home.chmod(0o755)
    assert read_tree(tmp_path / "out") == FILES
    assert {path.name for path in home.iterdir()} == {"config.toml", "key.jwk", "token"}


def test_an_ended_token_says_which_file_and_what_to_do(launcher: User, tmp_path: Path) -> None:
    home = tmp_path / "rank"
    mint(launcher, "--out", home, "--ttl", "1s")
    done = until(
        lambda: (found := rank(home, "info", REF, expect=None)).code == 4 and found,
        what="the end of the token",
    )
    assert f"the token in {home / 'token'} has expired" in done.err
    assert "broker token mint --renew" in done.err
    mint(launcher, "--out", home)
    rank(home, "info", REF)


def test_ranks_share_the_bytes_of_what_their_tokens_came_from(launcher: User, tmp_path: Path) -> None:
    job = tmp_path / "job"
    mint(launcher, "--out", job, "--max-bytes", "4MiB")
    for name in ("r0", "r1"):
        rank(job, "token", "mint", "--scope", REF, "--out", tmp_path / name, "--max-bytes", "3MiB")
    rank(tmp_path / "r0", "get", f"{REF}/model-00001.bin", tmp_path / "a")
    own = rank(tmp_path / "r0", "get", f"{REF}/model-00002.bin", tmp_path / "b", expect=8)
    assert "error:" in own.err, "its own ceiling: 3 MiB"
    rank(tmp_path / "r1", "get", f"{REF}/model-00003.bin", tmp_path / "c")
    rank(tmp_path / "r1", "get", f"{REF}/config.json", tmp_path / "d", expect=8)
    text = rank(tmp_path / "r1", "token", "inspect").out
    assert "0 B of 4.00 MiB left" in text
    assert "1.00 MiB of 3.00 MiB left" in text
    found = rank(tmp_path / "r1", "token", "inspect", "-o", "json").json()
    assert len(found["chain"]) == 2
    assert found["effective_complete"] is True


def test_revoking_the_launchers_token_stops_the_next_lease(launcher: User, tmp_path: Path) -> None:
    home = tmp_path / "rank"
    mint(launcher, "--out", home)
    parent = launcher.cli("whoami", "-o", "json").json()["token"]["id"]
    with Client(load_profile(home)) as client:
        grants = GrantClient(client._session, client._log)
        granted = grants.request_grant(Ask(ref=parse_ref(REF)))
        version = fetch_version(client._session, client._log, parse_ref(REF))
        runs = all_runs(version.manifest, range(len(FILES)))
        grants.request_lease(granted, runs[-1:])
        launcher.cli("token", "revoke", parent)
        with pytest.raises(InvalidToken, match="not accepted any more"):
            grants.request_lease(granted, runs[-1:])
    done = rank(home, "info", REF, expect=4)
    assert "derived from" in done.err


def test_a_key_of_somebody_else_or_a_revoked_one_is_refused(stack: Stack, launcher: User, eve: User) -> None:
    theirs = load_profile(eve.profile).key.jkt
    before = stack.size()
    assert "may not hold" in mint(launcher, "--for-key", theirs, expect=3).err
    [denied] = [e for e in stack.entries()[before:] if e["type"] == "denial"]
    assert (denied["principal"], denied["action"]) == (launcher.id, "mint")
    mint(launcher, "--for-key", "short", expect=2)
    own = mint(launcher, "-o", "json").json()
    assert own["jkt"] == load_profile(launcher.profile).key.jkt


def test_policy_and_scope_bound_what_is_minted(launcher: User, tmp_path: Path) -> None:
    other = mint(launcher, "--actions", "publish", "--out", tmp_path / "r", expect=3)
    assert "delegated-keys-read" in other.err
    for words in (("--ttl", "16m"), ("--ttl", "x"), ("--max-bytes", "0"), ("--max-bytes", "x"), ("--renew",)):
        mint(launcher, *words, expect=2)
    mint(launcher, scope="acme", expect=2)
    launcher.cli("token", "mint", expect=2)
    # Whatever is minted opens no more than its minter may read now.
    home = tmp_path / "all"
    mint(launcher, "--out", home, scope="*")
    launcher.stack.admin.cli("admin", "principal", "set", launcher.name, "--group", "")
    rank(home, "info", REF, expect=5)


@pytest.fixture
def renewing(launcher: User, tmp_path: Path) -> Iterator[Any]:
    """Starts ``mint --renew`` and makes sure that it ends."""
    begun: list[subprocess.Popen[str]] = []

    def begin(*words: object) -> subprocess.Popen[str]:
        begun.append(
            launcher.begin(
                "token", "mint", "--scope", REF, "--out", tmp_path / "rank", "--renew", "-v", *words
            )
        )
        until(
            lambda: (tmp_path / "rank" / "token").exists() or begun[-1].poll() is not None, what="the token"
        )
        return begun[-1]

    yield begin
    for process in begun:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_a_running_rank_goes_on_with_each_renewed_token(
    stack: Stack, launcher: User, renewing: Any, tmp_path: Path
) -> None:
    process = renewing("--ttl", "6s", "--max-bytes", "5MiB")
    home = tmp_path / "rank"
    seen: list[str] = []
    with Client(load_profile(home)) as client:

        def look() -> int:
            id = client.whoami()["token"]["id"]
            if id not in seen:
                seen.append(id)
            return len(seen) >= 3

        client.fetch(f"{REF}/model-00001.bin", tmp_path / "a")
        until(look, what="two renewals")
        client.fetch(f"{REF}/model-00002.bin", tmp_path / "b")
        found = client.admin.inspect_token()
        [ceiling] = found["effective"][0]["ceilings"]
        assert ceiling["max_bytes"] <= 3 * MIB, "what the tokens before it opened is counted"
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert out == f"{home}\n"
    assert (home / "token").read_text().strip() not in err
    assert "Traceback" not in err
    entries = [
        e
        for e in stack.entries()
        if e["type"] == "token" and e.get("minter", {}).get("principal") == launcher.id
    ]
    assert [e["token"] for e in entries][: len(seen)] == seen


def test_a_revoked_token_is_not_renewed(launcher: User, renewing: Any, tmp_path: Path) -> None:
    process = renewing("--ttl", "6s")
    id = rank(tmp_path / "rank", "whoami", "-o", "json").json()["token"]["id"]
    launcher.stack.admin.cli("admin", "revoke", "--token", id)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 3
    assert "was revoked" in err


@pytest.mark.parametrize(("words", "code"), [(("--max-bytes", "5MiB"), 8), ((), None)], ids=["bytes", "free"])
def test_what_is_left_is_not_given_twice_after_an_outage(
    launcher: User, renewing: Any, tmp_path: Path, words: tuple[str, ...], code: int | None
) -> None:
    process = renewing("--ttl", "3s", *words)
    os.kill(process.pid, signal.SIGSTOP)
    held = (tmp_path / "rank" / "token").read_text()
    until(lambda: rank(tmp_path / "rank", "whoami", expect=None).code == 4, what="the end of the token")
    os.kill(process.pid, signal.SIGCONT)
    if code is None:
        until(lambda: (tmp_path / "rank" / "token").read_text() != held, what="the next token")
        return
    _, err = process.communicate(timeout=20)
    assert process.returncode == code, err
    assert "ended before it could be renewed" in err


def test_a_job_ends_cleanly_when_it_is_interrupted(renewing: Any) -> None:
    process = renewing("--ttl", "10m")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 0
