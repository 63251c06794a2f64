"""Jobs against a running broker: exchange, renewal, minted tokens, and what is said when one has ended."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.canonical import Json
from broker.client import minting, settings, workload
from broker.client.sdk import Client
from broker.errors import (
    ConfigurationError,
    Denied,
    IntegrityFailure,
    InvalidGrant,
    InvalidRequest,
    InvalidSubjectToken,
    InvalidToken,
    OverBudget,
    ScopeExceeded,
    UsageError,
)
from broker.ledger import note
from broker.runtime import SystemClock
from tests.foreign import FakeIssuer
from tests.unit.client.conftest import MIB, Stack, make_tree, restored, tree
from tests.world import URL

FILES = {"config.json": b"{}", "shard-0/a.bin": b"a" * MIB, "shard-1/b.bin": b"b" * MIB}
NUMBER = itertools.count()


class Job:
    """A job of an issuer that the broker knows, and what its host gives it."""

    def __init__(self, stack: Stack, folder: Path, monkeypatch: pytest.MonkeyPatch, **rule: Any) -> None:
        self.stack = stack
        self.folder = folder
        name = f"ci{next(NUMBER)}"
        self.issuer = FakeIssuer(name, f"https://{name}.example")
        stack.world.register(
            self.issuer, mapping=self.issuer.mapping(**{"groups": ["acme"], **rule}), jwks=self.issuer.jwks()
        )
        self.file = folder / "workload"
        self.renew()
        self._monkeypatch = monkeypatch
        self.set(XDG_RUNTIME_DIR=folder, XDG_CONFIG_HOME=folder / "config", BROKER_TOKEN_FILE=self.file)

    def set(self, **variables: object) -> None:
        for name, value in variables.items():
            if value is None:
                self._monkeypatch.delenv(name, raising=False)
            else:
                self._monkeypatch.setenv(name, str(value))

    def renew(self, **claims: Any) -> None:
        """The host writes another token."""
        fresh = self.file.with_name("fresh")
        fresh.write_text(self.issuer.token(SystemClock().now(), **claims))
        fresh.replace(self.file)

    def configure(self, folder: Path) -> Path:
        """What a cluster mounts: a configuration without key and principal."""
        folder.mkdir(parents=True)
        admin = self.stack.profile(self.stack.world.admin, f"admin{next(NUMBER)}")
        text = settings.config_text(replace(admin, principal=""))
        (folder / "config.toml").write_text(text)
        self.set(BROKER_PROFILE_DIR=folder)
        return folder


@pytest.fixture
def broker(shared_stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    for name in [name for name in os.environ if name.startswith(("BROKER_", "ACTIONS_"))]:
        monkeypatch.delenv(name)
    yield from restored(shared_stack, monkeypatch)


@pytest.fixture
def job(broker: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    made = Job(broker, tmp_path, monkeypatch)
    made.configure(tmp_path / "etc")
    return made


@pytest.fixture(scope="module")
def artifact(shared_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> str:
    publisher = shared_stack.add("pia", roles=("publisher", "engineer"), groups=("acme",))
    publisher.publish(make_tree(tmp_path_factory.mktemp("tree"), FILES), "acme/model@v1", extent_size=MIB)
    return "acme/model@v1"


def requests(stack: Stack) -> list[str]:
    """The paths of the requests that reach the server from now on."""
    seen: list[str] = []
    inner = stack._wsgi

    def outer(environ: Any, start: Any) -> Any:
        seen.append(environ["PATH_INFO"])
        return inner(environ, start)

    stack._wsgi = outer  # type: ignore[assignment]
    return seen


def issued(stack: Stack) -> list[Json]:
    entries = [stack.world.entry(i) for i in range(stack.world.size())]
    return [entry for entry in entries if entry["type"] == "token"]


# -- workloads ----------------------------------------------------------------------------------------------


def test_a_job_reads_with_nothing_but_a_configuration_and_a_token(
    job: Job, artifact: str, tmp_path: Path
) -> None:
    with Client.from_profile() as client:
        receipt = client.fetch(artifact, tmp_path / "out")
        found = client.whoami()
    assert tree(tmp_path / "out") == FILES
    principal = f"workload:{job.issuer.name}/train"
    assert receipt.entry["principal"] == principal
    assert found["principal"]["id"] == principal
    assert found["token"]["identity"]["issuer"] == job.issuer.name
    assert "key.jwk" not in {path.name for path in (tmp_path / "etc").iterdir()}


def test_processes_of_a_job_share_key_and_token(job: Job, artifact: str) -> None:
    before = len(issued(job.stack))
    for _ in range(3):
        with Client.from_profile() as client:
            client.info(artifact)
    assert len(issued(job.stack)) == before + 1
    with Client.from_profile() as client:
        state = client.profile.state
        assert state is not None
        (state / "token.json").unlink()
        client.info(artifact)
    assert len(issued(job.stack)) == before + 2, "the same token is exchanged again by the same key"


def test_without_a_folder_everything_is_in_memory(job: Job, artifact: str, tmp_path: Path) -> None:
    job.set(XDG_RUNTIME_DIR="/proc/nowhere")
    (tmp_path / "etc" / "jobs").write_text("nothing can be made here")
    with Client.from_profile() as client:
        assert client.profile.state is None
        client.fetch(artifact, tmp_path / "out")
        assert client._log.have() is not None
    assert tree(tmp_path / "out") == FILES
    assert {path.name for path in (tmp_path / "etc").iterdir()} == {"config.toml", "jobs"}
    with Client.from_profile() as another, pytest.raises(InvalidGrant, match="another key"):
        another.info(artifact)
    job.renew()
    with Client.from_profile() as another:
        another.info(artifact)


def test_a_job_without_files_asks_the_server_what_it_is(job: Job, artifact: str) -> None:
    vkey = job.stack.world.house.log.vkey
    job.set(BROKER_PROFILE_DIR=None, BROKER_URL=job.stack.url, BROKER_LOG_VKEY=vkey)
    with Client.from_profile() as client:
        assert client.profile.issuer == URL
        assert client.profile.store_hosts == (job.stack.store.host,)
        assert client.info(artifact).manifest.version == "v1"


def test_a_server_with_another_log_gets_no_token(job: Job) -> None:
    other = note.vkey("other.example/log", bytes(31) + b"\x02")
    job.set(BROKER_PROFILE_DIR=None, BROKER_URL=job.stack.url, BROKER_LOG_VKEY=other)
    before = job.stack.world.size()
    with pytest.raises(IntegrityFailure, match="another log"):
        Client.from_profile()
    assert job.stack.world.size() == before


def test_the_next_token_is_fetched_by_the_token_that_is_there_then(job: Job, artifact: str) -> None:
    with Client.from_profile() as client:
        client.info(artifact)
        job.renew()
        client._session.forget_token()
        client.info(artifact)
    first, second = [entry["subject_digest"] for entry in issued(job.stack)[-2:]]
    assert first != second


def test_jobs_and_launchers_take_over_the_servers_nonce(job: Job, artifact: str, tmp_path: Path) -> None:
    job.stack.apply(nonces_required=True)
    with Client.from_profile() as client, rank(client, tmp_path / "r0") as narrow:
        assert narrow.info(artifact).manifest.version == "v1"


def test_a_token_that_has_ended_is_not_even_sent(job: Job, artifact: str) -> None:
    job.renew(exp=SystemClock().now() // 1000 - 1)
    with Client.from_profile() as client, pytest.raises(InvalidSubjectToken, match="has expired") as caught:
        client.info(artifact)
    assert str(job.file) in caught.value.what
    assert job.file.read_text().split(".")[1] not in f"{caught.value.why}{caught.value.next}"


def test_a_refused_token_names_its_file_and_the_reason(job: Job, artifact: str) -> None:
    job.renew(aud="https://elsewhere.example")
    with Client.from_profile() as client, pytest.raises(InvalidSubjectToken, match="not accepted") as caught:
        client.info(artifact)
    assert str(job.file) in caught.value.what
    assert "another audience" in str(caught.value.why)


def test_a_job_publishes_where_its_mapping_lets_it(
    broker: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, artifact: str
) -> None:
    del artifact
    job = Job(broker, tmp_path, monkeypatch, roles=["publisher", "workload"])
    job.configure(tmp_path / "etc")
    job.set(XDG_RUNTIME_DIR="/proc/nowhere")
    (tmp_path / "etc" / "jobs").write_text("nothing can be made here")
    with Client.from_profile() as client:
        assert client.profile.state is None
        client.publish(make_tree(tmp_path / "tree", FILES), "acme/model@by-a-job", extent_size=MIB)
        client.fetch("acme/model@by-a-job", tmp_path / "out")
    assert tree(tmp_path / "out") == FILES


def test_a_token_can_be_exchanged_for_another_program(job: Job) -> None:
    with Client.from_profile() as client:
        found = client.exchange("acme/model")
        claims = workload.parse_job_token(found["access_token"]).claims
        assert claims["cnf"]["jkt"] == client.profile.key.jkt
        assert found["authorization_details"][0]["identifier"] == "acme/model"
    with job.stack.add("bob") as person, pytest.raises(UsageError, match="not a workload"):
        person.exchange()


# -- ranks --------------------------------------------------------------------------------------------------


@pytest.fixture
def launcher(broker: Stack, artifact: str) -> Iterator[Client]:
    del artifact
    with broker.add(f"lea{next(NUMBER)}", groups=("acme",)) as client:
        yield client


def rank(launcher: Client, folder: Path, **narrower: Any) -> Client:
    """A rank with a profile that its launcher made for it."""
    key = minting.rank_key(folder)
    minted = launcher.mint("acme/model@v1", for_key=key.jkt, **narrower)
    minting.write_rank(folder, launcher.profile, minted)
    return Client(settings.load_profile(folder))


def test_a_rank_reads_its_shard_and_nothing_else(launcher: Client, tmp_path: Path) -> None:
    with rank(launcher, tmp_path / "r0", paths=["shard-0/**"]) as client:
        client.fetch("acme/model@v1", tmp_path / "out", include=["shard-0/**"])
        with pytest.raises(ScopeExceeded):
            client.fetch("acme/model@v1", tmp_path / "more")
        with pytest.raises(ScopeExceeded):
            client.fetch("acme/model@v1", tmp_path / "more", include=["shard-1/**"])
        who = client.whoami()
    assert tree(tmp_path / "out") == {"shard-0/a.bin": FILES["shard-0/a.bin"]}
    assert who["principal"]["id"] == launcher.profile.principal
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "r0").iterdir()}
    assert (modes["key.jwk"], modes["token"]) == (0o600, 0o600)
    assert (tmp_path / "r0").stat().st_mode & 0o777 == 0o700
    assert "principal" not in (tmp_path / "r0" / "config.toml").read_text()


def test_bytes_of_all_ranks_count_against_what_they_were_minted_from(
    launcher: Client, tmp_path: Path
) -> None:
    job = minting.rank_key(tmp_path / "job")
    minting.write_rank(
        tmp_path / "job", launcher.profile, launcher.mint("acme/model@v1", max_bytes=MIB, for_key=job.jkt)
    )
    with (
        Client(settings.load_profile(tmp_path / "job")) as own,
        rank(own, tmp_path / "r0") as first,
        rank(own, tmp_path / "r1") as second,
    ):
        first.fetch("acme/model@v1/shard-0/a.bin", tmp_path / "a")
        with pytest.raises(OverBudget):
            second.fetch("acme/model@v1/shard-1/b.bin", tmp_path / "b")
        found = second.admin.inspect_token()
        [detail] = [each for each in found["effective"] if each["type"] == "artifact_access"]
        assert [(each["max_bytes"], each["left"]) for each in detail["ceilings"]] == [(MIB, 0)]


def test_a_token_that_was_replaced_is_taken_without_a_restart(launcher: Client, tmp_path: Path) -> None:
    with rank(launcher, tmp_path / "r0") as client:
        first = client.whoami()["token"]["id"]
        following = launcher.mint("acme/model@v1", for_key=client.profile.key.jkt)
        minting.write_rank(tmp_path / "r0", launcher.profile, following)
        assert client.whoami()["token"]["id"] == following.id != first


def test_a_refusal_of_the_last_token_does_not_touch_the_one_that_replaced_it(
    launcher: Client, tmp_path: Path
) -> None:
    with rank(launcher, tmp_path / "r0") as client:
        old = client._session.access_token()
        following = launcher.mint("acme/model@v1", for_key=client.profile.key.jkt)
        minting.write_rank(tmp_path / "r0", launcher.profile, following)
        assert client._session.access_token() == following.text
        # An answer to a request that was sent with the old one arrives only now.
        client._session._tokens.forget(old, "ended")  # type: ignore[union-attr]
        assert client.whoami()["token"]["id"] == following.id


def test_an_ended_token_names_its_file_and_what_to_do(launcher: Client, tmp_path: Path) -> None:
    with rank(launcher, tmp_path / "r0", ttl=60) as client:
        client.whoami()
        now = SystemClock().now()
        client._session._tokens._clock = type("Later", (), {"now": lambda self: now + 61_000})()  # type: ignore[union-attr]
        with pytest.raises(InvalidToken, match="has expired") as caught:
            client.whoami()
    assert str(tmp_path / "r0" / "token") in caught.value.what
    assert "broker token mint --renew" in str(caught.value.next)


def test_a_rank_ends_with_the_token_that_its_own_came_from(
    broker: Stack, launcher: Client, tmp_path: Path
) -> None:
    with rank(launcher, tmp_path / "r0") as client:
        client.whoami()
        launcher.admin.revoke_token()
        with pytest.raises(InvalidToken, match="not accepted any more") as caught:
            client.whoami()
        assert "derived" in str(caught.value.why)
        # It is not asked for again with a token that is known to be dead.
        seen = requests(broker)
        with pytest.raises(InvalidToken):
            client.whoami()
        assert seen == []
        minting.write_rank(
            tmp_path / "r0",
            launcher.profile,
            launcher.mint("acme/model@v1", for_key=client.profile.key.jkt),
        )
        client.whoami()


def test_a_token_for_another_key_or_broker_is_not_sent(
    broker: Stack, launcher: Client, tmp_path: Path
) -> None:
    first, second = rank(launcher, tmp_path / "r0").profile, rank(launcher, tmp_path / "r1").profile
    seen = requests(broker)
    (first.folder / "key.jwk").unlink()
    workload.make_key(first.folder / "key.jwk")
    for profile, why in (
        (settings.load_profile(first.folder), "another key"),
        (replace(second, issuer="https://other.example"), "another broker"),
    ):
        with Client(profile) as client, pytest.raises(ConfigurationError, match=why):
            client.whoami()
    assert seen == []


def test_a_key_of_somebody_else_gets_no_token(broker: Stack, launcher: Client) -> None:
    with broker.add(f"eve{next(NUMBER)}") as eve, pytest.raises(Denied, match="may not hold"):
        launcher.mint("acme/model", for_key=eve.profile.key.jkt)


@pytest.mark.parametrize(
    ("scope", "more"),
    [
        ((), {}),
        (("acme",), {}),
        (("acme/model/path",), {}),
        (("*",), {"paths": ["a//b"]}),
        (("*",), {"max_bytes": 0}),
        (("*",), {"actions": ["fly"]}),
        (("*",), {"ttl": 901}),
        (("*",), {"ttl": 0}),
        (("*",), {"for_key": "short"}),
    ],
    ids=range(9),
)
def test_a_scope_that_is_none_is_refused_here(
    broker: Stack, launcher: Client, scope: tuple[str, ...], more: dict[str, Any]
) -> None:
    seen = requests(broker)
    with pytest.raises(InvalidRequest):
        launcher.mint(*scope, **more)
    assert seen == []


def test_a_child_lives_as_long_as_it_should(launcher: Client) -> None:
    now = SystemClock().now()
    assert launcher.mint("acme/model", ttl=60).expires <= now + 62_000
    # The parent is fetched anew when it would cut the child short.
    held = launcher.whoami()["token"]["id"]
    for ttl in (600, None):
        launcher._session._tokens._held["expires_at"] = now + 300_000  # type: ignore[union-attr]
        assert launcher.mint("acme/model", ttl=ttl).expires >= now + 590_000
    assert launcher.whoami()["token"]["id"] != held


def test_a_launcher_that_is_a_job_mints_too(job: Job, artifact: str, tmp_path: Path) -> None:
    with Client.from_profile() as launcher, rank(launcher, tmp_path / "r0") as client:
        client.fetch(artifact, tmp_path / "out")
    assert tree(tmp_path / "out") == FILES


def test_an_enrolled_profile_is_never_a_ranks(launcher: Client) -> None:
    with pytest.raises(ConfigurationError, match="enrolled key"):
        minting.rank_key(launcher.profile.folder)
