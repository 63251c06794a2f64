"""Webhooks: what is sent verifies with the reference library, and only 2xx means that it arrived."""

from __future__ import annotations

import base64
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import standardwebhooks

from broker import limits
from broker.errors import ConfigurationError, RateLimited, Unavailable
from broker.forwarding.tls import open_context
from broker.forwarding.webhook import (
    WebhookReceiver,
    check_webhook_url,
    message_id,
    parse_secrets,
    sign,
    webhook_body,
)
from broker.outbox import Forwarded
from broker.runtime import SystemClock
from tests.receivers import SECRET, WebhookServer, make_authority, webhook


def entry(index: int, body: bytes | None = None) -> Forwarded:
    text = body or b'{"index":%d}' % index
    return Forwarded(
        index=index, time=1_000 * index, type="grant", severity=6, leaf_hash=bytes([index]) * 32, body=text
    )


@pytest.fixture
def server() -> Iterator[WebhookServer]:
    with webhook() as made:
        yield made


def receiver(url: str, *, ca_file: Path | None = None, timeout: float = 5.0) -> WebhookReceiver:
    return WebhookReceiver(
        url,
        secrets=parse_secrets(SECRET),
        origin="log.example",
        format="jsonl",
        context=open_context(ca_file=ca_file),
        clock=SystemClock(),
        timeout=timeout,
    )


def test_a_message_verifies_and_says_what_it_is(server: WebhookServer) -> None:
    sender = receiver(server.url)
    sender.deliver([entry(3), entry(4)])
    assert server.bodies == [
        {
            "type": "ledger.entries",
            "timestamp": "1970-01-01T00:00:04.000Z",
            "data": {"origin": "log.example", "format": "jsonl", "events": [{"index": 3}, {"index": 4}]},
        }
    ]
    assert server.paths == ["/hooks/ledger?team=soc"]
    assert (sender.unsure, sender.doubtful(), sender.close()) == (0, None, True)


def test_the_id_is_the_same_for_each_try_and_has_no_full_stop(server: WebhookServer) -> None:
    server.answers = [500, 204]
    sender = receiver(server.url)
    with pytest.raises(Unavailable, match="answers 500"):
        sender.deliver([entry(1), entry(2)])
    sender.deliver([entry(1), entry(2)])
    assert server.ids == ["entries_1_2_" + "02" * 16] * 2
    assert len(server.bodies) == 1


def test_ids_tell_logs_and_runs_apart() -> None:
    other = Forwarded(index=2, time=0, type="grant", severity=6, leaf_hash=b"x" * 32, body=b"{}")
    made = {message_id(run) for run in ([entry(1)], [entry(1), entry(2)], [entry(2)], [other])}
    assert len(made) == 4


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 401, 404, 500, 503])
def test_anything_else_than_2xx_is_a_failure(server: WebhookServer, status: int) -> None:
    server.answers = [lambda handler: handler.reply(status, Location=server.url)]  # type: ignore[attr-defined]
    with pytest.raises(Unavailable, match=f"answers {status}") as caught:
        receiver(server.url).deliver([entry(1)])
    assert (caught.value.why == "it redirects") == (status in (301, 302, 307, 308))
    assert len(server.ids) == 1  # I04: nobody follows a redirect with the record in his hands


def test_gone_is_not_tried_again(server: WebhookServer) -> None:
    server.answers = [410]
    with pytest.raises(ConfigurationError, match="gone"):
        receiver(server.url).deliver([entry(1)])


@pytest.mark.parametrize(
    ("status", "asked", "seconds"),
    [(429, "17", 17), (503, "3", 3), (429, "999999999", limits.MAX_FORWARD_RETRY_AFTER)],
)
def test_a_busy_receiver_says_when(server: WebhookServer, status: int, asked: str, seconds: int) -> None:
    server.answers = [lambda handler: handler.reply(status, Retry_After=asked)]  # type: ignore[attr-defined]
    with pytest.raises(RateLimited) as caught:
        receiver(server.url).deliver([entry(1)])
    assert caught.value.retry_after == seconds


