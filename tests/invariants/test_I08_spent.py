"""I08: a proof works once, also when its request was refused; what is one's own is no way around a scope."""

from __future__ import annotations

import pytest

from broker import jose
from broker.errors import Conflict, EnrolmentRefused, ReplayedProof, ScopeExceeded
from broker.identity import enrolment as codes
from broker.services import authn, committing, completing, enrolment, people, publish
from tests.unit.services.test_publishing import wanted
from tests.world import MIB, URL, Person, World


def test_I08_a_refused_request_does_not_work_later(world: World) -> None:
    ana = world.add("ana", groups=["acme"])
    request = world.request(ana)
    authn.spend_proof(world.house, request)
    with pytest.raises(ReplayedProof):
        authn.spend_proof(world.house, request)


def test_I08_an_enrolment_can_be_repeated_by_the_same_key_only(world: World) -> None:
    made = world.new_code("ana")
    code = codes.parse_code(made)
    request_id = world.uuid()

    def enrol(key: jose.PrivateKey) -> object:
        mac = codes.enrolment_mac(
            codes.secret_hash(code.secret), jkt=key.jkt, url=URL, vkey=world.house.log.vkey
        )
        who = Person(id="user:ana", key=key, token="")
        request = world.request(who, path="/v1/enrolments", token="")
        return enrolment.enrol(world.house, request, request_id=request_id, id=code.id.hex(), mac=mac)

    key = jose.PrivateKey.generate("EdDSA")
    enrol(key)
    size = world.size()
    assert enrol(key)["jkt"] == key.jkt  # type: ignore[index]
    assert world.size() == size
    with pytest.raises(EnrolmentRefused):
        enrol(jose.PrivateKey.generate("EdDSA"))


def test_I08_own_grants_and_uploads_need_the_scope_too(world: World) -> None:
    pub = world.add("pub", roles=["publisher"], groups=["acme"])
    world.publish(pub, "acme/llama@v0", {"a": bytes(2 * MIB)})
    grant = world.ask(pub, "acme/llama@v0").grant
    upload = publish.begin(world.house, world.request(pub), wanted(world))["upload"]["id"]
    full = pub.token
    pub.token = world.login(
        pub,
        [{"type": "artifact_access", "actions": ["describe", "read", "publish"], "identifier": "acme/other"}],
    )
    with pytest.raises(ScopeExceeded):
        completing.show_grant(world.house, world.request(pub), grant.id)
    with pytest.raises(ScopeExceeded):
        completing.revoke_own_grant(world.house, world.request(pub), grant.id, have=None)
    with pytest.raises(ScopeExceeded):
        completing.complete(
            world.house,
            world.request(pub),
            grant=grant.id,
            request_id=world.uuid(),
            received={"files": 1, "bytes": 1, "extents": 1},
            have=None,
        )
    with pytest.raises(ScopeExceeded):
        committing.status(world.house, world.request(pub), upload)
    with pytest.raises(ScopeExceeded):
        publish.abandon(world.house, world.request(pub), upload, request_id=world.uuid(), have=None)
    pub.token = full
    assert completing.show_grant(world.house, world.request(pub), grant.id)["grant"]["status"] == "active"


def test_I08_a_key_is_not_enrolled_twice(world: World) -> None:
    ana = world.add("ana", groups=["acme"])
    text = people.new_code(
        world.house, world.request(world.admin), request_id=world.uuid(), id="ana", have=None
    )["enrolment_code"]
    code = codes.parse_code(text)
    mac = codes.enrolment_mac(
        codes.secret_hash(code.secret), jkt=ana.key.jkt, url=URL, vkey=world.house.log.vkey
    )
    with pytest.raises(Conflict):
        enrolment.enrol(
            world.house,
            world.request(ana, path="/v1/enrolments", token=""),
            request_id=world.uuid(),
            id=code.id.hex(),
            mac=mac,
        )


def test_I08_a_404_and_a_422_use_up_the_proof_over_http(world: World) -> None:
    from broker.web.app import create_app

    ana = world.add("ana", groups=["acme"])
    client = create_app(world.house).test_client()
    cases = [("GET", "/v1/artifacts/acme/none", b"", 404), ("POST", "/v1/decisions", b'{"x":1}', 422)]
    for method, path, body, status in cases:
        signed = world.request(ana, method, path, body=body)
        headers = {"DPoP": signed.proof or "", "Authorization": f"DPoP {signed.access_token}"}
        if body:
            headers["Content-Type"] = "application/json"
        told = [
            client.open(path, method=method, data=body, headers=headers, environ_overrides={"RAW_URI": path})
            for _ in range(2)
        ]
        assert [answer.status_code for answer in told] == [status, status]
        with pytest.raises(ReplayedProof):
            authn.spend_proof(world.house, signed)
    # What was not found when it was asked for is there now: the old request still does not get it.
    signed = world.request(ana, "GET", "/v1/artifacts/acme/later")
    headers = {"DPoP": signed.proof or "", "Authorization": f"DPoP {signed.access_token}"}
    raw = {"RAW_URI": "/v1/artifacts/acme/later"}
    assert client.get(raw["RAW_URI"], headers=headers, environ_overrides=raw).status_code == 404
    pub = world.add("pub", roles=["publisher"], groups=["acme"])
    world.publish(pub, "acme/later@v1", {"a": b"1"})
    answer = client.get(raw["RAW_URI"], headers=headers, environ_overrides=raw)
    assert answer.status_code == 401
    assert answer.get_json()["code"] == "replayed_proof"
