"""I11 at the exchange: neither the workload's token nor ours is written down anywhere."""

from __future__ import annotations

import json
import sqlite3
from urllib.parse import urlencode

import pytest
from structlog.testing import capture_logs

from broker import jose
from broker.canonical import Json
from tests.foreign import FakeIssuer, read_details
from tests.invariants.test_I11_no_secrets import find
from tests.unit.web.conftest import Api
from tests.world import Person, World

TYPE = "urn:ietf:params:oauth:token-type:"


def send(api: Api, who: Person, subject: str, kind: str, **more: str) -> tuple[bytes, Json]:
    form = {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "subject_token": subject,
        "subject_token_type": TYPE + kind,
        "authorization_details": json.dumps(read_details()),
        **more,
    }
    answer = api.send(
        who,
        "POST",
        "/oauth/token",
        urlencode(form).encode(),
        token=None,
        content_type="application/x-www-form-urlencoded",
    )
    data = answer.get_data()
    answer.close()
    return data, json.loads(data)


def test_I11_no_token_of_an_exchange_is_written_down(
    world: World, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    issuer, api = FakeIssuer(), Api(world)
    world.register(issuer)
    secrets: dict[str, set[bytes]] = {"subject token": set(), "token": set(), "signature": set()}
    errors: list[bytes] = []

    def keep(kind: str, text: str) -> str:
        secrets[kind].add(text.encode())
        secrets["signature"].add(text.rpartition(".")[2].encode())
        return text

    job, rank, thief = (Person(id="", key=jose.PrivateKey.generate(), token="") for _ in range(3))
    with capture_logs() as lines:
        subject = keep("subject token", issuer.token(world.clock.now()))
        job.token = keep("token", send(api, job, subject, "jwt")[1]["access_token"])
        minted = send(api, job, job.token, "access_token", cnf_jkt=rank.key.jkt)[1]
        rank.token = keep("token", minted["access_token"])
        api.ok(rank, "GET", "/v1/whoami")
        api.ok(
            rank,
            "POST",
            "/oauth/introspect",
            urlencode({"token": rank.token}).encode(),
            content_type="application/x-www-form-urlencoded",
        )
        expired = keep("subject token", issuer.token(world.clock.now(), exp=1))
        unmapped = keep("subject token", issuer.token(world.clock.now(), project="other"))
        admin = Person(id="", key=world.admin.key, token="")
        refused = [
            send(api, thief, subject, "jwt"),
            send(api, thief, subject, "access_token"),
            send(api, thief, job.token, "jwt"),
            send(api, thief, job.token, "access_token"),
            send(api, thief, expired, "jwt"),
            send(api, thief, unmapped, "jwt"),
            send(api, admin, keep("subject token", issuer.token(world.clock.now())), "jwt"),
            send(api, job, job.token, "access_token", cnf_jkt=world.admin.key.jkt),
        ]
    assert all("error" in body for _, body in refused)
    errors += [data for data, _ in refused]

    said, log = capfd.readouterr(), json.dumps(lines, default=repr)
    places = [("an answer", data) for data in errors]
    places += [("the log", log.encode()), ("stderr", (said.err + said.out + caplog.text).encode())]
    for path in world.path.parent.iterdir():
        places.append((path.name, path.read_bytes()))
    with sqlite3.connect(world.path) as database:
        for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for row in database.execute(f'SELECT * FROM "{table}"'):
                cells = (cell if isinstance(cell, bytes) else str(cell).encode() for cell in row)
                places.append((f"table {table}", b"\n".join(cells)))
    database.close()
    assert "oauth.issue_token" in log
    assert not find(secrets, places)


def test_I11_evidence_of_an_exchange_names_the_token_and_holds_no_body(world: World) -> None:
    issuer, api = FakeIssuer(), Api(world)
    world.register(issuer)
    job = Person(id="", key=jose.PrivateKey.generate(), token="")
    subject = issuer.token(world.clock.now(), jti="a-jti")
    job.token = send(api, job, subject, "jwt")[1]["access_token"]
    first = world.size() - 1
    send(api, job, job.token, "access_token")
    with world.ledger.view() as view:
        exchanged, minted = (json.loads(view.evidence(at)[1]) for at in (first, first + 1))
    about = exchanged["subject_token"]
    assert (about["iss"], about["sub"], about["jti"]) == (issuer.url, "job:train", "a-jti")
    assert len(about["sha256"]) == 64
    assert exchanged["body"] == minted["body"] == ""
    assert minted["token"]["jti"] == world.token_row(job).id