@pytest.mark.parametrize("asked", ["", "0", "-1", "soon", "Wed, 21 Oct 2026 07:28:00 GMT"])
def test_a_pause_that_is_not_understood_is_ours_to_choose(server: WebhookServer, asked: str) -> None:
    server.answers = [lambda handler: handler.reply(429, Retry_After=asked)]  # type: ignore[attr-defined]
    with pytest.raises(Unavailable):
        receiver(server.url).deliver([entry(1)])


def test_a_receiver_that_says_nothing_is_given_up(server: WebhookServer) -> None:
    over = threading.Event()
    server.answers = [lambda _: over.wait(10)]  # type: ignore[list-item, return-value]
    with pytest.raises(Unavailable, match="does not answer"):
        receiver(server.url, timeout=0.2).deliver([entry(1)])
    over.set()
    receiver(server.url).deliver([entry(1)])
    assert server.indices == [1]


def test_an_answer_without_end_is_not_read(server: WebhookServer) -> None:
    def flood(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for _ in range(2 * limits.MAX_FORWARD_ANSWER // 4096):
            handler.wfile.write(b"1000\r\n" + bytes(4096) + b"\r\n")

    server.answers = [flood]
    receiver(server.url, timeout=2.0).deliver([entry(1)])


def test_nobody_there(server: WebhookServer) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(Unavailable) as caught:
        receiver(server.url).deliver([entry(1)])
    # I11: a URL may have a secret in its path.
    assert "hooks" not in f"{caught.value.what} {caught.value.why}"


def test_tls_with_a_certificate_that_holds(tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    with webhook(certificate=authority.issue("127.0.0.1")) as server:
        receiver(server.url, ca_file=authority.ca_file).deliver([entry(1)])
        assert server.indices == [1]
        with pytest.raises(Unavailable) as caught:
            receiver(server.url).deliver([entry(2)])
        assert "self-signed" in str(caught.value.why) or "issuer" in str(caught.value.why)
    with webhook(certificate=authority.issue("other.example")) as server:
        with pytest.raises(Unavailable) as caught:
            receiver(server.url, ca_file=authority.ca_file).deliver([entry(2)])
        assert "mismatch" in str(caught.value.why)


@pytest.mark.parametrize(
    "url",
    ["http://siem.example/x", "ftp://127.0.0.1/", "https://a@siem.example/", "https:///x", "https://h/#x",
     "https://h:0/", "https://h:x/", "https://h/ x", "https://h/ü", "no url"],
)  # fmt: skip
def test_only_https_beyond_this_machine(url: str) -> None:
    with pytest.raises(ConfigurationError):
        check_webhook_url(url)


def test_every_secret_signs() -> None:
    old, new = b"o" * 24, b"n" * 64
    words = ["whsec_" + base64.b64encode(each).decode() for each in (new, old)]
    secrets = parse_secrets("\n".join(words) + "\n")
    assert secrets == (new, old)
    body = webhook_body([entry(1)], origin="o", format="jsonl")
    headers = sign("entries_1", SystemClock().now() // 1000, body, secrets)
    for word in words:
        standardwebhooks.Webhook(word).verify(body, headers)
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(words[0]).verify(body + b" ", headers)


@pytest.mark.parametrize(
    "text",
    ["", "whsec_", "whsec_AAAA", "not a secret", base64.b64encode(bytes(32)).decode(),
     "whsec_" + base64.b64encode(bytes(23)).decode(), "whsec_" + base64.b64encode(bytes(65)).decode(),
     "whsec_ü", " ".join(["whsec_" + base64.b64encode(bytes(32)).decode()] * 5)],
    ids=["empty", "nothing", "short", "words", "no-prefix", "23", "65", "no-ascii", "five"],
)  # fmt: skip
def test_what_is_no_secret_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_secrets(text)
    assert base64.b64encode(bytes(18)).decode() not in f"{caught.value.what} {caught.value.why}"


def test_files_of_tls_that_are_none(tmp_path: Path) -> None:
    wrong = tmp_path / "x.pem"
    wrong.write_text("no certificate")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        open_context(ca_file=wrong)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        open_context(ca_file=tmp_path / "missing")
    with pytest.raises(ConfigurationError, match="cannot be used"):
        open_context(cert_file=wrong, key_file=wrong)
    assert open_context().verify_mode == ssl.CERT_REQUIRED
    assert open_context().minimum_version == ssl.TLSVersion.TLSv1_2
