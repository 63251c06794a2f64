"""Where a job's identity comes from: files, GitHub Actions, and what its processes share."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from broker.client import settings, workload
from broker.client.workload import ActionsToken, TokenFile
from broker.errors import BrokerError, ConfigurationError, MalformedRequest, Unreachable
from broker.ledger import note
from tests.foreign import ForeignKey

VKEY = note.vkey("test.example/log", bytes(31) + b"\x01")
NOW = 1_800_000_000_000
KEY = ForeignKey("EdDSA")


def token(sub: str = "job:train", *, typ: str = "JWT", **claims: Any) -> str:
    members = {"iss": "https://ci.example", "sub": sub, "exp": NOW // 1000 + 600, **claims}
    return KEY.jwt(members, typ=typ)


def project(folder: Path, text: str, number: int) -> Path:
    """A volume as the kubelet makes and renews it: links to a folder that is swapped as a whole."""
    data = folder / f"..{number}"
    data.mkdir(parents=True)
    (data / "token").write_text(text)
    link = folder / "..next"
    link.symlink_to(data.name)
    link.replace(folder / "..data")
    if not (folder / "token").is_symlink():
        (folder / "token").symlink_to("..data/token")
    return folder / "token"


def config(folder: Path, **changes: Any) -> Path:
    members: dict[str, Any] = {
        "folder": folder,
        "server": "https://broker.example",
        "principal": "",
        "issuer": "https://broker.example",
        "origin": "test.example/log",
        "vkey": VKEY,
        "store_hosts": ("s3.example",),
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(settings.config_text(settings.Profile(**members)))
    return folder


# -- files --------------------------------------------------------------------------------------------------


def test_a_projected_token_is_read_through_its_links_and_anew_when_it_is_swapped(tmp_path: Path) -> None:
    file = TokenFile(project(tmp_path / "v", token("a"), 1))
    assert file.read(audience="x", now=NOW).claims["sub"] == "a"
    project(tmp_path / "v", token("b"), 2)
    assert file.read(audience="x", now=NOW).claims["sub"] == "b"
    assert not file.minted
    assert file.where == str(tmp_path / "v" / "token")


def test_a_token_that_is_written_in_place_is_seen_too(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(token("a") + "\n")
    file = TokenFile(path)
    assert file.read(audience="x", now=NOW).claims["sub"] == "a"
    path.write_text(token("longer-than-before"))
    assert file.read(audience="x", now=NOW).claims["sub"] == "longer-than-before"


@pytest.mark.parametrize(
    "text", ["", "a.b", "a.b.c", "e30.e30", "\xff.\xff.\xff", "x" * 20_000, "e30=.e30.e30", "W10.e30.e30"]
)
def test_what_is_no_token_is_not_repeated(tmp_path: Path, text: str) -> None:
    path = tmp_path / "token"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigurationError) as caught:
        TokenFile(path).read(audience="x", now=NOW)
    said = f"{caught.value.what}{caught.value.why}{caught.value.next}"
    assert str(path) in said
    assert not text or len(text) < 4 or text not in said


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no token in"):
        TokenFile(tmp_path / "missing").read(audience="x", now=NOW)
    with pytest.raises(ConfigurationError):
        TokenFile(tmp_path).read(audience="x", now=NOW)


def test_the_kind_of_a_token_cannot_change_under_a_running_job(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(token())
    file = TokenFile(path)
    assert not file.minted
    path.write_text(token(typ="at+jwt", more="longer"))
    with pytest.raises(ConfigurationError, match="another kind"):
        file.read(audience="x", now=NOW)
    assert TokenFile(path).minted


@pytest.mark.parametrize(
    ("exp", "expires"),
    [(5, 5000), (5.5, 5500), (True, None), ("5", None), (-1, None), (2**60, None), (None, None)],
)
def test_the_end_of_a_token_is_a_number(exp: object, expires: int | None) -> None:
    claims = {} if exp is None else {"exp": exp}
    assert workload.parse_job_token(KEY.jwt(claims)).expires == expires


def test_tokens_are_not_shown() -> None:
    text = token()
    found = workload.parse_job_token(text)
    assert text not in repr(found)
    assert "job:train" not in repr(found)
    with pytest.raises(MalformedRequest):
        workload.parse_job_token(text + ".x")


# -- GitHub Actions -----------------------------------------------------------------------------------------


class Actions:
    """The endpoint that a runner offers to its job."""

    def __init__(self) -> None:
        self.status = 200
        self.body: bytes | None = None
        self.location = ""
        self.expires = NOW // 1000 + 300
        self.seen: list[tuple[str, str | None]] = []
        home = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                home.seen.append((self.path, self.headers.get("Authorization")))
                [audience] = parse_qs(urlsplit(self.path).query).get("audience", [""])
                value = token(aud=audience, exp=home.expires, jti=str(len(home.seen)))
                body = home.body if home.body is not None else json.dumps({"value": value}).encode()
                self.send_response(home.status)
                if home.location:
                    self.send_header("Location", home.location)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/idtoken/job7?api-version=2.0"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def actions() -> Iterator[Actions]:
    made = Actions()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_actions_give_a_token_for_the_brokers_audience(actions: Actions) -> None:
    source = ActionsToken(url=actions.url, bearer="runner-secret")
    found = source.read(audience="https://broker.example/a b", now=NOW)
    assert found.claims["aud"] == "https://broker.example/a b"
    [(path, authorization)] = actions.seen
    assert parse_qs(urlsplit(path).query)["api-version"] == ["2.0"]
    assert authorization == "Bearer runner-secret"
    assert "runner-secret" not in repr(source) + repr(vars(source).get("_held"))


def test_a_token_of_actions_is_kept_until_shortly_before_it_ends(actions: Actions) -> None:
    source = ActionsToken(url=actions.url, bearer="b")
    first = source.read(audience="a", now=NOW)
    assert source.read(audience="a", now=NOW + 239_000) is first
    assert source.read(audience="a", now=NOW + 241_000).text != first.text
    assert source.read(audience="other", now=NOW).claims["aud"] == "other"


@pytest.mark.parametrize(
    ("status", "body", "location"),
    [
        (403, b"{}", ""),
        (500, b"", ""),
        (302, b"", "http://127.0.0.1:1/elsewhere"),
        (200, b"not json", ""),
        (200, b"{}", ""),
        (200, b'{"value": "junk"}', ""),
        (200, b'{"value": "' + b"x" * 70_000 + b'"}', ""),
    ],
    ids=["refused", "broken", "redirect", "text", "empty", "junk", "huge"],
)
def test_actions_that_give_none(actions: Actions, status: int, body: bytes, location: str) -> None:
    actions.status, actions.body, actions.location = status, body, location
    with pytest.raises(Unreachable) as caught:
        ActionsToken(url=actions.url, bearer="runner-secret").read(audience="a", now=NOW)
    said = f"{caught.value.what}{caught.value.why}{caught.value.next}"
    assert "runner-secret" not in said
    assert "job7" not in said
    assert len(actions.seen) == 1


@pytest.mark.parametrize(
    "url", ["http://runner.example/x", "ftp://x", "https://", "file:///etc/passwd", "http://[", "x"]
)
def test_the_endpoint_of_actions_is_https(url: str) -> None:
    with pytest.raises(ConfigurationError, match="ACTIONS_ID_TOKEN_REQUEST_URL") as caught:
        ActionsToken(url=url, bearer="runner-secret").read(audience="a", now=NOW)
    assert "runner-secret" not in str(caught.value)


def test_an_endpoint_that_is_away() -> None:
    with pytest.raises(Unreachable) as caught:
        ActionsToken(url="http://127.0.0.1:1/job7", bearer="runner-secret").read(audience="a", now=NOW)
    assert "job7" not in f"{caught.value.what}{caught.value.why}"


# -- what the processes of a job share ----------------------------------------------------------------------


def test_processes_of_a_job_share_one_key(tmp_path: Path) -> None:
    place = tmp_path / "broker"
    state = workload.find_state((place,), "server", "log", "job")
    assert state is not None
    assert [path.stat().st_mode & 0o777 for path in (place, state)] == [0o700, 0o700]
    key = workload.job_key(state)
    assert (state / "key.jwk").stat().st_mode & 0o777 == 0o600
    assert workload.job_key(workload.find_state((place,), "server", "log", "job")).jkt == key.jkt
    other = workload.find_state((place,), "server", "log", "other job")
    assert workload.job_key(other).jkt != key.jkt
    assert workload.job_key(None).jkt != workload.job_key(None).jkt


def test_a_place_that_others_could_use_is_passed_over(tmp_path: Path) -> None:
    shared, link, good = tmp_path / "shared", tmp_path / "link", tmp_path / "good"
    shared.mkdir()
    shared.chmod(0o755)
    good.mkdir(mode=0o700)
    link.symlink_to(good)
    file = tmp_path / "file"
    file.write_text("")
    bad = (shared, link, file, tmp_path / "no" / "parent", Path("/proc/nowhere"))
    assert workload.find_state(bad, "x") is None
    assert workload.find_state((*bad, good), "x") is not None
    assert list(shared.iterdir()) == []


def test_a_damaged_key_of_a_job_is_an_error(tmp_path: Path) -> None:
    state = workload.find_state((tmp_path / "b",), "x")
    assert state is not None
    (state / "key.jwk").write_text("{}")
    (state / "key.jwk").chmod(0o600)
    with pytest.raises(ConfigurationError, match="not a private key"):
        workload.job_key(state)


def test_places() -> None:
    assert workload.find_places({"XDG_RUNTIME_DIR": "/run/user/7", "TMPDIR": "/t"}) == (
        Path("/run/user/7/broker"),
    )
    name = f"broker-{os.geteuid()}"
    assert workload.find_places({"TMPDIR": "/t"}) == (Path("/dev/shm") / name, Path("/t") / name)


def test_what_tells_jobs_apart_outlasts_their_tokens(tmp_path: Path) -> None:
    def job(**claims: Any) -> str:
        (tmp_path / "token").write_text(token(**claims))
        return TokenFile(tmp_path / "token").job()

    pod = {"kubernetes.io": {"pod": {"name": "a"}, "warnafter": 1}}
    later = {"kubernetes.io": {"pod": {"name": "a"}, "warnafter": 2}}
    assert job(**pod, iat=1, jti="x") == job(**later, iat=2, jti="y", exp=NOW // 1000)
    different = [job(), job(sub="b"), job(iss="https://other.example"), job(environment="prod"), job(**pod)]
    assert len(set(different)) == len(different)


# -- which profile ------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith(("BROKER_", "ACTIONS_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def test_a_job_with_a_mounted_configuration(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = config(home / "etc" / "..2025")
    (home / "etc" / "config.toml").symlink_to(data / "config.toml")
    monkeypatch.setenv("BROKER_PROFILE_DIR", str(home / "etc"))
    monkeypatch.setenv("BROKER_TOKEN_FILE", str(project(home / "v", token(), 1)))
    found = settings.find_profile()
    assert found.principal == ""
    assert found.source is not None
    assert found.state is not None
    assert found.key.jkt == settings.find_profile().key.jkt


def test_a_job_without_any_file_of_ours(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_URL", "https://broker.example/")
    monkeypatch.setenv("BROKER_TOKEN_FILE", str(project(home / "v", token(), 1)))
    with pytest.raises(ConfigurationError, match="environment names no broker"):
        settings.find_profile()
    monkeypatch.setenv("BROKER_LOG_VKEY", VKEY)
    found = settings.find_profile()
    assert (found.server, found.origin, found.issuer) == ("https://broker.example", "test.example/log", "")
    assert found.state is not None
    assert home in found.state.parents
    monkeypatch.setenv("BROKER_LOG_VKEY", "junk")
    with pytest.raises(ConfigurationError, match="BROKER_LOG_VKEY"):
        settings.find_profile()
    monkeypatch.setenv("BROKER_LOG_VKEY", VKEY)
    monkeypatch.setenv("BROKER_URL", "http://broker.example/")
    with pytest.raises(ConfigurationError, match="http beyond"):
        settings.find_profile()


def test_two_different_pins_are_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_PROFILE_DIR", str(config(home / "p")))
    monkeypatch.setenv("BROKER_LOG_VKEY", note.vkey("other.example/log", bytes(31) + b"\x02"))
    with pytest.raises(ConfigurationError, match="another log"):
        settings.find_profile()
    monkeypatch.setenv("BROKER_LOG_VKEY", VKEY)
    assert settings.find_profile().vkey == VKEY


def test_actions_are_the_identity_only_where_nothing_else_is(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = config(home / "p")
    monkeypatch.setenv("BROKER_PROFILE_DIR", str(folder))
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_URL", "https://runner.example/x")
    assert settings.find_profile().source is None, "one variable alone is nothing"
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "runner-secret")
    found = settings.find_profile()
    assert isinstance(found.source, ActionsToken)
    assert "runner-secret" not in repr(found) + repr(settings.read_environment())
    workload.make_key(folder / "key.jwk")
    config(folder, principal="user:ana")
    assert settings.find_profile().source is None
    monkeypatch.setenv("BROKER_TOKEN_FILE", str(project(home / "v", token(), 1)))
    assert isinstance(settings.find_profile().source, TokenFile)


def test_a_profile_that_is_named_is_above_the_environment(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = config(home / "config" / "broker" / "profiles" / "me", principal="user:ana")
    key = workload.make_key(folder / "key.jwk")
    monkeypatch.setenv("BROKER_TOKEN_FILE", str(home / "missing"))
    found = settings.find_profile("me")
    assert (found.source, found.principal, found.key.jkt) == (None, "user:ana", key.jkt)
    named = settings.find_profile("me", token_file=project(home / "v", token(), 1))
    assert named.source is not None
    assert named.key.jkt != key.jkt


def test_a_minted_token_is_used_with_the_key_beside_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = config(home / "rank")
    monkeypatch.setenv("BROKER_PROFILE_DIR", str(folder))
    with pytest.raises(ConfigurationError, match="no token for it"):
        _ = settings.find_profile().key
    (folder / "token").write_text(token(typ="at+jwt"))
    found = settings.find_profile()
    with pytest.raises(ConfigurationError, match="there is no key for the token"):
        _ = found.key
    key = workload.make_key(folder / "key.jwk")
    found = settings.find_profile()
    assert found.source is not None
    assert found.source.minted
    assert (found.key.jkt, found.state) == (key.jkt, folder)
    monkeypatch.setenv("BROKER_TOKEN_FILE", str(home / "elsewhere"))
    (home / "elsewhere").write_text(token(typ="at+jwt"))
    found = settings.find_profile()
    assert found.source is not None
    assert found.source.where == str(home / "elsewhere")
    assert found.key.jkt == key.jkt


def test_configurations_without_a_principal_come_back(home: Path) -> None:
    found = settings.load_profile(config(home / "p"))
    assert found.principal == ""
    assert "principal" not in settings.config_text(found)
    with pytest.raises(BrokerError):
        settings.load_profile(config(home / "q", principal=" "))
