"""Keys of foreign issuers: how they are fetched, how long they count, and what is not believed."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from joserfc.jwk import ECKey

from broker import discovery, limits
from broker.discovery import WELL_KNOWN, IssuerKeys
from broker.errors import Unavailable
from broker.model import ACTIVE, Issuer

NOW = 1_800_000_000_000
Reply = Callable[[BaseHTTPRequestHandler], None]


def key(kid: str, **members: Any) -> dict[str, Any]:
    return {**ECKey.generate_key("P-256").as_dict(private=False), "kid": kid, **members}


def send(body: object, *, status: int = 200, **headers: str) -> Reply:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()

    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    return reply


class Server:
    """A real HTTP server: a reply for each path, and what was asked."""

    def __init__(self, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        self.replies: dict[str, Reply] = {}
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                outer.replies.get(self.path, send({}, status=404))(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer((host, 0), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        scheme = "http" if tls is None else "https"
        self.url = f"{scheme}://{host}:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def publish(self, *keys: dict[str, Any]) -> None:
        self.replies[WELL_KNOWN] = send({"issuer": self.url, "jwks_uri": f"{self.url}/jwks"})
        self.replies["/jwks"] = send({"keys": list(keys)})

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    found.publish(key("k1"))
    yield found
    found.close()


def row(url: str, **members: str) -> Issuer:
    plain = {"name": "ci", "url": url, "kind": "oidc", "audience": "us", "mapping": "{}"}
    return Issuer(**{**plain, **members}, status=ACTIVE, created=0)  # type: ignore[arg-type]


def kids(source: IssuerKeys, issuer: Issuer, kid: str | None = None, *, after: float = 0) -> list[str | None]:
    return [found.kid for found in source.keys(issuer, kid, now=NOW + int(after * 1000))]


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def refused(why: str, issuer: Issuer, source: IssuerKeys | None = None, *, after: float = 0) -> None:
    with pytest.raises(Unavailable, match="not to be had") as caught:
        kids(source or IssuerKeys(), issuer, after=after)
    assert why in str(caught.value.why)


# -- where keys come from -------------------------------------------------------------------------------


def test_keys_by_discovery(server: Server):
    assert kids(IssuerKeys(), row(server.url)) == ["k1"]
    assert server.asked == [WELL_KNOWN, "/jwks"]


def test_keys_by_their_address(server: Server):
    assert kids(IssuerKeys(), row("https://elsewhere.example", jwks_uri=f"{server.url}/jwks")) == ["k1"]
    assert server.asked == ["/jwks"]


def test_an_address_may_have_a_query(server: Server):
    server.replies["/jwks?p=1"] = server.replies["/jwks"]
    assert kids(IssuerKeys(), row(server.url, jwks_uri=f"{server.url}/jwks?p=1")) == ["k1"]


def test_static_keys_need_no_network():
    static = json.dumps({"keys": [key("k9")]})
    unreachable = row("https://unreachable.invalid", jwks_uri="https://unreachable.invalid/x", jwks=static)
    assert kids(IssuerKeys(), unreachable, "k1") == ["k9"]
    refused("static", row("https://unreachable.invalid", jwks="{}"))


def test_a_spiffe_bundle(server: Server):
    server.publish(key("x", use="x509-svid"), key("j", use="jwt-svid"), key("s"))
    assert kids(IssuerKeys(), row("spiffe://a", kind="spiffe", jwks_uri=f"{server.url}/jwks")) == ["j"]
    static = json.dumps({"keys": [key("j2", use="jwt-svid"), key("s")]})
    assert kids(IssuerKeys(), row("spiffe://a", kind="spiffe", jwks=static)) == ["j2"]
    refused("URL of an issuer", row("spiffe://a", kind="spiffe"))


def test_an_issuer_with_a_path_or_a_slash(server: Server):
    """OpenID Connect Discovery section 4.1: a slash at the end goes before the well-known path is added."""
    for issuer in (f"{server.url}/a/b", f"{server.url}/a/b/"):
        server.replies[f"/a/b{WELL_KNOWN}"] = send({"issuer": issuer, "jwks_uri": f"{server.url}/jwks"})
        assert kids(IssuerKeys(), row(issuer)) == ["k1"]


# -- how long keys count --------------------------------------------------------------------------------


def test_keys_are_remembered(server: Server):
    source, issuer = IssuerKeys(), row(server.url)
    for after in (0, 1, limits.JWKS_TTL - 1):
        assert kids(source, issuer, "k1", after=after) == ["k1"]
    assert server.asked.count("/jwks") == 1
    server.publish(key("k2"))
    assert kids(source, issuer, "k1", after=limits.JWKS_TTL) == ["k2"]
    assert server.asked.count("/jwks") == 2


def test_an_unknown_key_is_asked_for_once_in_a_while(server: Server):
    source, issuer = IssuerKeys(), row(server.url)
    assert kids(source, issuer) == ["k1"]
    server.publish(key("k2"))
    for after in (0, 1, limits.JWKS_COOLDOWN - 1):
        assert kids(source, issuer, "k2", after=after) == ["k1"]
    assert server.asked.count("/jwks") == 1
    assert kids(source, issuer, "k2", after=limits.JWKS_COOLDOWN) == ["k2"]
    # Junk that names keys which do not exist costs the issuer one question a minute.
    for after in range(limits.JWKS_COOLDOWN + 1, 2 * limits.JWKS_COOLDOWN):
        assert kids(source, issuer, f"junk-{after}", after=after) == ["k2"]
    assert server.asked.count("/jwks") == 2


def test_a_token_without_kid_does_not_make_the_broker_ask(server: Server):
    source, issuer = IssuerKeys(), row(server.url)
    for after in (0, limits.JWKS_COOLDOWN, limits.JWKS_TTL - 1):
        assert kids(source, issuer, None, after=after) == ["k1"]
    assert server.asked.count("/jwks") == 1


def test_an_issuer_that_is_down(server: Server):
    source, issuer = IssuerKeys(), row(server.url)
    assert kids(source, issuer) == ["k1"]
    server.replies["/jwks"] = send({}, status=500)
    for after in (limits.JWKS_TTL, limits.JWKS_TTL + limits.JWKS_RETRY, limits.JWKS_STALE - 1):
        assert kids(source, issuer, "k1", after=after) == ["k1"]
    assert server.asked.count("/jwks") == 4
    refused("it answered 500", issuer, source, after=limits.JWKS_STALE)
    server.publish(key("k2"))
    again = limits.JWKS_STALE - 1 + limits.JWKS_RETRY
    refused("it answered 500", issuer, source, after=again - 1)
    assert kids(source, issuer, after=again) == ["k2"]


def test_an_unknown_key_while_the_issuer_is_down(server: Server):
    """It may be a new one: the caller is told to try again, and not that it has no such key."""
    source, issuer = IssuerKeys(), row(server.url)
    assert kids(source, issuer) == ["k1"]
    server.replies["/jwks"] = send({}, status=503)
    with pytest.raises(Unavailable):
        kids(source, issuer, "k2", after=limits.JWKS_COOLDOWN)
    assert kids(source, issuer, "k1", after=limits.JWKS_COOLDOWN) == ["k1"]


def test_an_issuer_that_never_answered(server: Server):
    source, issuer = IssuerKeys(), row(server.url)
    server.replies.clear()
    refused("it answered 404", issuer, source)
    server.publish(key("k1"))
    refused("it answered 404", issuer, source, after=limits.JWKS_RETRY - 1)
    assert server.asked == [WELL_KNOWN]
    assert kids(source, issuer, after=limits.JWKS_RETRY) == ["k1"]


def test_an_issuer_that_withdrew_all_keys(server: Server):
    source, issuer = IssuerKeys(), row(server.url)
    assert kids(source, issuer) == ["k1"]
    server.publish()
    assert kids(source, issuer, "k1", after=limits.JWKS_TTL) == []


def test_a_clock_that_was_set_back(server: Server):
    source, issuer = IssuerKeys(), row(server.url)
    assert kids(source, issuer, after=10 * limits.JWKS_STALE) == ["k1"]
    server.replies.clear()
    refused("it answered 404", issuer, source)


@pytest.mark.parametrize(
    "change",
    [{"jwks_uri": "/other"}, {"kind": "github"}, {"ca": "none"}],
    ids=lambda change: next(iter(change)),
)
def test_a_row_that_changed_begins_anew(server: Server, change: dict[str, str]):
    source = IssuerKeys()
    assert kids(source, row(server.url)) == ["k1"]
    if "jwks_uri" in change:
        change = {"jwks_uri": f"{server.url}/other"}
        server.replies["/other"] = send({"keys": [key("k2")]})
        assert kids(source, row(server.url, **change)) == ["k2"]
    elif "ca" in change:
        refused("ca cannot be read", row(server.url, **change), source)
    else:
        assert kids(source, row(server.url, **change)) == ["k1"]
        assert server.asked.count("/jwks") == 2
    assert kids(source, row(server.url)) == ["k1"]


def test_issuers_do_not_share_keys(server: Server):
    source = IssuerKeys()
    server.replies["/other"] = send({"keys": [key("k2")]})
    other = row("https://elsewhere.example", name="other", jwks_uri=f"{server.url}/other")
    assert (kids(source, row(server.url)), kids(source, other)) == (["k1"], ["k2"])
    assert kids(source, row(server.url)) == ["k1"]
    assert server.asked.count("/jwks") == 1


# -- one at a time --------------------------------------------------------------------------------------


def test_many_ask_and_one_fetches(server: Server):
    gate, reply = threading.Event(), server.replies["/jwks"]

    def slow(handler: BaseHTTPRequestHandler) -> None:
        assert gate.wait(20)
        reply(handler)

    server.replies["/jwks"] = slow
    source, issuer = IssuerKeys(), row(server.url)
    many = limits.ISSUER_WAITERS
    with ThreadPoolExecutor(many) as pool:
        answers = [pool.submit(kids, source, issuer, "k1") for _ in range(many)]
        wait_until(lambda: server.asked == [WELL_KNOWN, "/jwks"])
        gate.set()
        assert [answer.result(20) for answer in answers] == [["k1"]] * many
    assert server.asked.count("/jwks") == 1


def test_whoever_waits_does_not_wait_for_long(server: Server, monkeypatch: pytest.MonkeyPatch):
    source, issuer = IssuerKeys(), row(server.url)
    assert kids(source, issuer) == ["k1"]
    gate, reply = threading.Event(), server.replies["/jwks"]

    def stuck(handler: BaseHTTPRequestHandler) -> None:
        assert gate.wait(20)
        reply(handler)

    server.replies["/jwks"] = stuck
    monkeypatch.setattr(discovery, "_WAIT_SECONDS", 0.05)
    # Old keys that still count are used; who has none is told so; nobody begins a second fetch.
    assert kids(source, issuer, "k1", after=limits.JWKS_TTL) == ["k1"]
    assert kids(source, issuer, "k1", after=limits.JWKS_TTL + 100) == ["k1"]
    refused("has not answered yet", row(server.url, name="another"), IssuerKeys())
    wait_until(lambda: server.asked.count("/jwks") == 3)
    gate.set()


def test_an_answer_that_never_ends_is_cut_off(server: Server, monkeypatch: pytest.MonkeyPatch):
    gate = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not gate.wait(0.01):
            try:
                handler.wfile.write(b" ")
            except OSError:
                return

    server.replies["/jwks"] = drip
    monkeypatch.setattr(limits, "ISSUER_SECONDS", 0.2)
    refused("took too long", row(server.url))
    gate.set()


# -- what is not believed -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "issuer", ["https://evil.example", None, "", 7, ["{url}"], "{url}/", "{url}?"], ids=repr
)
def test_a_discovery_document_of_another_issuer(server: Server, issuer: object):
    found = issuer.replace("{url}", server.url) if isinstance(issuer, str) else issuer
    server.replies[WELL_KNOWN] = send({"issuer": found, "jwks_uri": f"{server.url}/jwks"})
    refused("of another issuer", row(server.url))
    assert "/jwks" not in server.asked


@pytest.mark.parametrize("uri", [None, 7, [], "missing"], ids=repr)
def test_a_discovery_document_without_keys(server: Server, uri: object):
    found = {"issuer": server.url, "jwks_uri": uri}
    server.replies[WELL_KNOWN] = send(found if uri != "missing" else {"issuer": server.url})
    refused("names no jwks_uri", row(server.url))


@pytest.mark.parametrize(
    "uri", ["http://keys.example/jwks", "file:///etc/passwd", "//x", "/jwks", "", "https://u:p@keys.example"]
)
def test_keys_come_over_https(server: Server, uri: str):
    server.replies[WELL_KNOWN] = send({"issuer": server.url, "jwks_uri": uri})
    refused("URL of an issuer", row(server.url))
    refused("URL of an issuer", row("https://elsewhere.example", jwks_uri=uri or "x"))


def test_an_issuer_over_plain_http_is_on_this_machine():
    refused("URL of an issuer", row("http://issuer.example"))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("path", [WELL_KNOWN, "/jwks"])
def test_redirects_are_not_followed(server: Server, path: str, status: int):
    reply = server.replies[path]
    server.replies["/moved"] = reply
    server.replies[path] = send({}, status=status, Location=f"{server.url}/moved")
    refused(f"it answered {status}", row(server.url))
    assert "/moved" not in server.asked


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b'{"keys": 7}', b'{"keys": []', b'{"keys": [], "keys": []}', b"\xff\xfe{}"],
    ids=repr,
)
def test_what_is_no_key_set(server: Server, body: bytes):
    server.replies["/jwks"] = send(body)
    with pytest.raises(Unavailable):
        kids(IssuerKeys(), row(server.url))


def test_a_set_with_a_private_key(server: Server):
    secret = ECKey.generate_key("P-256").as_dict(private=True)
    server.publish(key("k1"), {**secret, "kid": "k2"})
    refused("private or symmetric", row(server.url))


def test_an_answer_that_is_cut_off(server: Server):
    whole = json.dumps({"keys": [key("k1")]}).encode()

    def cut(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(whole) + 1))
        handler.end_headers()
        handler.wfile.write(whole)

    server.replies["/jwks"] = cut
    with pytest.raises(Unavailable):
        kids(IssuerKeys(), row(server.url))


def test_a_compressed_answer_is_not_unpacked(server: Server):
    import gzip

    data = gzip.compress(json.dumps({"keys": [key("k1")]}).encode())
    server.replies["/jwks"] = send(data, **{"Content-Encoding": "gzip"})
    with pytest.raises(Unavailable):
        kids(IssuerKeys(), row(server.url))


@pytest.mark.parametrize(
    ("path", "most"),
    [(WELL_KNOWN, limits.MAX_DISCOVERY), ("/jwks", limits.MAX_JWKS)],
    ids=["document", "keys"],
)
def test_the_size_of_a_document(server: Server, path: str, most: int):
    body = {"issuer": server.url, "jwks_uri": f"{server.url}/jwks", "keys": [key("k1")]}
    data = json.dumps(body).encode()
    server.replies[path] = send(data + b" " * (most - len(data)))
    assert kids(IssuerKeys(), row(server.url)) == ["k1"]
    server.replies[path] = send(data + b" " * (most - len(data) + 1))
    refused("larger than", row(server.url))


def test_nobody_listens():
    gone = Server()
    gone.close()
    refused("", row(gone.url))


def test_a_host_that_does_not_exist():
    refused("", row("https://issuer.invalid"))


# -- TLS ------------------------------------------------------------------------------------------------


def _authority(folder: Path, *hosts: str) -> tuple[ssl.SSLContext, str]:
    """A server's context and the PEM of the authority that vouches for these addresses of it."""
    secret = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "issuer of the tests")])
    begun = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(secret.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begun)
        .not_valid_after(begun + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host)) for host in hosts]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(secret, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    private = secret.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.pem").write_bytes(private + pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return context, pem.decode()


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[tuple[Server, str]]:
    """An issuer with its own authority, at an address that is not known as this machine's."""
    context, pem = _authority(tmp_path, "127.0.0.2")
    found = Server("127.0.0.2", context)
    found.publish(key("k1"))
    yield found, pem
    found.close()


def test_an_authority_of_its_own(secure: tuple[Server, str], tmp_path: Path):
    server, pem = secure
    assert kids(IssuerKeys(), row(server.url, ca=pem)) == ["k1"]
    (tmp_path / "other").mkdir()
    _, other = _authority(tmp_path / "other", "127.0.0.2")
    for ca in ("", other):
        refused("SSLError", row(server.url, ca=ca))
    assert server.asked.count("/jwks") == 1


def test_a_certificate_of_another_host(tmp_path: Path):
    context, pem = _authority(tmp_path, "127.0.0.3")
    server = Server("127.0.0.2", context)
    server.publish(key("k1"))
    refused("SSLError", row(server.url, ca=pem))
    assert server.asked == []
    server.close()


def test_an_authority_that_cannot_be_read(server: Server):
    for ca in ("x", "-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n", "ä"):
        refused("ca cannot be read", row(server.url, ca=ca))
    assert server.asked == []


def test_an_issuer_elsewhere_does_not_point_to_this_machine(secure: tuple[Server, str], server: Server):
    remote, pem = secure
    for uri in (f"{server.url}/jwks", "https://localhost/jwks", "https://[::1]/jwks"):
        remote.replies[WELL_KNOWN] = send({"issuer": remote.url, "jwks_uri": uri})
        refused("points to this machine", row(remote.url, ca=pem))
    assert server.asked == []
