"""I11 over real processes: after a story told with the command line, no secret of it stands anywhere.

What is looked through: logs of the stack, its server and its store, the database's files byte by byte,
signed tree heads, ready.json, and everything that the commands said.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from broker.identity.enrolment import parse_code
from broker.names import parse_ref
from tests.e2e.running import MIB, Done, Stack, User, noise, write_tree
from tests.e2e.wire import opened

Secrets = dict[str, set[bytes]]
KEPT_SECRETLY = ("dev.json", "broker.toml", "keys", "profiles", "store")
"""What holds secrets because it must, for its owner alone. The store's log is searched all the same."""


def octets(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def spellings(secret: bytes) -> set[bytes]:
    """A secret and the encodings that something might write it in."""
    return {
        secret,
        secret.hex().encode(),
        base64.b64encode(secret).rstrip(b"="),
        base64.urlsafe_b64encode(secret).rstrip(b"="),
    }


@pytest.fixture(scope="module")
def story(
    new_stack: Callable[..., Stack], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Stack, Secrets, list[Done]]:
    folder = tmp_path_factory.mktemp("story")
    stack = new_stack("--workers", "2", BROKER_LEASE_WINDOW=str(4 * MIB))
    pub = stack.add("pub", "--role", "publisher", "--group", "acme")
    ana = stack.add("ana", "--role", "engineer", "--group", "acme")
    eve = stack.add("eve", "--role", "engineer")
    aud = stack.add("aud", "--role", "auditor")
    tree = write_tree(folder / "t", {"a.bin": noise(9 * MIB, "story"), "small": b"small"})
    secrets: Secrets = {}
    said = [
        pub.cli("put", tree, "acme/a@v1", "--extent-size", "1MiB", "-v"),
        pub.cli("put", tree, "acme/c@v1", "--label", "tier=critical"),
        ana.cli("get", "acme/a@v1", folder / "out", "--purpose", "story", "-v"),
        ana.cli("cat", "acme/a@v1/a.bin", "--range", "2000000-2000010"),
        ana.cli("whoami"),
        ana.cli("get", "acme/c@v1", folder / "c", expect=3),
        eve.cli("get", "acme/a@v1", folder / "eve", expect=5),
        User(name="again", stack=stack).cli("login", "--server", stack.url, "--code", ana.code, expect=4),
        aud.cli("ledger", "search", "actor:ana", "-o", "json"),
        aud.cli("ledger", "verify", "--full"),
        ana.cli("ledger", "search", expect=3),
    ]
    secrets["one-time code"] = {who.code.encode() for who in (pub, ana, eve, aud)}
    secrets["one-time secret"] = {parse_code(who.code).secret for who in (pub, ana, eve, aud)}
    _, _, lease = opened(ana, parse_ref("acme/a@v1"))
    pieces = [extent for file in lease.files for extent in file.extents]
    secrets["extent key"] = {piece.key for piece in pieces}
    queries = [parse_qs(urlsplit(piece.url).query) for piece in pieces]
    secrets["URL signature"] = {query["X-Amz-Signature"][0].encode() for query in queries}
    name = urlsplit(pieces[0].url).path.rpartition("/v1/")[2]
    stack.flip(f"v1/{name}", 5000)
    said.append(ana.cli("get", "acme/a@v1", folder / "bad", expect=6))
    secrets["token"], secrets["private key"] = set(), set()
    for who in (stack.admin, pub, ana, eve, aud):
        token = who.profile / "token.json"
        if token.exists():
            text = json.loads(token.read_text())["access_token"]
            # The last part signs; it alone would be enough to complete a known header and body.
            secrets["token"] |= {text.encode(), text.rpartition(".")[2].encode()}
        secrets["private key"].add(octets(json.loads((who.profile / "key.jwk").read_text())["d"]))
    secrets["store secret"] = {stack.state["secret_key"].encode()}
    secrets["broker key"] = set()
    for path in (stack.home / "keys").glob("*.json"):
        found = json.loads(path.read_text())
        secrets["broker key"].add(octets(found["key"] if "key" in found else found["jwk"]["d"]))
    assert all(secrets.values())
    assert all(len(value) >= 16 for values in secrets.values() for value in values)
    assert stack.stop() == 0
    return stack, secrets, said


def places(stack: Stack, said: list[Done]) -> dict[str, bytes]:
    """Where a secret must not be."""
    found = {f"command {at}": done.data + done.err.encode() for at, done in enumerate(said)}
    found["stack's output"] = stack.log.read_bytes()
    for path in sorted(stack.home.rglob("*")):
        inside = path.relative_to(stack.home)
        if path.is_file() and (inside.parts[0] not in KEPT_SECRETLY or inside.parts[:2] == ("store", "log")):
            found[str(inside)] = path.read_bytes()
    return found


def search(secrets: Secrets, texts: dict[str, bytes]) -> list[str]:
    """What kind of secret stands where; never the secret."""
    return sorted(
        f"{kind} in {where}"
        for kind, values in secrets.items()
        for where, text in texts.items()
        if any(spelling in text for value in values for spelling in spellings(value))
    )


def test_I11_no_secret_stands_anywhere(story: tuple[Stack, Secrets, list[Done]]) -> None:
    stack, secrets, said = story
    texts = places(stack, said)
    assert {"server.log", "broker.db"} <= set(texts), sorted(texts)
    assert any(where.startswith("store/log") for where in texts)
    assert search(secrets, texts) == []


def test_I11_the_search_would_find_them(story: tuple[Stack, Secrets, list[Done]]) -> None:
    _, secrets, _ = story
    for kind, values in secrets.items():
        for value in values:
            for spelling in spellings(value):
                assert search(secrets, {"a log": b"2026 " + spelling + b"\n"}) == [f"{kind} in a log"]


def test_I11_what_is_kept_secretly_is_for_its_owner_only(story: tuple[Stack, Secrets, list[Done]]) -> None:
    stack, secrets, _ = story
    modes: dict[str, Any] = {}
    for path in stack.home.rglob("*"):
        if path.is_file() and search(secrets, {"": path.read_bytes()}):
            modes[str(path.relative_to(stack.home))] = oct(path.stat().st_mode & 0o077)
    assert len(modes) > 8
    assert set(modes.values()) == {"0o0"}, modes
    assert stack.home.stat().st_mode & 0o077 == 0
