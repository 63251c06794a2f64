"""Custody of the key-encryption key: one contract, held by files and by a real OpenBao over TLS."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from broker.errors import ConfigurationError, IntegrityFailure, Unavailable
from broker.keys.local import LocalCustody
from broker.keys.vault import WRAPPED_SIZE, VaultCustody
from broker.keys.vault_server import AppRole, Refused, TokenFile, VaultServer
from broker.ports import KeyCustody
from broker.runtime import SystemEntropy
from tests.openbao import OpenBao, openbao, running, write_private

__all__ = ["openbao"]

KEY = bytes(range(32))
AAD = b'{"artifact":"acme/llama","use":"version"}'
Make = Callable[[], KeyCustody]


@pytest.fixture(params=["local", "vault"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Makes custodies, each with a key of its own."""
    if request.param == "local":
        return lambda: LocalCustody([secrets.token_bytes(32)], entropy=SystemEntropy())
    server: OpenBao = request.getfixturevalue("openbao")
    return lambda: server.custody(tmp_path)


@pytest.fixture
def custody(make: Make) -> KeyCustody:
    return make()


def test_what_goes_in_comes_out(custody: KeyCustody) -> None:
    for aad in (b"", AAD, bytes(range(256)), b"x" * 5000):
        assert custody.unwrap(custody.wrap(KEY, aad), aad) == KEY


def test_a_wrap_shows_nothing_and_is_never_the_same(custody: KeyCustody) -> None:
    wraps = {custody.wrap(KEY, AAD) for _ in range(5)}
    assert len(wraps) == 5
    assert len({len(wrap) for wrap in wraps}) == 1
    assert not any(KEY[:8] in wrap for wrap in wraps)


@pytest.mark.parametrize("other", [b"", AAD[:-1], AAD + b" ", AAD.replace(b"llama", b"llamb"), b"\x02" + AAD])
def test_another_binding_is_refused(custody: KeyCustody, other: bytes) -> None:
    wrapped = custody.wrap(KEY, AAD)
    with pytest.raises(IntegrityFailure):
        custody.unwrap(wrapped, other)
    assert custody.unwrap(wrapped, AAD) == KEY


def test_a_bit_that_is_changed_is_refused(custody: KeyCustody) -> None:
    wrapped = custody.wrap(KEY, AAD)
    for index in range(len(wrapped)):
        changed = wrapped[:index] + bytes([wrapped[index] ^ 1]) + wrapped[index + 1 :]
        with pytest.raises(IntegrityFailure):
            custody.unwrap(changed, AAD)


def test_another_length_is_refused(custody: KeyCustody) -> None:
    wrapped = custody.wrap(KEY, AAD)
    for wrong in (b"", wrapped[:1], wrapped[:5], wrapped[:-1], wrapped[1:], wrapped + b"\0", wrapped * 2):
        with pytest.raises(IntegrityFailure):
            custody.unwrap(wrong, AAD)


def test_a_wrap_of_another_key_is_refused(make: Make) -> None:
    mine, other = make(), make()
    with pytest.raises(IntegrityFailure):
        mine.unwrap(other.wrap(KEY, AAD), AAD)


def test_a_wrap_of_another_kind_of_custody_is_refused(tmp_path: Path, openbao: OpenBao) -> None:
    local = LocalCustody([secrets.token_bytes(32)], entropy=SystemEntropy())
    vault = openbao.custody(tmp_path)
    for mine, other in ((local, vault), (vault, local)):
        with pytest.raises(IntegrityFailure):
            mine.unwrap(other.wrap(KEY, AAD), AAD)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_only_keys_are_wrapped(custody: KeyCustody, size: int) -> None:
    with pytest.raises(IntegrityFailure):
        custody.wrap(bytes(size), AAD)


def test_threads_share_it(custody: KeyCustody) -> None:
    def trip(number: int) -> bool:
        aad = b"%d" % number
        return custody.unwrap(custody.wrap(KEY, aad), aad) == KEY

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(trip, range(24)))


# -- OpenBao: its keys ----------------------------------------------------------------------------------


def test_a_rotation_there_keeps_old_wraps_openable(openbao: OpenBao, tmp_path: Path) -> None:
    key = openbao.make_key("rotated")
    custody = openbao.custody(tmp_path, key=key)
    old = custody.wrap(KEY, AAD)
    openbao.admin("POST", f"transit/keys/{key}/rotate")
    new = custody.wrap(KEY, AAD)
    assert (old[1:5], new[1:5]) == (b"\0\0\0\x01", b"\0\0\0\x02")
    assert len(old) == len(new) == WRAPPED_SIZE
    assert custody.unwrap(old, AAD) == custody.unwrap(new, AAD) == KEY
    # Neither opens under the other's number.
    for wrapped, number in ((old, b"\0\0\0\x02"), (new, b"\0\0\0\x01"), (new, b"\0\0\0\x03")):
        with pytest.raises(IntegrityFailure):
            custody.unwrap(wrapped[:1] + number + wrapped[5:], AAD)


