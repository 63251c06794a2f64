"""The listener over real sockets: framing, limits, endings, and what is said of failures."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime

import pytest

from broker import limits
from broker.client.agent.http import Answer, Listener, Request
from broker.errors import BrokerError, IntegrityFailure, NotFound, UsageError
from broker.runtime import SystemClock

SECONDS = 10


class Scripted:
    """An endpoint whose answers are the test's."""

    def __init__(self) -> None:
        self.seen: list[Request] = []
        self.say: Callable[[Request], Answer] = lambda request: Answer(status=200, body=b"ok")

    def answer(self, request: Request) -> Answer:
        self.seen.append(request)
        return self.say(request)

    def refusal(self, error: BrokerError) -> Answer:
        return Answer(status=404 if isinstance(error, NotFound) else 500, body=error.what.encode())


@pytest.fixture
def app() -> Scripted:
    return Scripted()


@pytest.fixture
def listener(app: Scripted) -> Iterator[Listener]:
    found = Listener(app)
    found.start()
    yield found
    found.close()


@contextlib.contextmanager
def connected(listener: Listener) -> Iterator[socket.socket]:
    with socket.create_connection((listener.host, listener.port), timeout=SECONDS) as line:
        yield line


def head(listener: Listener, line: str = "GET / HTTP/1.1", *more: str) -> bytes:
    host = f"[{listener.host}]" if ":" in listener.host else listener.host
    return "\r\n".join([line, f"Host: {host}:{listener.port}", *more, "", ""]).encode()


def read_answer(line: socket.socket, *, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    """One answer, and not a byte more."""
    data = bytearray()
    while b"\r\n\r\n" not in data:
        chunk = line.recv(1)
        assert chunk, f"the connection ended within a head: {bytes(data)!r}"
        data += chunk
    first, *fields = data[:-4].decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
    status = int(first.split()[1])
    left = 0 if method == "HEAD" or status in (204, 304) else int(headers["content-length"])
    body = bytearray()
    while len(body) < left:
        chunk = line.recv(left - len(body))
        assert chunk, "the connection ended within a body"
        body += chunk
    return status, headers, bytes(body)


def ask(listener: Listener, data: bytes, *, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    with connected(listener) as line:
        line.sendall(data)
        return read_answer(line, method=method)


def is_over(line: socket.socket) -> bool:
    """The other side ended the connection, one way or the other, and said nothing more."""
    try:
        return line.recv(1) == b""
    except ConnectionResetError:
        return True


def _is_broken_by(line: socket.socket, data: bytes, *, times: int) -> bool:
    try:
        for _ in range(times):
            line.sendall(data)
    except (BrokenPipeError, ConnectionResetError):
        return True
    return False


# -- answers ------------------------------------------------------------------------------------------


def test_an_answer_and_the_next_on_one_connection(listener: Listener, app: Scripted) -> None:
    app.say = lambda request: Answer(status=200, headers=[("X-A", "b")], body=request.raw_path.encode())
    with connected(listener) as line:
        for path in ("/one", "/two"):
            line.sendall(head(listener, f"GET {path} HTTP/1.1"))
            status, headers, body = read_answer(line)
            assert (status, headers["x-a"], body) == (200, "b", path.encode())
            assert "connection" not in headers
            assert parsedate_to_datetime(headers["date"]).timestamp() * 1000 <= SystemClock().now()


def test_requests_that_arrive_together_or_in_bytes(listener: Listener, app: Scripted) -> None:
    app.say = lambda request: Answer(status=200, body=request.raw_path.encode() + request.body)
    first = head(listener, "POST /1 HTTP/1.1", "Content-Length: 3") + b"abc"
    second = head(listener, "GET /2 HTTP/1.1")
    with connected(listener) as line:
        line.sendall(first + second)
        assert [read_answer(line)[2], read_answer(line)[2]] == [b"/1abc", b"/2"]
        for byte in first + second:
            line.send(bytes([byte]))
        assert [read_answer(line)[2], read_answer(line)[2]] == [b"/1abc", b"/2"]


def test_the_connection_ends_after_close(listener: Listener) -> None:
    with connected(listener) as line:
        line.sendall(head(listener, "GET / HTTP/1.1", "Connection: close"))
        status, headers, _ = read_answer(line)
        assert (status, headers["connection"]) == (200, "close")
        assert is_over(line)


def test_an_endpoint_on_the_other_loopback(app: Scripted) -> None:
    listener = Listener(app, host="::1")
    listener.start()
    assert ask(listener, head(listener))[0] == 200
    listener.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "localhost", "127.0.0.2", "::", "", "192.0.2.1"])
