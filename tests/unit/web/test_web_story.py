"""Every route, asked over HTTP by somebody who may: the table, the shapes and the use cases fit together."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any
from urllib.parse import urlencode

from broker import jose
from broker.canonical import Json, b64url, parse_b64url
from broker.envelope import manifest, seal
from broker.identity import enrolment as codes
from broker.identity import token
from broker.ledger import receipt
from tests.unit.web.conftest import Api
from tests.world import EVERYTHING, MIB, URL, Person, World, policy_files

BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
FORM = "application/x-www-form-urlencoded"


def recipient_of(who: seal.Recipient) -> Json:
    return {"kem": "MLKEM768-X25519", "public_key": b64url(who.public_bytes)}


def form(**members: str) -> bytes:
    return urlencode(members).encode()


def assertion(world: World, who: Person) -> str:
    return token.build_assertion(
        key=who.key, principal=who.id, issuer=URL, now=world.clock.now(), jti=b64url(os.urandom(16))
    )


def prepared(world: World) -> tuple[Person, Person]:
    """A publisher with one version of `acme/llama`, and a reader of it."""
    pub = world.add("pub", roles=["publisher"], groups=["acme"])
    world.publish(pub, "acme/llama@v1", {"a.bin": bytes(2 * MIB), "b.bin": b"hello"})
    return pub, world.add("ana", groups=["acme"])


def test_enrol_then_fetch_a_token(world: World, api: Api) -> None:
    made = api.ok(
        world.admin,
        "POST",
        "/v1/principals",
        {"request_id": world.uuid(), "id": "ana", "roles": ["engineer"], "groups": ["acme"]},
    )
    assert made["id"] == "user:ana"
    code = codes.parse_code(made["enrolment_code"])
    ana = Person(id="user:ana", key=jose.PrivateKey.generate("ES256"), token="")
    mac = codes.enrolment_mac(
        codes.secret_hash(code.secret), jkt=ana.key.jkt, url=URL, vkey=world.house.log.vkey
    )
    body = {"request_id": world.uuid(), "id": code.id.hex(), "mac": b64url(mac)}
    enrolled = api.ok(ana, "POST", "/v1/enrolments", body, token=None)
    assert enrolled["jkt"] == ana.key.jkt
    assert enrolled["log"]["vkey"] == world.house.log.vkey
    receipt.verify_receipt(enrolled["receipt"], world.house.log.vkey)
    data = form(
        grant_type=BEARER, assertion=assertion(world, ana), authorization_details=json.dumps(EVERYTHING)
    )
    issued = api.ok(ana, "POST", "/oauth/token", data, token=None, content_type=FORM)
    assert issued["token_type"] == "DPoP"
    assert issued["authorization_details"] == EVERYTHING
    ana.token = issued["access_token"]
    me = api.ok(ana, "GET", "/v1/whoami")
    assert me["principal"]["id"] == "user:ana"
    assert me["token"]["id"] == issued["token_id"]


def test_introspect_and_revoke_an_own_token(world: World, api: Api) -> None:
    other = world.login(world.admin)
    found = api.ok(world.admin, "POST", "/oauth/introspect", form(token=other), content_type=FORM)
    assert found["active"] is True
    answer = api.send(world.admin, "POST", "/oauth/revoke", form(token=other), content_type=FORM)
    assert (answer.status_code, answer.get_data()) == (200, b"")
    assert api.refused(world.admin, "GET", "/v1/whoami", token=other)["code"] == "invalid_token"
    found = api.ok(world.admin, "POST", "/oauth/introspect", form(token=other), content_type=FORM)
    assert found == {"active": False}


def test_the_catalogue(world: World, api: Api) -> None:
    _, ana = prepared(world)
    [row] = api.ok(ana, "GET", "/v1/artifacts")["artifacts"]
    assert row["artifact"] == "acme/llama"
    assert api.ok(ana, "GET", "/v1/artifacts/acme", query="limit=1&after=acme%2Fa")["artifacts"] == [row]
    [version] = api.ok(ana, "GET", "/v1/artifacts/acme/llama")["versions"]
    assert api.ok(ana, "GET", "/v1/artifacts/acme/llama/versions/v1") == version
    assert api.ok(ana, "GET", "/v1/artifacts/acme/llama/versions/-") == version
    by_digest = f"/v1/artifacts/acme/llama/versions/{version['manifest']}"
    assert api.ok(ana, "GET", by_digest) == version
    shown = api.ok(ana, "GET", "/v1/artifacts/acme/llama/versions/v1/manifest")
    assert manifest.manifest_digest(parse_b64url(shown["manifest"])) == version["manifest"]
    assert api.refused(ana, "GET", "/v1/artifacts/acme/none")["code"] == "not_found"


def test_a_read_from_grant_to_completion(world: World, api: Api) -> None:
    _, ana = prepared(world)
    who = seal.Recipient.generate()
    asked = {
        "request_id": world.uuid(),
        "artifact": "acme/llama",
        "version": "v1",
        "include": ["**"],
        "exclude": [],
        "purpose": "evaluation",
        "recipient": recipient_of(who),
        "extents": [[0, 0, 0]],
        "ranges": True,
    }
    granted = api.ok(ana, "POST", "/v1/grants", asked)
    assert granted["decision"]["effect"] == "allow"
    proven = receipt.verify_receipt(granted["receipt"], world.house.log.vkey)
    grant = granted["grant"]["id"]
    info = seal.lease_info(
        grant=grant,
        number=0,
        leaf_hash=proven.leaf_hash,
        jkt=ana.key.jkt,
        recipient_digest=who.digest,
        expires_at=granted["lease"]["expires_at"],
    )
    opened = json.loads(seal.open_sealed(parse_b64url(granted["lease"]["ciphertext"]), who, info))
    assert opened["grant"] == grant
    more = {"request_id": world.uuid(), "recipient": recipient_of(who), "extents": [[0, 1, 1], [1, 0, 0]]}
    leased = api.ok(ana, "POST", f"/v1/grants/{grant}/leases", {**more, "have": head_of(granted)})
    assert leased["lease"]["number"] == 1
    received = {"files": 2, "bytes": 2 * MIB + 5, "extents": 3}
    done = api.ok(
        ana, "POST", f"/v1/grants/{grant}/completion", {"request_id": world.uuid(), "received": received}
    )
    receipt.verify_receipt(done["receipt"], world.house.log.vkey)
    assert api.ok(ana, "GET", f"/v1/grants/{grant}")["grant"]["status"] == "active"
    api.ok(ana, "DELETE", f"/v1/grants/{grant}")
    again = {"request_id": world.uuid(), "recipient": recipient_of(who), "extents": [[0, 1, 1]]}
    assert api.refused(ana, "POST", f"/v1/grants/{grant}/leases", again)["code"] == "revoked"


def head_of(answer: Json) -> str:
    """The signed tree head at the end of a receipt."""
    return str(answer["receipt"]).split("\n\n", 1)[1]


def test_a_dry_run(world: World, api: Api) -> None:
    _, ana = prepared(world)
    body = {"request_id": world.uuid(), "artifact": "acme/llama", "action": "read"}
    found = api.ok(ana, "POST", "/v1/decisions", body)
    assert (found["decision"]["effect"], found["principal"]) == ("allow", "user:ana")
    body = {"request_id": world.uuid(), "artifact": "acme/llama", "action": "read", "principal": "admin"}
    assert api.refused(ana, "POST", "/v1/decisions", body)["code"] == "denied"


def begin(api: Api, world: World, who: Person, recipient: seal.Recipient, version: str) -> Json:
    return api.ok(
        who,
        "POST",
        "/v1/uploads",
        {
            "request_id": world.uuid(),
            "artifact": "acme/llama",
            "version": version,
            "kind": "checkpoint",
            "labels": {"tier": "standard"},
            "extent_size": MIB,
            "files": [{"path": "a.bin", "size": 5}],
            "recipient": recipient_of(recipient),
        },
    )


def test_publish_over_http(world: World, api: Api) -> None:
    pub, _ = prepared(world)
    recipient = seal.Recipient.generate()
    begun = begin(api, world, pub, recipient, "v2")
    key = world.open_upload(pub, begun, recipient)
    upload = f"/v1/uploads/{key.upload}"
    asked = {"request_id": world.uuid(), "parts": [[0, 1]]}
    [url] = api.ok(pub, "POST", f"{upload}/urls", asked)["urls"]
    assert url["headers"]["If-None-Match"] == "*"
    listed = world._put_file("acme/llama", key, 0, "a.bin", b"bytes", MIB)
    assert api.ok(pub, "GET", upload)["objects"] == [0]
    made = manifest.Manifest(
        artifact="acme/llama",
        version="v2",
        version_id=key.version_id,
        kind="checkpoint",
        labels={"tier": "standard"},
        extent_size=MIB,
        files=(listed,),
    )
    body = manifest.manifest_bytes(made)
    committed = api.ok(
        pub,
        "POST",
        f"{upload}/commit",
        {
            "request_id": world.uuid(),
            "manifest": b64url(body),
            "signature": manifest.sign_manifest(body, pub.key),
        },
    )
    assert committed["version"]["manifest"] == "sha256:" + hashlib.sha256(body).hexdigest()


def test_abandon_an_upload(world: World, api: Api) -> None:
    pub, _ = prepared(world)
    begun = begin(api, world, pub, seal.Recipient.generate(), "v3")
    upload = f"/v1/uploads/{begun['upload']['id']}"
    receipt.verify_receipt(api.ok(pub, "DELETE", upload)["receipt"], world.house.log.vkey)
    body = {"request_id": world.uuid(), "parts": [[0, 1]]}
    assert api.refused(pub, "POST", f"{upload}/urls", body)["code"] == "conflict"


def test_administration(world: World, api: Api) -> None:
    admin, id = world.admin, "workload:github/acme/train"
    api.ok(
        admin,
        "POST",
        "/v1/principals",
        {"request_id": world.uuid(), "id": id, "roles": ["workload"], "groups": []},
    )
    path = f"/v1/principals/{id}"
    assert api.ok(admin, "GET", path)["id"] == id
    change: dict[str, Any] = {"request_id": world.uuid(), "groups": ["acme"]}
    api.ok(admin, "PATCH", path, change)
    assert api.ok(admin, "GET", path)["groups"] == ["acme"]
    assert api.ok(admin, "POST", f"{path}/codes", {"request_id": world.uuid()})["enrolment_code"].startswith(
        "bke1."
    )
    assert {row["id"] for row in api.ok(admin, "GET", "/v1/principals")["principals"]} == {"user:admin", id}
    api.ok(admin, "PUT", "/v1/collections/acme", {"request_id": world.uuid(), "readers": ["acme", "nlp"]})
    [row] = api.ok(admin, "GET", "/v1/collections")["collections"]
    assert row["readers"] == ["acme", "nlp"]
    api.ok(admin, "POST", "/v1/revocations", {"request_id": world.uuid(), "principal": id})
    assert api.ok(admin, "GET", path)["disabled"] is True


def test_policies_are_shown_and_replaced(world: World, api: Api) -> None:
    before = api.ok(world.admin, "GET", "/v1/policies")
    files = {name: data.decode() for name, data in policy_files().items()}
    files["more.cedar"] = '@id("nobody")\nforbid (principal, action, resource) when { false };\n'
    after = api.ok(world.admin, "PUT", "/v1/policies", {"request_id": world.uuid(), "files": files})
    assert (after["previous"], after["bundle"]) != (before["bundle"], before["bundle"])
    assert api.ok(world.admin, "GET", "/v1/policies")["bundle"] == after["bundle"]


def test_the_ledger(world: World, api: Api) -> None:
    prepared(world)
    eve = world.add("eve", roles=["auditor"])
    page = api.ok(eve, "GET", "/v1/ledger/entries", query="q=type%3Acommit&limit=1")
    [row] = page["entries"]
    assert row["artifact"] == "acme/llama"
    shown = api.ok(eve, "GET", f"/v1/ledger/entries/{row['index']}")
    assert shown["entry"]["type"] == "commit"
    proven = api.ok(eve, "GET", f"/v1/ledger/proof/inclusion/{row['index']}")
    assert receipt.verify_receipt(proven["receipt"], world.house.log.vkey).leaf_hash == parse_b64url(
        shown["leaf_hash"]
    )
    answer = api.send(eve, "GET", "/v1/ledger/leaves", query="start=0&stop=4&index=1")
    lines = [json.loads(line) for line in answer.get_data().splitlines()]
    assert answer.mimetype == "application/jsonl"
    assert [line["i"] for line in lines] == [0, 1, 2, 3]
    assert "x" in lines[0]
    hashes = api.ok(eve, "GET", "/v1/ledger/hashes", query="level=0&start=0&stop=4")["hashes"]
    assert hashes == [line["h"] for line in lines]
    assert api.ok(eve, "GET", "/v1/ledger/heads")["heads"]
    proof = api.ok(eve, "GET", "/v1/ledger/proof/consistency", query="from=3&to=5")
    assert (proof["from"], proof["to"]) == (3, 5)


def test_public_routes(world: World, api: Api) -> None:
    assert api.ok(None, "GET", "/livez") == {"status": "alive"}
    assert api.ok(None, "GET", "/readyz") == {"status": "ready"}
    server = api.ok(None, "GET", "/.well-known/oauth-authorization-server")
    assert server["issuer"] == world.house.issuer
    assert server["grant_types_supported"] == [BEARER, EXCHANGE]
    assert server["broker_log"] == {"origin": world.house.log.origin, "vkey": world.house.log.vkey}
    resource = api.ok(None, "GET", "/.well-known/oauth-protected-resource")
    assert resource["authorization_servers"] == [server["issuer"]]
    [key] = api.ok(None, "GET", "/oauth/jwks")["keys"]
    assert key == {**world.house.token_keys.current.jwk, "kid": "k1", "use": "sig", "alg": "EdDSA"}
    head = api.send(None, "GET", "/ledger/checkpoint")
    assert head.content_type == "text/plain; charset=utf-8"
    assert head.headers["Cache-Control"] == "public, max-age=5"
    assert head.get_data(as_text=True).startswith(world.house.log.origin + "\n")
    document = api.ok(None, "GET", "/openapi.json")
    assert document["paths"]["/v1/grants"]["post"]["requestBody"]["required"] is True
