"""I01 to I09 from the outside: what a leaked URL or a captured request is worth."""

from __future__ import annotations

import threading
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlsplit

import pytest

from broker.envelope.lease import LeaseExtent
from broker.names import parse_ref
from tests.e2e.running import MIB, Stack, User, write_tree
from tests.e2e.wire import Signed, grant_body, opened, send, sign

MARK = b"this is the plaintext of the weights "


@pytest.fixture(scope="module")
def ref(tmp_path_factory: pytest.TempPathFactory, pub: User) -> str:
    text = MARK * (3 * MIB // len(MARK))
    tree = write_tree(tmp_path_factory.mktemp("urls") / "t", {"a.bin": text, "b.bin": bytes(2 * MIB)})
    pub.cli("put", tree, "acme/leak@v1", "--extent-size", "1MiB")
    return "acme/leak@v1"


@pytest.fixture(scope="module")
def extents(ref: str, ana: User) -> list[LeaseExtent]:
    _, _, lease = opened(ana, parse_ref(ref))
    found = [extent for file in lease.files for extent in file.extents]
    assert len(found) >= 3
    return found


def read(url: str, *, range: str | None, method: str = "GET", **headers: str) -> tuple[int, bytes]:
    answer = send(method, url, headers={**({"Range": range} if range else {}), **headers})
    return answer.status, answer.body


def test_it_yields_ciphertext_of_one_extent(extents: list[LeaseExtent]) -> None:
    for extent in extents:
        status, body = read(extent.url, range=extent.range)
        assert status == 206
        assert len(body) == extent.length
        assert body[0] == 40, "the header of a Tink streaming ciphertext"
        assert MARK[:8] not in body
        assert bytes(64) not in body


def test_no_other_range(extents: list[LeaseExtent]) -> None:
    one = extents[0]
    end = one.start + one.length
    for wrong in (
        None,
        "bytes=0-",
        f"bytes={end}-{end + 9}",
        f"bytes=0-{end}",
        "bytes=-1",
        f"{one.range},{end}-{end}",
    ):
        status, body = read(one.url, range=wrong)
        assert status == 403, wrong
        assert len(body) < 4096


@pytest.mark.parametrize("method", ["PUT", "DELETE", "HEAD", "POST"])
def test_no_other_method(stack: Stack, extents: list[LeaseExtent], method: str) -> None:
    before = stack.objects()
    status, _ = read(extents[0].url, range=extents[0].range, method=method)
    assert status in (403, 405)
    assert stack.objects() == before


def test_no_other_grant_object_or_time(extents: list[LeaseExtent]) -> None:
    parts = urlsplit(extents[0].url)
    query = dict(parse_qsl(parts.query))
    grant = query["x-broker-grant"]
    folder, _, number = parts.path.rpartition("/")
    other = f"{folder}/{1 - int(number)}"
    changes = [
        (parts.path, query | {"x-broker-grant": grant[:-1] + ("A" if grant[-1] != "A" else "B")}),
        (parts.path, {k: v for k, v in query.items() if k != "x-broker-grant"}),
        (parts.path, query | {"X-Amz-Expires": str(int(query["X-Amz-Expires"]) + 1)}),
        (parts.path, query | {"X-Amz-SignedHeaders": "host"}),
        (parts.path, query | {"X-Amz-Signature": "0" * 64}),
        (parts.path, {k: v for k, v in query.items() if not k.startswith("X-Amz")}),
        (other, query),
        (parts.path.rpartition("/v1/")[0] + "/", query),
    ]
    for path, changed in changes:
        text = "&".join(f"{quote(k, safe='')}={quote(v, safe='')}" for k, v in changed.items())
        status, body = read(f"{parts.scheme}://{parts.netloc}{path}?{text}", range=extents[0].range)
        assert status in (400, 403), (path, status)
        assert len(body) < 4096


def test_it_is_short_lived(extents: list[LeaseExtent]) -> None:
    for extent in extents:
        assert int(dict(parse_qsl(urlsplit(extent.url).query))["X-Amz-Expires"]) <= 5 * 60 + 30


def test_the_store_gives_nothing_to_strangers(stack: Stack, ref: str) -> None:
    endpoint, bucket = stack.ready["s3"]["endpoint"], stack.bucket
    names = list(stack.objects())
    for target in (f"/{bucket}", f"/{bucket}/{names[0]}", f"/{bucket}?list-type=2", "/"):
        assert send("GET", endpoint + target).status in (400, 403), target
    assert send("PUT", f"{endpoint}/{bucket}/{names[0]}", body=b"x").status == 403
    assert send("DELETE", f"{endpoint}/{bucket}/{names[0]}").status == 403


# -- captured requests -------------------------------------------------------------------------------------


@pytest.fixture
def captured(ref: str, ana: User) -> Signed:
    with ana.client() as client:
        return sign(client, "POST", "/v1/grants", grant_body(ref))


def test_I08_a_captured_request_works_once_whichever_worker_gets_it(stack: Stack, captured: Signed) -> None:
    size = stack.size()
    answers: list[int] = []

    def go() -> None:
        answers.extend(captured.send().status for _ in range(4))

    threads = [threading.Thread(target=go) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [200] + [401] * 23
    grants = [entry for entry in stack.entries()[size:] if entry["type"] == "grant"]
    assert len(grants) == 1


def test_I08_nothing_of_a_captured_request_can_be_changed(stack: Stack, captured: Signed, eve: User) -> None:
    size = stack.size()
    with eve.client() as client:
        hers = sign(client, "POST", "/v1/grants", grant_body("acme/leak@v1"))
    body = captured.body.replace(b'"**"', b'"*"')
    headers = captured.headers
    proof, token = headers["DPoP"], headers["Authorization"]
    tries = [
        captured.send(body=body),
        captured.send(method="PUT"),
        captured.send(target="/v1/decisions"),
        captured.send(target="/v1/grants?x=1"),
        captured.send(headers={k: v for k, v in headers.items() if k != "DPoP"}),
        captured.send(headers={k: v for k, v in headers.items() if k != "Authorization"}),
        captured.send(headers=headers | {"Authorization": token.replace("DPoP", "Bearer")}),
        captured.send(headers=headers | {"Authorization": hers.headers["Authorization"]}),
        captured.send(headers=headers | {"DPoP": hers.headers["DPoP"]}),
        captured.send(headers=headers | {"DPoP": proof + "="}),
        captured.send(headers=headers | {"DPoP": f"{proof},{proof}"}),
        captured.send(headers=headers | {"Host": "broker.example"}, body=body),
        captured.send(headers=headers | {"Content-Encoding": "gzip"}),
    ]
    assert all(answer.status in (400, 401, 405, 415, 422) for answer in tries), [a.status for a in tries]
    assert all(b"lease" not in answer.body for answer in tries)
    assert not [entry for entry in stack.entries()[size:] if entry["type"] == "grant"]
    # It was good all the time: what was refused above was the change.
    assert captured.send().status == 200


def test_the_lease_in_the_answer_is_for_its_recipient_only(captured: Signed, ana: User) -> None:
    answer = captured.send()
    assert answer.status == 200
    text = answer.body.decode()
    assert "X-Amz-Signature" not in text
    assert set(answer.json()["lease"]) == {"number", "expires_at", "extents", "ciphertext"}


def test_a_lying_host_header_changes_nothing(ana: User, stack: Stack) -> None:
    with ana.client() as client:
        signed = sign(client, "GET", "/v1/whoami")
    assert signed.send(headers=signed.headers | {"Host": "evil.example"}).status == 200
    with ana.client() as client:
        wrong = sign(client, "GET", "/v1/whoami")
    object.__setattr__(wrong, "server", stack.url.replace("127.0.0.1", "localhost"))
    # The proof names the public URL; which name the connection was made with does not matter.
    assert wrong.send().status == 200


# -- every route -------------------------------------------------------------------------------------------


def test_I02_the_live_server_answers_nobody_outside_the_public_list(stack: Stack) -> None:
    public = {
        "/livez",
        "/readyz",
        "/metrics",
        "/openapi.json",
        "/.well-known/oauth-authorization-server",
        "/.well-known/oauth-protected-resource",
        "/oauth/jwks",
        "/ledger/checkpoint",
        "/ledger/keys",
    }
    described = send("GET", stack.url + "/openapi.json").json()["paths"]
    assert len(described) > 30
    size, seen = stack.size(), 0
    for rule, methods in described.items():
        path = "".join("x" if part.startswith("{") else part for part in _pieces(rule))
        for method in methods:
            answer = send(method.upper(), stack.url + path)
            if rule in public:
                assert answer.status == 200, rule
            else:
                seen += 1
                assert answer.status in (401, 404), f"{method} {rule}: {answer.status}"
                assert answer.json().keys() <= {
                    *("type", "title", "status", "detail", "code", "request_id", "why", "next"),
                    *("error", "error_description"),
                }
    assert seen > 25
    assert stack.size() == size


def _pieces(rule: str) -> list[str]:
    found: list[str] = []
    for part in rule.replace("{", "\0{").replace("}", "}\0").split("\0"):
        found.append(part)
    return found


def test_the_ledger_verifies_after_all_this(aud: User, tmp_path: Path) -> None:
    assert aud.cli("ledger", "verify", "--full", "-o", "json").json()["ok"] is True