def test_a_version_that_was_switched_off_there_is_named(openbao: OpenBao, tmp_path: Path) -> None:
    key = openbao.make_key("aged")
    custody = openbao.custody(tmp_path, key=key)
    old = custody.wrap(KEY, AAD)
    openbao.admin("POST", f"transit/keys/{key}/rotate")
    openbao.admin("POST", f"transit/keys/{key}/config", {"min_decryption_version": 2})
    with pytest.raises(ConfigurationError, match="version 1 of the transit key transit/keys/aged"):
        custody.unwrap(old, AAD)
    openbao.admin("POST", f"transit/keys/{key}/config", {"min_decryption_version": 1})
    assert custody.unwrap(old, AAD) == KEY


def test_the_version_zero_has_no_second_meaning(openbao: OpenBao, tmp_path: Path) -> None:
    """The server itself takes 0 for 1."""
    custody = openbao.custody(tmp_path)
    wrapped = custody.wrap(KEY, AAD)
    with pytest.raises(IntegrityFailure):
        custody.unwrap(wrapped[:1] + bytes(4) + wrapped[5:], AAD)


def test_a_key_that_is_not_there_is_refused_and_not_made(openbao: OpenBao, tmp_path: Path) -> None:
    path = tmp_path / "root.token"
    write_private(path, openbao.root)
    custody = VaultCustody(openbao.server(TokenFile(path=path)), key="nobody-made-it")
    for attempt in (custody.check, lambda: custody.wrap(KEY, AAD)):
        with pytest.raises(ConfigurationError, match="nobody-made-it"):
            attempt()
    with pytest.raises(ConfigurationError, match="nobody-made-it"):
        custody.unwrap(b"\x02\0\0\0\x01" + bytes(60), AAD)
    assert not openbao.has_key("nobody-made-it")


def test_a_key_that_is_gone_is_named(openbao: OpenBao, tmp_path: Path) -> None:
    key = openbao.make_key("gone")
    custody = openbao.custody(tmp_path, key=key)
    wrapped = custody.wrap(KEY, AAD)
    openbao.admin("POST", f"transit/keys/{key}/config", {"deletion_allowed": True})
    openbao.admin("DELETE", f"transit/keys/{key}")
    with pytest.raises(ConfigurationError, match="transit/keys/gone"):
        custody.unwrap(wrapped, AAD)
    # The documented policy does not let the broker make it anew either.
    with pytest.raises(Unavailable):
        custody.wrap(KEY, AAD)
    assert not openbao.has_key(key)


@pytest.mark.parametrize(
    "options",
    [
        {"type": "rsa-2048"},
        {"type": "aes128-gcm96"},
        {"type": "chacha20-poly1305"},
        {"derived": True},
        {"derived": True, "convergent_encryption": True},
        {"exportable": True},
        {"allow_plaintext_backup": True},
    ],
    ids=lambda options: "-".join(f"{k}-{v}" for k, v in options.items()),
)
def test_a_key_that_is_not_fit_is_refused(openbao: OpenBao, tmp_path: Path, options: dict[str, Any]) -> None:
    key = openbao.make_key(f"unfit-{secrets.token_hex(4)}", **options)
    custody = openbao.custody(tmp_path, key=key)
    for attempt in (custody.check, lambda: custody.wrap(KEY, AAD)):
        with pytest.raises(ConfigurationError, match=key):
            attempt()


def test_the_key_of_another_namespace_and_mount(openbao: OpenBao, tmp_path: Path) -> None:
    openbao.admin("POST", "sys/namespaces/team", {})
    openbao.admin("POST", "sys/mounts/deep/keys", {"type": "transit"}, namespace="team")
    key = openbao.make_key("far", mount="deep/keys", namespace="team")
    policy = openbao.make_policy("far", key, mount="deep/keys", namespace="team")
    path = tmp_path / "token"
    write_private(path, openbao.make_token(policy, namespace="team"))
    server = openbao.server(TokenFile(path=path), namespace="team")
    custody = VaultCustody(server, key=key, mount="deep/keys")
    custody.check()
    assert custody.unwrap(custody.wrap(KEY, AAD), AAD) == KEY
    elsewhere = VaultCustody(openbao.server(TokenFile(path=path)), key=key, mount="deep/keys")
    with pytest.raises(ConfigurationError):
        elsewhere.check()


# -- OpenBao: who may -----------------------------------------------------------------------------------


def _role(openbao: OpenBao, folder: Path, **options: Any) -> tuple[str, AppRole]:
    """(name of a key and of the role that may use it, the role)."""
    name = openbao.make_key(f"role-{secrets.token_hex(4)}")
    return name, openbao.make_role(name, openbao.make_policy(name, name), folder, **options)


def test_an_approle_logs_in(openbao: OpenBao, tmp_path: Path) -> None:
    name, login = _role(openbao, tmp_path)
    custody = VaultCustody(openbao.server(login), key=name)
    custody.check()
    assert custody.unwrap(custody.wrap(KEY, AAD), AAD) == KEY


def test_a_session_that_was_ended_there_is_replaced(openbao: OpenBao, tmp_path: Path) -> None:
    name, login = _role(openbao, tmp_path)
    custody = VaultCustody(openbao.server(login), key=name)
    wrapped = custody.wrap(KEY, AAD)
    openbao.admin("PUT", "sys/leases/revoke-prefix/auth/approle/login")
    assert custody.unwrap(wrapped, AAD) == KEY


