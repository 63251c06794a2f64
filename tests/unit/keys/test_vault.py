"""Custody in Vault or OpenBao, against a transit engine that lies, stumbles and redirects; its settings."""

from __future__ import annotations

import base64
import json
import os
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import stamina
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from structlog.testing import capture_logs

from broker.config import Facts, find_refusals, load_settings
from broker.errors import BrokerError, ConfigurationError, IntegrityFailure, Unavailable
from broker.keys import vault_server
from broker.keys.local import KeyPaths, LocalCustody, create_key_file, load_key_ring
from broker.keys.vault import WRAPPED_SIZE, VaultCustody
from broker.keys.vault_server import AppRole, Login, Refused, TokenFile, VaultServer
from broker.runtime import SystemEntropy
from broker.wiring import key_paths, open_vault
from tests.unit.keys.transit_server import TransitServer, running

KEY = bytes(range(32))
AAD = b"what it is bound to"
SECRETS = ("good-token", "good-secret-id", base64.b64encode(KEY).decode())


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    with stamina.set_testing(True, attempts=3, cap=True):
        yield


@pytest.fixture
def transit() -> Iterator[TransitServer]:
    with running() as server:
        yield server


def _write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.touch(mode=mode)
    path.chmod(mode)
    path.write_text(text)
    return path


@pytest.fixture
def by_token(tmp_path: Path) -> TokenFile:
    return TokenFile(path=_write(tmp_path / "token", "good-token\n"))


@pytest.fixture
def by_role(tmp_path: Path) -> AppRole:
    return AppRole(role_id="role", secret_id_file=_write(tmp_path / "secret-id", "good-secret-id"))


def _custody(transit: TransitServer, login: Login, **options: Any) -> VaultCustody:
    return VaultCustody(VaultServer(transit.url, login=login, timeout=5, **options), key="k")


def _shown(error: BaseException) -> str:
    parts = [repr(error), "".join(traceback.format_exception(error))]
    return "".join([*parts, *(f"{e.why} {e.next}" for e in (error,) if isinstance(e, BrokerError))])


# -- wraps ----------------------------------------------------------------------------------------------


def test_a_wrap_opens_with_aes_gcm_alone(transit: TransitServer, by_token: TokenFile) -> None:
    wrapped = _custody(transit, by_token).wrap(KEY, AAD)
    assert len(wrapped) == WRAPPED_SIZE == 65
    assert wrapped[:5] == b"\x02\0\0\0\x01"
    assert AESGCM(transit.secret).decrypt(wrapped[5:17], wrapped[17:], b"\x02" + AAD) == KEY


def test_a_server_that_binds_nothing_is_refused(transit: TransitServer, by_token: TokenFile) -> None:
    transit.binds = False
    custody = _custody(transit, by_token)
    for attempt in (custody.check, lambda: custody.wrap(KEY, AAD), custody.check):
        with pytest.raises(ConfigurationError, match="associated data"):
            attempt()


def test_the_proof_is_made_once(transit: TransitServer, by_token: TokenFile) -> None:
    custody = _custody(transit, by_token)
    custody.check()
    before = len(transit.seen)
    custody.check()
    custody.wrap(KEY, AAD)
    assert transit.seen[before:] == [("GET", "/v1/transit/keys/k"), ("POST", "/v1/transit/encrypt/k")]


@pytest.mark.parametrize(
    "ciphertext",
    [
        None,
        7,
        "",
        "vault:v1:",
        "vault:v0:" + "A" * 80,
        "vault:v01:" + "A" * 80,
        "vault:v4294967296:" + "A" * 80,
        "vault:v1:" + "A" * 79,
        "vault:v1:" + "A" * 84,
        "vault:v1:" + "A" * 79 + "=",
        "vault:v1:" + "A" * 79 + "-",
        "vault:v1:" + "A" * 80 + "\n",
        "other:v1:" + "A" * 80,
    ],
)
def test_a_ciphertext_of_another_form_is_refused(
    transit: TransitServer, by_token: TokenFile, ciphertext: object
) -> None:
    custody = _custody(transit, by_token)
    custody.check()
    _answer(transit, 200, {"data": {"ciphertext": ciphertext}})
    with pytest.raises(ConfigurationError):
        custody.wrap(KEY, AAD)