def test_only_loopback_is_listened_on(app: Scripted, host: str) -> None:
    with pytest.raises(UsageError):
        Listener(app, host=host)


def test_an_address_that_is_taken(app: Scripted, listener: Listener) -> None:
    with pytest.raises(UsageError):
        Listener(app, port=listener.port)


@pytest.mark.parametrize("status", [200, 206, 404, 416])
def test_head_has_the_length_and_no_body(listener: Listener, app: Scripted, status: int) -> None:
    read = []

    def pieces() -> Iterator[memoryview]:
        read.append("a piece")
        yield memoryview(b"12345")

    answers = [
        Answer(status=status, body=b"12345"),
        Answer(status=status, body=pieces(), length=5),
        Answer(status=status, length=5),
    ]
    app.say = lambda request: answers.pop(0) if answers else Answer(status=200, body=b"last")
    with connected(listener) as line:
        for _ in range(3):
            line.sendall(head(listener, "HEAD / HTTP/1.1"))
            found, headers, _ = read_answer(line, method="HEAD")
            assert (found, headers["content-length"]) == (status, "5")
        line.sendall(head(listener))
        assert read_answer(line)[2] == b"last"
    assert not read


def test_not_modified_has_no_body_and_no_length(listener: Listener, app: Scripted) -> None:
    app.say = lambda request: Answer(status=304, headers=[("ETag", '"a"')], body=b"never sent")
    with connected(listener) as line:
        for _ in range(2):
            line.sendall(head(listener))
            status, headers, _ = read_answer(line)
            assert (status, headers["etag"]) == (304, '"a"')
            assert "content-length" not in headers


# -- bodies in pieces ---------------------------------------------------------------------------------


def test_pieces_in_one_buffer_that_is_used_again(listener: Listener, app: Scripted) -> None:
    """A piece is good until the next is asked for, so it must have left by then."""
    buffer = memoryview(bytearray(limits.MIB))

    def pieces() -> Iterator[memoryview]:
        for byte in range(9):
            buffer[:] = bytes([byte]) * limits.MIB
            yield buffer

    app.say = lambda request: Answer(status=200, body=pieces(), length=9 * limits.MIB)
    body = ask(listener, head(listener))[2]
    assert body == b"".join(bytes([byte]) * limits.MIB for byte in range(9))


def test_an_empty_body_in_pieces_is_still_asked_for(listener: Listener, app: Scripted) -> None:
    read = []

    def pieces() -> Iterator[memoryview]:
        read.append("asked")
        yield from ()

    app.say = lambda request: Answer(status=200, body=pieces(), length=0)
    assert ask(listener, head(listener))[2] == b""
    assert read == ["asked"]


def test_what_fails_before_the_first_piece_is_a_refusal(listener: Listener, app: Scripted) -> None:
    def pieces() -> Iterator[memoryview]:
        raise NotFound("gone meanwhile")
        yield memoryview(b"")

    app.say = lambda request: Answer(status=200, body=pieces(), length=5)
    with connected(listener) as line:
        for _ in range(2):
            line.sendall(head(listener))
            assert read_answer(line)[::2] == (404, b"gone meanwhile")


@pytest.mark.parametrize("failure", [IntegrityFailure("not what was signed"), ValueError("hidden")])
@pytest.mark.parametrize("sent", [1, limits.MIB])
def test_what_fails_within_a_body_breaks_the_connection(
    listener: Listener, app: Scripted, caplog: pytest.LogCaptureFixture, failure: Exception, sent: int
) -> None:
    def pieces() -> Iterator[memoryview]:
        yield memoryview(b"x" * sent)
        raise failure

    app.say = lambda request: Answer(status=200, body=pieces(), length=2 * limits.MIB)
    with connected(listener) as line, caplog.at_level(logging.INFO, "broker.agent"):
        line.sendall(head(listener, "GET /?secret=hidden HTTP/1.1", "Authorization: hidden"))
        with pytest.raises((ConnectionResetError, AssertionError)) as caught:
            read_answer(line)
        # Not the end of a connection that could be taken for the end of the body: a reset.
        assert isinstance(caught.value, ConnectionResetError), caught.value
    assert "hidden" not in caplog.text
    assert "not what was signed" in caplog.text or "ValueError" in caplog.text


@pytest.mark.parametrize("length", [4, 6, None])
def test_a_body_of_another_length_than_was_said_is_never_whole(
    listener: Listener, app: Scripted, length: int | None
) -> None:
    app.say = lambda request: Answer(status=200, body=iter([memoryview(b"abcde")]), length=length)
    with pytest.raises((ConnectionResetError, AssertionError)):
        ask(listener, head(listener))