def test_a_token_that_was_used_up_is_replaced(openbao: OpenBao, tmp_path: Path) -> None:
    # The check alone takes five calls: the last of them is refused, and repeated with a new token.
    name, login = _role(openbao, tmp_path, token_num_uses=4)
    custody = VaultCustody(openbao.server(login), key=name)
    custody.check()
    assert custody.unwrap(custody.wrap(KEY, AAD), AAD) == KEY


def test_a_secret_id_is_read_again_for_each_login(openbao: OpenBao, tmp_path: Path) -> None:
    name, login = _role(openbao, tmp_path)
    custody = VaultCustody(openbao.server(login), key=name)
    wrapped = custody.wrap(KEY, AAD)
    old = login.secret_id_file.read_text()
    write_private(login.secret_id_file, openbao.new_secret_id(name))
    openbao.admin("POST", f"auth/approle/role/{name}/secret-id/destroy", {"secret_id": old})
    openbao.admin("PUT", "sys/leases/revoke-prefix/auth/approle/login")
    assert custody.unwrap(wrapped, AAD) == KEY


def test_a_wrong_secret_id_is_refused(openbao: OpenBao, tmp_path: Path) -> None:
    name, login = _role(openbao, tmp_path)
    write_private(login.secret_id_file, "a-guessed-secret-id")
    custody = VaultCustody(openbao.server(login), key=name)
    with pytest.raises(Refused) as caught:
        custody.wrap(KEY, AAD)
    assert "guessed" not in f"{caught.value} {caught.value.why} {caught.value.next}"
    with pytest.raises(ConfigurationError):
        custody.check()


def test_a_token_file_is_read_again_when_its_token_is_refused(openbao: OpenBao, tmp_path: Path) -> None:
    key = openbao.make_key("filed")
    policy = openbao.make_policy("filed", key)
    path = tmp_path / "token"
    first = openbao.make_token(policy)
    write_private(path, first)
    custody = VaultCustody(openbao.server(TokenFile(path=path)), key=key)
    wrapped = custody.wrap(KEY, AAD)
    openbao.revoke(first)
    with pytest.raises(Refused):
        custody.unwrap(wrapped, AAD)
    write_private(path, openbao.make_token(policy))
    # A new process has no pause to wait for.
    again = VaultCustody(openbao.server(TokenFile(path=path)), key=key)
    assert again.unwrap(wrapped, AAD) == KEY


def test_a_token_file_that_an_agent_rewrote(openbao: OpenBao, tmp_path: Path) -> None:
    key = openbao.make_key("rewritten")
    policy = openbao.make_policy("rewritten", key)
    path = tmp_path / "token"
    first = openbao.make_token(policy)
    write_private(path, first)
    custody = VaultCustody(openbao.server(TokenFile(path=path)), key=key)
    wrapped = custody.wrap(KEY, AAD)
    write_private(path, openbao.make_token(policy) + "\n")
    openbao.revoke(first)
    assert custody.unwrap(wrapped, AAD) == KEY


@pytest.mark.parametrize("operation", ["keys", "encrypt", "decrypt"])
def test_every_right_of_the_documented_policy_is_needed(
    openbao: OpenBao, tmp_path: Path, operation: str
) -> None:
    name = openbao.make_key(f"less-{operation}")
    openbao.make_policy(name, name)
    text = str(openbao.admin("GET", f"sys/policies/acl/{name}")["policy"])
    less = text.replace(f"transit/{operation}/", f"transit/{operation}-of-others/")
    assert less != text
    openbao.admin("PUT", f"sys/policies/acl/{name}", {"policy": less})
    path = tmp_path / "token"
    write_private(path, openbao.make_token(name))
    with pytest.raises(ConfigurationError, match="refuses the broker") as caught:
        VaultCustody(openbao.server(TokenFile(path=path)), key=name).check()
    assert f"transit/{operation}/{name}" in str(caught.value.why)


# -- OpenBao: away --------------------------------------------------------------------------------------


def test_sealed_or_down_is_unavailable(tmp_path: Path) -> None:
    with running(tmp_path / "own") as server:
        custody = server.custody(tmp_path)
        wrapped = custody.wrap(KEY, AAD)
        server.admin("PUT", "sys/seal")
        for state in ("sealed", "down"):
            for attempt in (
                lambda: custody.unwrap(wrapped, AAD),
                lambda: custody.wrap(KEY, AAD),
                custody.check,
            ):
                with pytest.raises(Unavailable) as caught:
                    attempt()
                assert not isinstance(caught.value, Refused), state
            server.stop()


def test_a_server_that_nobody_vouches_for_gets_nothing(openbao: OpenBao, tmp_path: Path) -> None:
    path = tmp_path / "token"
    write_private(path, openbao.root)
    server = VaultServer(openbao.url, login=TokenFile(path=path), attempts=1)
    with pytest.raises(Unavailable) as caught:
        VaultCustody(server, key="k").check()
    assert caught.value.why == "SSLError"