@pytest.mark.parametrize("size", [0, 1, 5, WRAPPED_SIZE - 1, WRAPPED_SIZE + 1])
def test_what_is_no_wrap_is_not_even_sent(transit: TransitServer, by_token: TokenFile, size: int) -> None:
    wrapped = b"\x02\0\0\0\x01" + bytes(WRAPPED_SIZE)
    with pytest.raises(IntegrityFailure):
        _custody(transit, by_token).unwrap(wrapped[:size], AAD)
    assert transit.seen == []


@pytest.mark.parametrize("plaintext", [None, 7, "", "AAAA", "?", base64.b64encode(bytes(33)).decode(), "ü"])
def test_a_plaintext_that_is_no_key_is_refused(
    transit: TransitServer, by_token: TokenFile, plaintext: object
) -> None:
    custody = _custody(transit, by_token)
    wrapped = custody.wrap(KEY, AAD)
    _answer(transit, 200, {"data": {"plaintext": plaintext}})
    with pytest.raises(IntegrityFailure):
        custody.unwrap(wrapped, AAD)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("type", "aes128-gcm96"),
        ("type", None),
        ("supports_encryption", False),
        ("derived", True),
        ("derived", None),
        ("exportable", True),
        ("allow_plaintext_backup", True),
    ],
)
def test_a_key_that_is_not_fit_wraps_nothing(
    transit: TransitServer, by_token: TokenFile, name: str, value: object
) -> None:
    transit.info[name] = value
    with pytest.raises(ConfigurationError):
        _custody(transit, by_token).wrap(KEY, AAD)
    assert transit.count("/v1/transit/encrypt/k") == 0


# -- calls ----------------------------------------------------------------------------------------------


def _answer(transit: TransitServer, status: int, body: object, **headers: str) -> None:
    transit.next.append((status, json.dumps(body).encode(), headers))


@pytest.mark.parametrize("status", [412, 429, 472, 473, 500, 502, 503, 504])
def test_a_server_that_stumbles_is_asked_again(
    transit: TransitServer, by_token: TokenFile, status: int
) -> None:
    custody = _custody(transit, by_token)
    wrapped = custody.wrap(KEY, AAD)
    for _ in range(2):
        _answer(transit, status, {"errors": ["busy"]})
    assert custody.unwrap(wrapped, AAD) == KEY
    for _ in range(3):
        _answer(transit, status, {"errors": ["busy"]})
    before = len(transit.seen)
    with pytest.raises(Unavailable, match="does not answer"):
        custody.unwrap(wrapped, AAD)
    assert len(transit.seen) - before == 3


def test_a_redirect_is_not_followed(transit: TransitServer, by_token: TokenFile) -> None:
    with running() as elsewhere:
        for status in (301, 302, 307, 308):
            for _ in range(3):
                _answer(transit, status, {}, Location=f"{elsewhere.url}/v1/transit/keys/k")
            with pytest.raises(Unavailable, match="does not answer"):
                _custody(transit, by_token).check()
        assert elsewhere.seen == []


@pytest.mark.parametrize(
    "body", [b"not JSON", b"[]", b'{"data":1,"data":2}', b"\xff", b"[" * 5000, b" " * (2 << 20)]
)
def test_an_answer_of_another_kind_is_no_answer(
    transit: TransitServer, by_token: TokenFile, body: bytes
) -> None:
    custody = _custody(transit, by_token)
    wrapped = custody.wrap(KEY, AAD)
    transit.next.extend([(200, body, {})] * 3)
    with pytest.raises(Unavailable):
        custody.unwrap(wrapped, AAD)
    assert custody.unwrap(wrapped, AAD) == KEY


