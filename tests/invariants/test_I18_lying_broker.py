"""I18: a client opens a lease only with a receipt of its own request, in a log that extends what it saw.

The broker is real, and lies: its answers are changed on their way out, by somebody who holds everything
that the broker holds but for the log's key. Whatever the lie, the client asks the store for nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from broker.client.sdk import Client
from broker.errors import IntegrityFailure, RollbackDetected
from tests.unit.client.conftest import MIB, Stack, make_tree, publisher, reader, stack, tree
from tests.world import World

__all__ = ["publisher", "reader", "stack"]

Json = dict[str, Any]
Lie = Callable[[Json, Json], None]
"""Changes the honest answer, given an honest answer that another request got."""

LIES: dict[str, Lie] = {
    "no receipt": lambda answer, other: answer.pop("receipt"),
    "the receipt of another request": lambda answer, other: answer.update(
        receipt=other["receipt"], consistency=[]
    ),
    "the whole answer to another request": lambda answer, other: answer.update(other),
    "the lease of another request": lambda answer, other: answer.update(lease=other["lease"]),
    "the grant of another request": lambda answer, other: answer.update(grant=other["grant"]),
    "no link to what was seen": lambda answer, other: answer.update(consistency=[]),
    "a link to something else": lambda answer, other: answer.update(
        consistency=answer["consistency"][::-1] + other["consistency"][:1]
    ),
    "another entry under the same proof": lambda answer, other: answer.update(
        receipt=_with_entry_of(answer["receipt"], other["receipt"])
    ),
    "another version": lambda answer, other: answer["grant"].update(version="v2"),
    "another manifest": lambda answer, other: answer["grant"].update(manifest="sha256:" + 64 * "0"),
    "another lease number": lambda answer, other: answer["lease"].update(number=1),
    "a later expiry": lambda answer, other: answer["lease"].update(expires_at="2099-01-01T00:00:00.000Z"),
    "more extents than were sealed": lambda answer, other: answer["lease"].update(extents=[[0, 0, 3]]),
}


def _with_entry_of(receipt: str, other: str) -> str:
    lines, others = receipt.split("\n"), other.split("\n")
    return "\n".join([lines[0], others[1], *lines[2:]])


class Liar:
    """Stands between the broker and its clients; passes everything on, and keeps or changes grants."""

    def __init__(self, stack: Stack) -> None:
        self._stack, self._honest = stack, stack._wsgi
        self.lie: Callable[[Json], None] | None = None
        self.answers: list[Json] = []
        stack._wsgi = self  # type: ignore[assignment]

    def __call__(self, environ: Json, start: Callable[..., Any]) -> list[bytes]:
        if environ["PATH_INFO"] != "/v1/grants":
            return self._honest(environ, start)  # type: ignore[return-value]
        head: list[Any] = []
        body = b"".join(self._honest(environ, lambda status, headers, *_: head.extend([status, headers])))
        answer = json.loads(body)
        if head[0].startswith("200"):
            self.answers.append(json.loads(body))
            if self.lie is not None:
                self.lie(answer)
        body = json.dumps(answer).encode()
        start(head[0], [(n, str(len(body)) if n.lower() == "content-length" else v) for n, v in head[1]])
        return [body]


@pytest.fixture
def liar(stack: Stack, publisher: Client, reader: Client, tmp_path: Path) -> Liar:
    files = make_tree(tmp_path / "files", {"a": bytes(range(256)) * 4 * 4096, "b": b"small"})
    publisher.publish(files, "acme/llama@v1", extent_size=MIB)
    return Liar(stack)


def fetch_is_refused(stack: Stack, reader: Client, dest: Path) -> BaseException:
    stack.store.gets.clear()
    with pytest.raises(IntegrityFailure) as refused:
        reader.fetch("acme/llama@v1", dest)
    assert stack.store.gets == []
    assert not dest.exists() or tree(dest) == {}
    return refused.value


def test_I18_the_honest_broker_is_believed(stack: Stack, reader: Client, liar: Liar, tmp_path: Path) -> None:
    reader.fetch("acme/llama@v1", tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "files")
    assert len(liar.answers) == 1


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_I18_a_lying_broker_is_not(
    stack: Stack, reader: Client, liar: Liar, tmp_path: Path, lie: Lie
) -> None:
    reader.fetch("acme/llama@v1", tmp_path / "first", purpose="another purpose")
    (other,) = liar.answers
    liar.lie = lambda answer: lie(answer, other)
    fetch_is_refused(stack, reader, tmp_path / "out")


def test_I18_a_log_with_another_key_is_not_the_log(
    stack: Stack, reader: Client, liar: Liar, tmp_path: Path
) -> None:
    """Same broker, same database, same log name: only the key that signs the heads is another."""
    home = tmp_path / "forger"
    home.mkdir()
    forger = World(home)
    stack.apply(log=forger.house.log)
    fetch_is_refused(stack, reader, tmp_path / "out")


def test_I18_a_log_that_went_back_is_refused_and_what_was_seen_is_kept(
    stack: Stack, reader: Client, liar: Liar, tmp_path: Path
) -> None:
    reader.fetch("acme/llama@v1", tmp_path / "first")
    (old,) = liar.answers
    reader.fetch("acme/llama@v1", tmp_path / "second")
    seen = (reader.profile.folder / "treehead").read_text()
    liar.lie = lambda answer: answer.update(receipt=old["receipt"], consistency=[])
    assert isinstance(fetch_is_refused(stack, reader, tmp_path / "out"), RollbackDetected)
    assert (reader.profile.folder / "treehead").read_text() == seen
