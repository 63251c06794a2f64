"""Syslog over TCP and TLS: messages that others parse, and no delivery that the receiver's kernel lacks."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from syslog_rfc5424_parser import SyslogMessage
from syslog_rfc5424_parser.constants import SyslogFacility, SyslogSeverity

from broker.errors import Unavailable
from broker.forwarding.syslog import UNSURE, SyslogReceiver, syslog_hostname, syslog_message
from broker.forwarding.tls import open_context
from broker.outbox import Forwarded
from broker.services.forwarding import to_ascii
from tests.receivers import SyslogServer, make_authority, wait_for

Make = Callable[..., SyslogReceiver]


def entry(index: int, body: bytes | None = None, *, severity: int = 6) -> Forwarded:
    text = body or b'{"index":%d}' % index
    return Forwarded(
        index=index, time=1_500 + index, type="new-origin", severity=severity, leaf_hash=bytes(32), body=text
    )


@pytest.fixture
def server() -> Iterator[SyslogServer]:
    made = SyslogServer()
    yield made
    made.close()


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[SyslogReceiver] = []

    def open_receiver(port: int, host: str = "127.0.0.1", **changes: Any) -> SyslogReceiver:
        options = {"context": None, "hostname": "broker.example", "version": "1.2", "timeout": 5.0}
        made.append(SyslogReceiver(host, port, **{**options, **changes}))
        return made[-1]

    yield open_receiver
    for each in made:
        each.close()


def test_a_message_parses_with_somebody_elses_grammar() -> None:
    hostile = to_ascii({"purpose": 'x\n<34>1 - - - - - - "]\u2028\ufeff\x00\U0001f600'})
    raw = syslog_message(entry(7, hostile, severity=4), hostname="broker.example", version="1.2", sequence=9)
    assert b"\n" not in raw
    found = SyslogMessage.parse(raw.decode("ascii"))
    assert (found.facility, found.severity) == (SyslogFacility.audit, SyslogSeverity.warning)
    assert (found.version, found.timestamp) == (1, "1970-01-01T00:00:01.507Z")
    assert (found.hostname, found.appname, found.procid) == ("broker.example", "model-access-broker", None)
    assert found.msgid == "new-origin"
    assert found.sd == {
        "origin": {"software": "model-access-broker", "swVersion": "1.2"},
        "meta": {"sequenceId": "9"},
    }
    assert json.loads(found.msg) == json.loads(hostile)


@pytest.mark.parametrize(
    ("host", "header"),
    [("a.example", "a.example"), ("::1", "::1"), (None, "-"), ("", "-"), ("a b", "-"), ("ü", "-"),
     ("a" * 255, "a" * 255), ("a" * 256, "-")],
)  # fmt: skip
def test_a_hostname_is_one_word(host: str | None, header: str) -> None:
    assert syslog_hostname(host) == header


def test_messages_arrive_in_order_and_are_counted(server: SyslogServer, make: Make) -> None:
    sender = make(server.port)
    large = [entry(at, b'{"index":%d,"fill":"%s"}' % (at, b"x" * 60_000)) for at in range(8)]
    sender.deliver(large)
    sender.deliver([entry(8), entry(9)])
    wait_for(lambda: len(server.messages) == 10)
    assert server.indices == list(range(10))
    assert [each.sd["meta"]["sequenceId"] for each in server.messages] == [str(n) for n in range(1, 11)]
    assert sender.doubtful() is None
    assert sender.close()
    assert sender.unsure == UNSURE


def test_what_was_sent_before_a_break_is_in_doubt(server: SyslogServer, make: Make) -> None:
    sender = make(server.port)
    sender.deliver([entry(3), entry(4)])
    sender.deliver([entry(5)])
    wait_for(lambda: len(server.messages) == 3)
    server.reset()
    assert wait_for(sender.doubtful) == 3
    # It stays in doubt until there is a connection over which it can come again.
    assert sender.doubtful() == 3
    sender.deliver([entry(3)])
    assert sender.doubtful() is None


def test_what_a_living_receiver_had_long_ago_is_not_in_doubt(server: SyslogServer, make: Make) -> None:
    sender = make(server.port, doubt=0.0)
    sender.deliver([entry(3)])
    wait_for(lambda: server.messages)
    assert sender.doubtful() is None
    server.reset()
    wait_for(lambda: sender.doubtful() is not None or sender._socket is None)
    assert sender.doubtful() is None


def test_a_receiver_that_does_not_read_has_nothing(make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sender = make(listener.getsockname()[1], timeout=0.5)
        fill = b'{"fill":"%s"}' % (b"x" * 60_000)
        with pytest.raises(Unavailable, match="does not read"):
            sender.deliver([entry(at, fill) for at in range(120)])
        assert sender.doubtful() == 0


def is_refused(sender: SyslogReceiver) -> bool:
    """Whether a delivery fails, perhaps only the next one."""
    try:
        sender.deliver([entry(2)])
    except Unavailable:
        return True
    return False


def test_a_receiver_that_closes_at_once_has_nothing(make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def slam() -> None:
            connection, _ = listener.accept()
            connection.close()

        threading.Thread(target=slam, daemon=True).start()
        sender = make(listener.getsockname()[1])
        wait_for(lambda: is_refused(sender))


def test_nobody_there(make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    sender = make(port)
    with pytest.raises(Unavailable):
        sender.deliver([entry(1)])
    assert sender.doubtful() is None
    assert sender.close()


def test_an_end_that_the_receiver_does_not_confirm_is_no_clean_one(make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = make(listener.getsockname()[1], timeout=0.3)
        sender.deliver([entry(1)])
        assert not sender.close()


# -- TLS -------------------------------------------------------------------------------------------------


def test_tls_with_a_certificate_that_holds(tmp_path: Path, make: Make) -> None:
    authority = make_authority(tmp_path)
    server = SyslogServer(certificate=authority.issue("127.0.0.1"))
    sender = make(server.port, context=open_context(ca_file=authority.ca_file))
    sender.deliver([entry(1), entry(2)])
    wait_for(lambda: len(server.messages) == 2)
    assert server.indices == [1, 2]
    assert sender.close()
    sender.deliver([entry(3)])
    wait_for(lambda: len(server.messages) == 3)
    server.reset()
    assert wait_for(sender.doubtful) == 3
    server.close()


@pytest.mark.parametrize("wrong", ["authority", "name", "plain"])
def test_tls_with_another_certificate_gets_nothing(tmp_path: Path, make: Make, wrong: str) -> None:
    authority = make_authority(tmp_path / "a")
    names = {"authority": "127.0.0.1", "name": "other.example"}
    certificate = authority.issue(names[wrong]) if wrong in names else None
    server = SyslogServer(certificate=certificate)
    believed = make_authority(tmp_path / "b") if wrong == "authority" else authority
    sender = make(server.port, context=open_context(ca_file=believed.ca_file), timeout=1.0)
    with pytest.raises(Unavailable) as caught:
        sender.deliver([entry(1)])
    assert ("certificate" in caught.value.what) == (wrong != "plain")
    assert server.messages == []
    server.close()


def test_a_receiver_may_ask_for_a_certificate(tmp_path: Path, make: Make) -> None:
    authority = make_authority(tmp_path)
    server = SyslogServer(certificate=authority.issue("127.0.0.1"))
    server.require_certificate(authority.ca_file)
    cert_file, key_file = authority.issue("broker.example")
    context = open_context(ca_file=authority.ca_file, cert_file=cert_file, key_file=key_file)
    make(server.port, context=context).deliver([entry(1)])
    wait_for(lambda: server.messages)
    stranger = make(server.port, context=open_context(ca_file=authority.ca_file))
    # With TLS 1.3 the server's refusal comes after the client's first words.
    wait_for(lambda: is_refused(stranger))
    assert server.indices == [1]
    server.close()
