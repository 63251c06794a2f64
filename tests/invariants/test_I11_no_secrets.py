"""I11: after a whole story, nothing that was written down holds a secret of that story.

The secrets are taken where they are real: from the wire (tokens, assertions, codes), from what was sealed
(keys, links), and from the key files. They are looked for in every table and file of the database, in the
logs, in what the clients kept beside their key, and in the errors.
"""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from structlog.testing import capture_logs

from broker.client.sdk import Client
from broker.envelope import seal
from broker.errors import BrokerError
from broker.identity import enrolment
from tests.unit.client.conftest import MIB, Stack, make_tree, stack

__all__ = ["stack"]


class Wire:
    """Listens between the clients and the broker; keeps the credentials that pass."""

    def __init__(self, stack: Stack) -> None:
        self._inner = stack._wsgi
        self.secrets: dict[str, set[bytes]] = {
            "token": set(),
            "assertion": set(),
            "code": set(),
            "key": set(),
            "link": set(),
            "private key": set(),
            "broker key": set(),
        }
        stack._wsgi = self  # type: ignore[assignment]

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
        if "HTTP_AUTHORIZATION" in environ:
            self.secrets["token"].add(environ["HTTP_AUTHORIZATION"].removeprefix("DPoP ").encode())
        if environ["PATH_INFO"] == "/oauth/token":
            body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
            self.secrets["assertion"].add(parse_qs(body.decode())["assertion"][0].encode())
            environ["wsgi.input"] = _Again(body)
        answer = b"".join(self._inner(environ, start))  # type: ignore[arg-type]
        if environ["PATH_INFO"].startswith("/v1/principals") and b"enrolment_code" in answer:
            text = json.loads(answer)["enrolment_code"]
            self.secrets["code"] |= {text.encode(), enrolment.parse_code(text).secret}
        return [answer]

    def sealed(self, plaintext: bytes) -> None:
        """Keep the keys and links of what is about to be sealed."""
        body = json.loads(plaintext)
        if "version_key" in body:
            self.secrets["key"].add(_octets(body["version_key"]))
        for file in body.get("files", ()):
            for piece in [*file["extents"], *filter(None, [file.get("segments")])]:
                self.secrets["key"].add(_octets(piece["key"]))
                self.secrets["link"].add(piece["url"].encode())


class _Again:
    """A request body that was read once, and can be read again."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def read(self, size: int = -1) -> bytes:
        size = len(self._body) if size < 0 else size
        taken, self._body = self._body[:size], self._body[size:]
        return taken


def _octets(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def spellings(secret: bytes) -> set[bytes]:
    """A secret as it is, and in every encoding that something might write it in."""
    return {
        secret,
        secret.hex().encode(),
        base64.b64encode(secret).rstrip(b"="),
        base64.urlsafe_b64encode(secret).rstrip(b"="),
        base64.b32encode(secret).rstrip(b"=").lower(),
    }


def written(stack: Stack, errors: list[BrokerError]) -> Iterator[tuple[str, bytes]]:
    """(where, what): everything that the story left behind, but for the files that are secret."""
    home = stack.world.path.parent
    for path in sorted(home.iterdir()):
        yield path.name, path.read_bytes()
    with sqlite3.connect(stack.world.path) as database:
        for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for row in database.execute(f'SELECT * FROM "{table}"'):
                yield (
                    f"table {table}",
                    b"\n".join(value if isinstance(value, bytes) else str(value).encode() for value in row),
                )
    for path in sorted(stack.folder.rglob("*")):
        if path.is_file() and path.name not in ("key.jwk", "token.json") and home not in path.parents:
            yield path.name, path.read_bytes()
    for error in errors:
        yield "an error", f"{error!r} {error.what} {error.why} {error.next} {error.args}".encode()


def find(secrets: dict[str, set[bytes]], places: list[tuple[str, bytes]]) -> list[str]:
    """What kind of secret stands where; never the secret itself."""
    looked_for = {
        kind: {text for each in found for text in spellings(each)} for kind, found in secrets.items()
    }
    return sorted(
        {
            f"a {kind} in {where}"
            for kind, texts in looked_for.items()
            for where, content in places
            if any(text in content for text in texts)
        }
    )


def tell_the_story(stack: Stack, admin: Client, tmp_path: Path) -> list[BrokerError]:
    """Enrol, publish, read, be refused, audit, revoke; the errors that it ran into."""
    people = {
        id: Client.login(
            stack.url,
            admin.admin.add_principal(id, roles=roles, groups=groups)["enrolment_code"],
            folder=stack.folder / id,
        )
        for id, roles, groups in [
            ("pia", ["publisher", "engineer"], ["acme"]),
            ("ana", ["engineer"], ["acme"]),
            ("eve", ["engineer"], []),
            ("aud", ["auditor"], []),
        ]
    }
    files = make_tree(tmp_path / "files", {"a": bytes(range(256)) * 12 * 4096, "b": b"small"})
    people["pia"].publish(files, "acme/llama@v1", extent_size=MIB)
    people["ana"].fetch("acme/llama@v1", tmp_path / "out", purpose="evaluation")
    with people["ana"].open("acme/llama@v1/a") as file:
        file.seek(5 * MIB)
        file.read(10)
    errors = []
    spoiled = admin.admin.add_principal("tim", roles=["engineer"], groups=[])["enrolment_code"]
    wrong = spoiled[:30] + ("a" if spoiled[30] != "a" else "b") + spoiled[31:]
    for attempt in (
        lambda: people["eve"].fetch("acme/llama@v1", tmp_path / "eve"),
        lambda: people["ana"].publish(files, "acme/llama@v2"),
        lambda: Client.login(stack.url, wrong, folder=stack.folder / "tim"),
        lambda: people["ana"].ledger.iter_search("type:grant"),
    ):
        with pytest.raises(BrokerError) as refused:
            list(attempt() or ())
        errors.append(refused.value)
    assert list(people["aud"].ledger.iter_search("actor:ana"))
    assert people["aud"].ledger.verify().ok
    admin.admin.revoke("principal", "ana")
    return errors


def test_I11_nothing_that_was_written_down_holds_a_secret(
    stack: Stack,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    wire, honest = Wire(stack), seal.seal

    def listening(plaintext: bytes, recipient: bytes, info: bytes) -> bytes:
        wire.sealed(plaintext)
        return honest(plaintext, recipient, info)

    monkeypatch.setattr(seal, "seal", listening)
    admin = Client(stack.profile(stack.world.admin, "admin"))
    with capture_logs() as lines:
        errors = tell_the_story(stack, admin, tmp_path)
    for path in stack.folder.rglob("key.jwk"):
        wire.secrets["private key"].add(_octets(json.loads(path.read_text())["d"]))
    house = stack.world.house
    wire.secrets["broker key"] |= {stack.world.integrity_key, house.nonce_key}
    assert all(wire.secrets.values()), wire.secrets.keys()

    said, log = capfd.readouterr(), json.dumps(lines, default=repr)
    assert "readers.ask" in log
    places = [*written(stack, errors), ("the log", log.encode())]
    places += [("stderr", (said.err + caplog.text).encode()), ("stdout", said.out.encode())]
    assert not find(wire.secrets, places)


@pytest.mark.parametrize("spelling", range(5))
def test_I11_a_secret_that_is_written_down_is_found(spelling: int) -> None:
    secret = bytes([251, 255, 254, *range(13)])
    text = sorted(spellings(secret))[spelling]
    assert find({"key": {secret}}, [("the log", b"before" + text + b"after")]) == ["a key in the log"]
    assert find({"key": {secret}}, [("the log", b"before" + text[:-3] + b"after")]) == []