def test_a_connection_that_breaks_is_made_again(transit: TransitServer, by_token: TokenFile) -> None:
    custody = _custody(transit, by_token)
    wrapped = custody.wrap(KEY, AAD)
    transit.next.extend([(200, b"{}", {"Content-Length": "100", "Connection": "close"})] * 2)
    assert custody.unwrap(wrapped, AAD) == KEY


def test_nobody_there_is_unavailable(by_token: TokenFile) -> None:
    with running() as server:
        url = server.url
    custody = VaultCustody(VaultServer(url, login=by_token), key="k")
    for attempt in (
        custody.check,
        lambda: custody.wrap(KEY, AAD),
        lambda: custody.unwrap(b"\x02\0\0\0\1" + bytes(60), AAD),
    ):
        with pytest.raises(Unavailable):
            attempt()


def test_the_namespace_goes_along(transit: TransitServer, by_role: AppRole) -> None:
    _custody(transit, by_role, namespace="team/a").check()
    assert {each.get("X-Vault-Namespace") for each in transit.headers} == {"team/a"}
    assert {each.get("X-Vault-Request") for each in transit.headers} == {"true"}


# -- logins ---------------------------------------------------------------------------------------------


def test_a_login_lasts(transit: TransitServer, by_role: AppRole) -> None:
    custody = _custody(transit, by_role)
    for _ in range(3):
        custody.wrap(KEY, AAD)
    assert transit.count("/v1/auth/approle/login") == 1


def test_a_login_is_renewed_before_it_ends(
    transit: TransitServer, by_role: AppRole, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(vault_server.time, "monotonic", lambda: now[0])
    transit.lease = 300
    custody = _custody(transit, by_role)
    custody.check()
    now[0] += 199
    custody.check()
    assert transit.count("/v1/auth/approle/login") == 1
    now[0] += 1
    custody.check()
    assert transit.count("/v1/auth/approle/login") == 2


def test_a_refusal_brings_one_login_in_five_seconds(
    transit: TransitServer, by_role: AppRole, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(vault_server.time, "monotonic", lambda: now[0])
    custody = _custody(transit, by_role)
    custody.check()
    transit.tokens.clear()
    custody.check()
    assert transit.count("/v1/auth/approle/login") == 2
    transit.tokens.clear()
    for _ in range(5):
        with pytest.raises(Refused):
            custody.wrap(KEY, AAD)
    assert transit.count("/v1/auth/approle/login") == 2
    now[0] += vault_server.RELOGIN_SECONDS
    custody.wrap(KEY, AAD)
    assert transit.count("/v1/auth/approle/login") == 3


def test_a_file_that_still_has_the_refused_token_is_tried_once(
    transit: TransitServer, by_token: TokenFile
) -> None:
    transit.tokens.clear()
    with pytest.raises(Refused):
        _custody(transit, by_token).wrap(KEY, AAD)
    assert len(transit.seen) == 1


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"auth": None},
        {"auth": {"client_token": "", "lease_duration": 1}},
        {"auth": {"client_token": "a\nb", "lease_duration": 1}},
        {"auth": {"client_token": "a"}},
    ],
)
def test_a_login_without_a_token_is_no_answer(
    transit: TransitServer, by_role: AppRole, answer: object
) -> None:
    _answer(transit, 200, answer)
    with pytest.raises(Unavailable):
        _custody(transit, by_role).check()


@pytest.mark.parametrize("text", ["", "\n", "two words", "a\x00b", "ü", "x" * 20_000])
@pytest.mark.parametrize("login", ["by_token", "by_role"])
def test_a_file_without_one_word_is_refused(
    transit: TransitServer, request: pytest.FixtureRequest, tmp_path: Path, login: str, text: str
) -> None:
    found: Login = request.getfixturevalue(login)
    _write(found.path if isinstance(found, TokenFile) else found.secret_id_file, text)
    with pytest.raises(ConfigurationError) as caught:
        _custody(transit, found).wrap(KEY, AAD)
    assert not text.strip() or text.strip() not in _shown(caught.value).replace(str(tmp_path), "")
    assert transit.seen == []


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_a_file_that_others_can_read_is_refused(
    transit: TransitServer, by_token: TokenFile, mode: int
) -> None:
    by_token.path.chmod(mode)
    with pytest.raises(ConfigurationError, match="by others"):
        _custody(transit, by_token).wrap(KEY, AAD)
    by_token.path.unlink()
    with pytest.raises(ConfigurationError, match="cannot be read"):
        _custody(transit, by_token).wrap(KEY, AAD)