def test_a_tool_that_goes_away_ends_the_reading(listener: Listener, app: Scripted) -> None:
    ended = threading.Event()

    def pieces() -> Iterator[memoryview]:
        try:
            while True:
                yield memoryview(bytes(limits.MIB))
        finally:
            ended.set()

    app.say = lambda request: Answer(status=200, body=pieces(), length=2**40)
    with connected(listener) as line:
        line.sendall(head(listener))
        line.recv(1000)
    assert ended.wait(SECONDS)


def test_a_reader_that_leaves_a_piece_lying(
    listener: Listener, app: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "AGENT_SEND_TIMEOUT", 0.2)
    ended = threading.Event()

    def pieces() -> Iterator[memoryview]:
        try:
            while True:
                yield memoryview(bytes(limits.MIB))
        finally:
            ended.set()

    app.say = lambda request: Answer(status=200, body=pieces(), length=2**40)
    with connected(listener) as line:
        line.sendall(head(listener))
        assert ended.wait(SECONDS)


# -- failures -----------------------------------------------------------------------------------------


def test_a_bug_is_said_without_what_was_sent(
    listener: Listener, app: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(request: Request) -> Answer:
        raise RuntimeError(f"hidden {request.headers}")

    app.say = fail
    with caplog.at_level(logging.INFO, "broker.agent"):
        status, _, body = ask(listener, head(listener, "GET /?a=hidden HTTP/1.1", "Authorization: hidden"))
    assert status == 500
    assert b"hidden" not in body
    assert "RuntimeError" in caplog.text
    assert "test_agent_http.py" in caplog.text
    assert "Authorization" not in caplog.text
    assert "hidden {'" not in caplog.text


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: b", "a\nb", "a\x00", "a\x85b"])
def test_an_answer_cannot_be_split(listener: Listener, app: Scripted, value: str) -> None:
    app.say = lambda request: Answer(status=200, headers=[("X-Name", value)], body=b"ok")
    with connected(listener) as line:
        line.sendall(head(listener))
        assert is_over(line)


def test_guards_come_before_the_endpoint(listener: Listener, app: Scripted) -> None:
    for data in (
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        head(listener, "GET / HTTP/1.1", "Origin: null"),
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
    ):
        with connected(listener) as line:
            line.sendall(data)
            status, headers, body = read_answer(line)
            assert status in (400, 403, 421)
            assert (set(headers), body) == ({"date", "content-length", "connection"}, b"")
            assert is_over(line)
    assert not app.seen


@pytest.mark.parametrize(
    "secret", ["Authorization: Bearer hidden", "X-Amz-Security-Token: hidden"], ids=["bearer", "token"]
)
def test_what_guards_refuse_is_not_logged(
    listener: Listener, caplog: pytest.LogCaptureFixture, secret: str
) -> None:
    with caplog.at_level(logging.DEBUG):
        assert ask(listener, head(listener, "GET /hidden HTTP/1.1", secret, "Origin: hidden"))[0] == 403
    assert "403" in caplog.text
    assert "hidden" not in caplog.text


# -- limits -------------------------------------------------------------------------------------------


def test_a_head_without_an_end(listener: Listener, app: Scripted) -> None:
    assert ask(listener, b"GET /" + b"a" * (limits.MAX_REQUEST_LINE + limits.MAX_HEADERS + 10))[0] == 414
    field = b"A: " + b"a" * (limits.MAX_HEADERS + limits.MAX_REQUEST_LINE)
    assert ask(listener, b"GET / HTTP/1.1\r\n" + field)[0] == 431
    assert not app.seen


def test_a_body_at_the_limit_and_one_past_it(listener: Listener, app: Scripted) -> None:
    app.say = lambda request: Answer(status=200, body=str(len(request.body)).encode())
    line, most = "POST / HTTP/1.1", limits.MAX_AGENT_BODY
    assert ask(listener, head(listener, line, f"Content-Length: {most}") + bytes(most))[2] == b"%d" % most
    assert ask(listener, head(listener, line, f"Content-Length: {most + 1}") + bytes(most + 1))[0] == 413
    assert len(app.seen) == 1


def test_a_body_is_asked_for_when_its_sender_waits(listener: Listener, app: Scripted) -> None:
    app.say = lambda request: Answer(status=200, body=request.body)
    with connected(listener) as line:
        line.sendall(head(listener, "POST / HTTP/1.1", "Content-Length: 2", "Expect: 100-continue"))
        assert line.recv(25, socket.MSG_WAITALL) == b"HTTP/1.1 100 Continue\r\n\r\n"
        line.sendall(b"hi")
        assert read_answer(line)[2] == b"hi"


def test_an_upload_is_refused_without_being_read(listener: Listener, app: Scripted) -> None:
    app.say = lambda request: Answer(status=403, body=b"read-only")
    with connected(listener) as line:
        line.sendall(head(listener, "PUT / HTTP/1.1", "Content-Length: 5368709120", "Expect: 100-continue"))
        assert read_answer(line)[::2] == (403, b"read-only")
        assert is_over(line)
    with connected(listener) as line:  # the sender does not wait, and still learns why
        line.sendall(head(listener, "PUT / HTTP/1.1", "Content-Length: 5368709120"))
        line.sendall(bytes(limits.MAX_AGENT_LINGER // 2))
        assert read_answer(line)[::2] == (403, b"read-only")
    assert [request.body for request in app.seen] == [b"", b""]


def test_an_upload_is_read_away_up_to_a_limit(listener: Listener, app: Scripted) -> None:
    with connected(listener) as line:
        line.sendall(head(listener, "PUT / HTTP/1.1", f"Content-Length: {2**40}"))
        assert _is_broken_by(line, bytes(limits.MAX_AGENT_LINGER), times=1000)


def test_connections_at_the_limit_and_one_past_it(
    listener: Listener, app: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_AGENT_CONNECTIONS", 3)
    with contextlib.ExitStack() as stack:
        lines = [stack.enter_context(connected(listener)) for _ in range(3)]
        for line in lines:
            line.sendall(head(listener))
            assert read_answer(line)[0] == 200
        with connected(listener) as more:
            status, headers, _ = read_answer(more)
            assert (status, headers["retry-after"]) == (503, "1")
            assert is_over(more)
        lines[0].sendall(head(listener, "GET / HTTP/1.1", "Connection: close"))
        assert read_answer(lines[0])[0] == 200
        assert is_over(lines[0])
        for _ in range(100):  # its thread ends in its own time
            with connected(listener) as again:
                again.sendall(head(listener))
                with contextlib.suppress(ConnectionResetError):
                    if read_answer(again)[0] == 200:
                        break
        else:
            pytest.fail("a place that became free was not given away")


@pytest.mark.parametrize("begun", [b"", b"GET / HT"])
def test_silence_ends_a_connection(listener: Listener, monkeypatch: pytest.MonkeyPatch, begun: bytes) -> None:
    monkeypatch.setattr(limits, "AGENT_IDLE", SECONDS * 10 if begun else 0.2)
    monkeypatch.setattr(limits, "IO_TIMEOUT", 0.2)
    with connected(listener) as line:
        line.sendall(begun)
        assert is_over(line)


def test_a_head_in_drops_has_a_time_limit_as_a_whole(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "IO_TIMEOUT", 0.3)
    with connected(listener) as line:
        line.settimeout(0.05)
        for _ in range(SECONDS * 20):
            with contextlib.suppress(TimeoutError):
                line.sendall(b"A")
                assert is_over(line)
                break
        else:
            pytest.fail("a head may take for ever")


def test_a_body_that_does_not_come_ends_the_connection(
    listener: Listener, app: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "IO_TIMEOUT", 0.2)
    with connected(listener) as line:
        line.sendall(head(listener, "POST / HTTP/1.1", "Content-Length: 3") + b"ab")
        assert is_over(line)
    assert not app.seen


# -- the end ------------------------------------------------------------------------------------------


def test_close_breaks_what_is_open_and_frees_the_address(app: Scripted) -> None:
    listener = Listener(app)
    listener.start()
    assert listener.is_running
    with connected(listener) as idle:
        idle.sendall(head(listener))
        read_answer(idle)
        before = threading.active_count()
        listener.close()
        assert is_over(idle)
        assert threading.active_count() <= before - 2
    assert not listener.is_running
    with pytest.raises(ConnectionRefusedError), connected(listener):
        pass
    listener.close()


def test_a_listener_that_never_started_closes(app: Scripted) -> None:
    listener = Listener(app)
    listener.close()
    with pytest.raises(ConnectionRefusedError), connected(listener):
        pass


def test_many_at_once(listener: Listener, app: Scripted) -> None:
    app.say = lambda request: Answer(status=200, body=request.raw_path.encode())
    wrong: list[str] = []

    def client(number: int) -> None:
        with connected(listener) as line:
            for turn in range(20):
                path = f"/{number}/{turn}"
                line.sendall(head(listener, f"GET {path} HTTP/1.1"))
                if read_answer(line)[2] != path.encode():
                    wrong.append(path)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive()
    assert not wrong
    assert len(app.seen) == 400