def test_authorities_that_cannot_be_read_are_named(tmp_path: Path, by_token: TokenFile) -> None:
    for path in (tmp_path / "missing.pem", _write(tmp_path / "empty.pem", "no certificate")):
        with pytest.raises(ConfigurationError, match=path.name):
            VaultServer("https://vault.example", login=by_token, ca_file=path)


def test_I11_no_secret_is_in_a_message_log_or_text_form(
    transit: TransitServer,
    by_token: TokenFile,
    by_role: AppRole,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    shown = []
    caplog.set_level(0)
    with capture_logs() as logged:
        for login in (by_token, by_role):
            custody = _custody(transit, login)
            wrapped = custody.wrap(KEY, AAD)
            shown.append(repr((custody, custody._server, login, vars(custody), custody._server._session)))
            failures: tuple[tuple[int, Callable[[], object]], ...] = (
                (503, lambda: custody.wrap(KEY, AAD)),  # noqa: B023 - called in this turn of the loop
                (503, lambda: custody.unwrap(wrapped, AAD)),  # noqa: B023
                (405, lambda: custody.wrap(KEY, AAD)),  # noqa: B023
                (403, lambda: custody.wrap(KEY, AAD)),  # noqa: B023
            )
            for status, attempt in failures:
                transit.tokens.clear()
                for _ in range(3):
                    _answer(transit, status, {"errors": [*SECRETS]})
                with pytest.raises(BrokerError) as caught:
                    attempt()
                shown.append(_shown(caught.value))
                transit.next.clear()
                transit.tokens.add("good-token")
    output = capfd.readouterr()
    text = f"{shown}{logged}{output.out}{output.err}{caplog.text}"
    assert "does not answer" in text
    for secret in (*SECRETS, "token-"):
        assert secret not in text


# -- the ring and the settings ------------------------------------------------------------------------------


def test_a_ring_with_this_custody_has_no_key_file_of_it(
    tmp_path: Path, transit: TransitServer, by_token: TokenFile
) -> None:
    custody = _custody(transit, by_token)
    whole = KeyPaths.in_folder(tmp_path)
    for use, path in whole.uses():
        create_key_file(path, use, dev=False, entropy=SystemEntropy(), now=1)
    without = KeyPaths(kek=(), log=whole.log, token=whole.token, row_mac=whole.row_mac, nonce=whole.nonce)
    whole.kek[0].unlink()
    assert load_key_ring(without, entropy=SystemEntropy(), custody=custody).custody is custody
    with pytest.raises(ConfigurationError):
        load_key_ring(without, entropy=SystemEntropy())
    create_key_file(whole.kek[0], "kek", dev=False, entropy=SystemEntropy(), now=1)
    assert isinstance(load_key_ring(whole, entropy=SystemEntropy()).custody, LocalCustody)
    with pytest.raises(ConfigurationError):
        load_key_ring(whole, entropy=SystemEntropy(), custody=custody)


TOML = """
public_urls = ["https://broker.example"]
database_url = "postgresql://db.example/broker"
log_origin = "example.com/log"
tree_heads = "/mnt/heads"
[store]
endpoint = "https://s3.example"
bucket = "models"
[keys]
folder = "/etc/broker/keys"
custody = "vault"
[keys.vault]
url = "https://vault.example:8200/"
key = "broker-kek"
role_id = "a-role"
secret_id_file = "/etc/broker/secret-id"
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in os.environ:
        if name.startswith("BROKER_"):
            monkeypatch.delenv(name)
    path = _write(tmp_path / "broker.toml", TOML)
    monkeypatch.setenv("BROKER_CONFIG", str(path))
    return path


def test_the_settings_of_this_custody(config: Path) -> None:
    settings = load_settings()
    assert settings.keys.vault is not None
    assert settings.keys.vault.url == "https://vault.example:8200"
    assert settings.keys.kek == key_paths(settings).kek == ()
    assert settings.keys.file("log") == Path("/etc/broker/keys/log.json")
    assert repr(open_vault(settings.keys.vault)) == (
        "VaultCustody('https://vault.example:8200', mount='transit', key='broker-kek')"
    )


def test_production_does_not_refuse_this_custody(config: Path) -> None:
    facts = Facts(
        home=Path("/home/broker"), dev_keys=False, equal_keys=False, can_change_ledger=False, admins=2
    )
    assert find_refusals(load_settings(), facts) == []


def test_the_environment_reaches_every_level(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_KEYS__VAULT__KEY", "another")
    monkeypatch.setenv("BROKER_KEYS__VAULT__TIMEOUT", "1.5")
    vault = load_settings().keys.vault
    assert vault is not None
    assert (vault.key, vault.timeout, vault.mount) == ("another", 1.5, "transit")


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('custody = "vault"', "", "custody vault"),
        ('custody = "vault"', 'custody = "vault"\nkek = ["/k/kek.json"]', "kek is for"),
        (TOML[TOML.index("[keys.vault]") :], "", "custody vault"),
        ("https://vault", "http://vault", "loopback"),
        ("https://vault.example:8200/", "http://127.0.0.1.example:8200", "loopback"),
        ("https://vault.example:8200/", "https://vault.example/v1", "keys.vault.url"),
        ('"broker-kek"', '"../sys"', "keys.vault.key"),
        ('"broker-kek"', '"a/b"', "keys.vault.key"),
        ('"broker-kek"', '"a?b"', "keys.vault.key"),
        ('"broker-kek"', '"a%2fb"', "keys.vault.key"),
        ('"broker-kek"', '".."', "keys.vault.key"),
        ('"broker-kek"', '"ключ"', "keys.vault.key"),
        ('"broker-kek"', '"k\\n"', "keys.vault.key"),
        ('"broker-kek"', '"k"\nmount = "a/../b"', "keys.vault.mount"),
        ('"broker-kek"', '"k"\nmount = "/a"', "keys.vault.mount"),
        ('"broker-kek"', '"k"\nnamespace = "a\\r\\nX: y"', "keys.vault.namespace"),
        ('"broker-kek"', '"k"\ntimeout = 0', "keys.vault.timeout"),
        ('"broker-kek"', '"k"\nattempts = 0', "keys.vault.attempts"),
        ('"broker-kek"', '"k"\nattempts = 11', "keys.vault.attempts"),
        ('"broker-kek"', '"k"\ntoken = "s.x"', "keys.vault.token"),
        ('"broker-kek"', '"k"\ntoken_file = "/t"', "either token_file"),
        ('role_id = "a-role"', "", "come together"),
        ('secret_id_file = "/etc/broker/secret-id"', "", "come together"),
        ('role_id = "a-role"\nsecret_id_file = "/etc/broker/secret-id"', "", "either token_file"),
        ("/etc/broker/secret-id", "secret-id", "keys.vault.secret_id_file"),
        ('folder = "/etc/broker/keys"', "", "no file for log, token, row_mac, nonce"),
    ],
)
def test_what_is_missing_or_wrong_is_named(config: Path, old: str, new: str, named: str) -> None:
    assert old in TOML
    config.write_text(TOML.replace(old, new))
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert named in str(caught.value.why)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8200", "http://localhost:8200", "http://[::1]:8200"])
def test_http_is_for_loopback(config: Path, url: str) -> None:
    config.write_text(TOML.replace("https://vault.example:8200/", url))
    assert load_settings().keys.vault is not None
