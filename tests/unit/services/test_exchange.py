"""Workloads' own tokens become ours: who a job is, which key it has, what is written down."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from broker import jose, limits
from broker.errors import (
    Conflict,
    Denied,
    InvalidGrant,
    InvalidRequest,
    InvalidSubjectToken,
    NotFound,
    ScopeExceeded,
    Unavailable,
)
from broker.identity import proof, token
from broker.model import Group, Key, Principal, SubjectUse
from broker.services import catalogue, exchange, issuers, people
from tests.foreign import FakeIssuer, ForeignKey, read_details
from tests.world import Person, World


@pytest.fixture
def ci(world: World) -> FakeIssuer:
    issuer = FakeIssuer()
    world.register(issuer, mapping=issuer.mapping(groups=["acme"], attributes={"job": "{job}"}))
    return issuer


def entries_since(world: World, start: int) -> list[dict[str, Any]]:
    return [world.entry(index) for index in range(start, world.size())]


def keys_of(world: World, principal: str) -> list[Key]:
    with world.ledger.view() as view:
        return list(view.list(Key, principal=principal))


# -- who it is ----------------------------------------------------------------------------------------------


def test_a_job_is_who_the_mapping_says(world: World, ci: FakeIssuer) -> None:
    before = world.size()
    job = world.exchange(ci.token(world.clock.now()), details=read_details("acme/llama"))
    assert job.id == "workload:ci/train"
    me = catalogue.whoami(world.house, world.request(job, "GET"))
    assert me["principal"] == {
        "id": "workload:ci/train",
        "roles": ["workload"],
        "groups": ["acme"],
        "disabled": False,
    }
    assert me["token"]["authorization_details"] == [read_details("acme/llama")]
    identity = me["token"]["identity"]
    assert (identity["issuer"], identity["rule"], identity["attributes"]) == ("ci", "jobs", {"job": "train"})
    assert [entry["type"] for entry in entries_since(world, before)] == ["enrolment", "principal", "token"]


def test_the_entry_says_from_where_and_under_which_mapping(world: World, ci: FakeIssuer) -> None:
    job = world.exchange(ci.token(world.clock.now()))
    entry = world.entry(world.size() - 1)
    with world.ledger.view() as view:
        [row] = issuers_of(world)
        mapping = json.loads(view.record(entry["mapping"]))
    assert entry["issuer"] == "ci"
    assert entry["principal"] == "workload:ci/train"
    assert entry["jkt"] == job.key.jkt
    assert entry["mapping"] == row["mapping_digest"]
    assert mapping == row["mapping"]
    assert "parent" not in entry


def issuers_of(world: World) -> list[dict[str, Any]]:
    return list(issuers.list_issuers(world.house, world.request(world.admin, "GET"))["issuers"])


def test_groups_that_a_mapping_names_exist_from_then_on(world: World, ci: FakeIssuer) -> None:
    with world.ledger.view() as view:
        assert view.find(Group, "acme") is not None


def test_the_row_of_a_principal_has_nothing_of_the_mapping(world: World, ci: FakeIssuer) -> None:
    world.exchange(ci.token(world.clock.now()))
    with world.ledger.view() as view:
        row = view.find(Principal, "workload:ci/train")
    assert row is not None
    assert (row.roles, row.groups, row.disabled) == (("workload",), (), False)


def test_two_jobs_of_one_principal_may_differ(world: World) -> None:
    issuer = FakeIssuer()
    rules = [
        {"name": "main", "match": {"branch": "main"}, "principal": "{job}", "groups": ["acme"]},
        {"name": "rest", "match": {"project": "llm"}, "principal": "{job}"},
    ]
    world.register(issuer, mapping={"schema": "broker/issuer-map/v1", "rules": rules})
    pub = world.add("pub", roles=["publisher"], groups=["acme"])
    world.publish(pub, "acme/llama@v1", {"a": b"1"})
    trusted = world.exchange(issuer.token(world.clock.now(), branch="main"))
    other = world.exchange(issuer.token(world.clock.now(), branch="feature"))
    assert trusted.id == other.id
    assert world.ask(trusted, "acme/llama@v1").grant.principal == trusted.id
    with pytest.raises(NotFound):
        world.ask(other, "acme/llama@v1")


def test_what_an_administrator_gave_the_principal_counts_too(world: World, ci: FakeIssuer) -> None:
    world.new_code("workload:ci/train", roles=["workload"], groups=["vision"])
    job = world.exchange(ci.token(world.clock.now()))
    assert catalogue.whoami(world.house, world.request(job, "GET"))["principal"]["groups"] == [
        "acme",
        "vision",
    ]


def test_policy_sees_attributes_and_the_issuer(world: World, ci: FakeIssuer) -> None:
    pub = world.add("pub", roles=["publisher"], groups=["acme"])
    world.publish(pub, "acme/llama@v1", {"a": b"1"})
    job = world.exchange(ci.token(world.clock.now()))
    world.ask(job, "acme/llama@v1")
    with world.ledger.view() as view:
        _, evidence = view.evidence(world.size() - 1)
    [tags] = [entity["tags"] for entity in json.loads(evidence)["inputs"]["entities"] if "tags" in entity][:1]
    assert tags in ({"job": "train", "issuer": "ci"}, {"tier": "standard"})
    all_tags = [entity.get("tags") for entity in json.loads(evidence)["inputs"]["entities"]]
    assert {"job": "train", "issuer": "ci"} in all_tags


# -- which key ----------------------------------------------------------------------------------------------


def test_a_jobs_key_signs_requests_and_nothing_else(world: World, ci: FakeIssuer) -> None:
    job = world.exchange(ci.token(world.clock.now()))
    [key] = keys_of(world, job.id)
    assert key.uses == (proof.TYP,)
    assert world.entry(key.entry)["key"]["jkt"] == key.jkt
    with pytest.raises(InvalidGrant):
        world.login(job)


def test_a_publishing_jobs_key_signs_manifests_too(world: World) -> None:
    issuer = FakeIssuer()
    world.register(issuer, mapping=issuer.mapping(groups=["acme"], roles=["workload", "publisher"]))
    everything = read_details(actions=("describe", "read", "publish"))
    job = world.exchange(issuer.token(world.clock.now()), details=everything)
    world.publish(job, "acme/llama@v1", {"a": b"1"})
    committed = catalogue.show_version(world.house, world.request(job, "GET"), "acme", "llama", None)
    assert committed["publisher"] == "workload:ci/train"
    with pytest.raises(InvalidGrant):
        world.login(job)
    binding = [
        world.entry(i)["publisher_binding"] for i in range(world.size()) if world.entry(i)["type"] == "commit"
    ]
    assert world.entry(binding[0])["key"]["jkt"] == job.key.jkt
    assert world.entry(binding[0])["issuer"] == "ci"


def test_a_job_that_only_reads_does_not_publish_whatever_its_principal_may(
    world: World, ci: FakeIssuer
) -> None:
    job = world.exchange(
        ci.token(world.clock.now()), details=read_details(actions=("describe", "read", "publish"))
    )
    people.set_principal(
        world.house,
        world.request(world.admin),
        request_id=world.uuid(),
        id=job.id,
        roles=["workload", "publisher"],
        groups=None,
        disabled=None,
        have=None,
    )
    with pytest.raises(ScopeExceeded):
        world.publish(job, "acme/llama@v1", {"a": b"1"})


def test_the_same_key_renews_and_is_bound_once(world: World, ci: FakeIssuer) -> None:
    subject = ci.token(world.clock.now())
    job = world.exchange(subject)
    world.clock.forward(600)
    before = world.size()
    again = world.exchange(subject, key=job.key)
    assert again.token != job.token
    assert [entry["type"] for entry in entries_since(world, before)] == ["token"]
    assert len(keys_of(world, job.id)) == 1
    fresh = world.exchange(ci.token(world.clock.now()), key=job.key)
    assert fresh.id == job.id
    assert len(keys_of(world, job.id)) == 1


def test_a_key_of_somebody_else_exchanges_nothing(world: World, ci: FakeIssuer) -> None:
    ana = world.add("ana", groups=["acme"])
    before = world.size()
    with pytest.raises(InvalidGrant):
        world.exchange(ci.token(world.clock.now()), key=ana.key)
    [entry] = entries_since(world, before)
    assert (entry["type"], entry["action"], entry["principal"]) == ("denial", "exchange", "workload:ci/train")
    assert entry["decision"]["reason"] == "invalid-grant"
    with world.ledger.view() as view:
        assert view.find(Principal, "workload:ci/train") is None
        assert view.list(SubjectUse) == []


def test_the_key_of_another_job_exchanges_nothing(world: World, ci: FakeIssuer) -> None:
    job = world.exchange(ci.token(world.clock.now()))
    with pytest.raises(InvalidGrant):
        world.exchange(ci.token(world.clock.now(), job="other"), key=job.key)


def test_two_first_exchanges_at_once_have_one_winner(world: World, ci: FakeIssuer) -> None:
    subject = ci.token(world.clock.now())
    outcomes: list[object] = []
    together = threading.Barrier(4)

    def run() -> None:
        together.wait()
        try:
            outcomes.append(world.exchange(subject))
        except InvalidGrant as refused:
            outcomes.append(refused)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["InvalidGrant"] * 3 + ["Person"]
    assert len(keys_of(world, "workload:ci/train")) == 1
    with world.ledger.view() as view:
        assert len(view.list(SubjectUse)) == 1


def test_a_new_job_sends_no_other_decision_back(world: World, ci: FakeIssuer) -> None:
    with world.ledger.view() as view:
        before = view.epoch
    world.exchange(ci.token(world.clock.now()))
    with world.ledger.view() as view:
        assert view.epoch == before


def test_pins_of_tokens_that_are_over_are_swept(world: World, ci: FakeIssuer) -> None:
    for job in range(3):
        world.exchange(ci.token(world.clock.now(), job=f"job-{job}"))
    world.clock.forward(3600 + limits.REPLAY_KEEP + 1)
    fresh = world.exchange(ci.token(world.clock.now()))
    with world.ledger.view() as view:
        assert [pin.principal for pin in view.list(SubjectUse)] == [fresh.id]


# -- refusals -----------------------------------------------------------------------------------------------


def test_an_issuer_does_not_take_over_who_is_there_already(world: World) -> None:
    world.add("workload:ci/nightly", roles=["workload"])
    world.add("workload:ci-2/nightly", roles=["workload"])
    with pytest.raises(Conflict) as caught:
        world.register(FakeIssuer())
    assert "workload:ci/nightly" in caught.value.what
    world.register(FakeIssuer("other"))


def test_why_an_issuer_is_not_reached_is_not_told_to_strangers(world: World, ci: FakeIssuer) -> None:
    class Down:
        def keys(self, *args: Any, **kwargs: Any) -> Any:
            raise Unavailable("the issuer's keys are not to be had", why="it answered 401")

    world.with_settings(issuer_keys=Down())
    with pytest.raises(Unavailable) as caught:
        world.exchange(ci.token(world.clock.now()))
    assert caught.value.why is None
    with pytest.raises(Unavailable, match="not to be had") as told:
        issuers.show_keys(world.house, world.request(world.admin, "GET"), "ci")
    assert told.value.why == "it answered 401"


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "http://127.0.0.1:10"},
        {"aud": ["http://127.0.0.1:9", "other"]},
        {"aud": None},
        {"iss": "https://other.example"},
        {"iss": "https://ci.example/"},
        {"iss": None},
        {"exp": 1},
        {"exp": None},
        {"nbf": 4102444800},
        {"sub": None},
        {"project": "other"},
        {"project": None},
        {"job": None},
        {"job": "../x"},
    ],
    ids=lambda changes: "-".join(f"{name}={value!s:.12}" for name, value in changes.items()),
)
def test_a_token_that_does_not_hold_is_nobodys(world: World, ci: FakeIssuer, changes: dict[str, Any]) -> None:
    before = world.size()
    with pytest.raises(InvalidSubjectToken) as refused:
        world.exchange(ci.token(world.clock.now(), **changes))
    assert refused.value.why != "invalid_request"
    assert world.size() == before, "who cannot be believed leaves no entry"


def test_a_token_of_another_key_is_nobodys(world: World, ci: FakeIssuer) -> None:
    stranger = FakeIssuer()
    stranger.key = ForeignKey(kid=ci.key.kid)
    for subject in (
        stranger.token(world.clock.now()),
        ci.token(world.clock.now())[:-8] + "AAAAAAAA",
        "a.b.c",
        "",
        "x" * (limits.MAX_TOKEN + 1),
    ):
        with pytest.raises(InvalidSubjectToken):
            world.exchange(subject)


def test_issuers_speak_for_their_own_workloads_only(world: World, ci: FakeIssuer) -> None:
    other = FakeIssuer("other", "https://other.example", alg="RS256")
    world.register(other)
    with pytest.raises(InvalidSubjectToken):
        world.exchange(other.token(world.clock.now(), iss=ci.url))
    assert world.exchange(other.token(world.clock.now())).id == "workload:other/train"


def test_a_disabled_workload_gets_nothing(world: World, ci: FakeIssuer) -> None:
    subject = ci.token(world.clock.now())
    job = world.exchange(subject)
    world.revoke("principal", job.id)
    for key in (job.key, None):
        with pytest.raises(InvalidGrant):
            world.exchange(ci.token(world.clock.now()), key=key)


def test_an_issuer_that_changes_meanwhile_is_asked_about_again(world: World, ci: FakeIssuer) -> None:
    inner = world.house.issuer_keys

    class Changing:
        def keys(self, *args: Any, **kwargs: Any) -> Any:
            found = inner.keys(*args, **kwargs)
            world.register(ci)
            return found

    world.with_settings(issuer_keys=Changing())
    with pytest.raises(Unavailable):
        world.exchange(ci.token(world.clock.now()))


# -- issuers ------------------------------------------------------------------------------------------------


def test_an_issuer_is_registered_shown_and_removed(world: World, ci: FakeIssuer) -> None:
    [row] = issuers_of(world)
    assert (row["name"], row["url"], row["kind"], row["audience"]) == (
        "ci",
        "https://ci.example",
        "oidc",
        world.house.issuer,
    )
    assert row["jwks"]["keys"][0]["kid"] == ci.key.kid
    shown = issuers.show_keys(world.house, world.request(world.admin, "GET"), "ci")
    assert shown["jwks"]["keys"][0]["kid"] == ci.key.kid
    entry = next(world.entry(i) for i in range(world.size()) if world.entry(i)["type"] == "issuer")
    assert entry["disabled"] is False
    removed = world.remove(ci)
    assert removed["disabled"] is True
    assert [row["disabled"] for row in issuers_of(world)] == [True]
    with pytest.raises(NotFound):
        issuers.show_keys(world.house, world.request(world.admin, "GET"), "ci")
    world.register(ci)
    assert [row["disabled"] for row in issuers_of(world)] == [False]


def test_two_issuers_of_one_url_could_not_be_told_apart(world: World, ci: FakeIssuer) -> None:
    with pytest.raises(Conflict):
        world.register(FakeIssuer("again"))
    world.remove(ci)
    world.register(FakeIssuer("again"))


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "Upper"},
        {"name": ""},
        {"url": "http://ci.example"},
        {"url": "ci.example"},
        {"kind": "saml"},
        {"kind": "spiffe"},
        {"kind": "spiffe", "url": "spiffe://example.org", "jwks": None},
        {"kind": "github"},
        {"audience": ""},
        {"audience": "two words"},
        {"jwks": {"keys": []}},
        {"jwks": {"keys": [{"kty": "oct", "k": "AAAA"}]}},
        {"jwks_uri": "https://ci.example/keys"},
        {"jwks": None, "jwks_uri": "http://ci.example/keys"},
        {"ca": "no certificate"},
        {"mapping": {}},
        {"mapping": {"schema": "broker/issuer-map/v1", "rules": []}},
    ],
    ids=lambda changes: "-".join(f"{name}={str(value)[:16]}" for name, value in changes.items()),
)
def test_an_issuer_that_is_not_described_well_is_refused(world: World, changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        world.register(FakeIssuer(), **changes)
    assert issuers_of(world) == []


def test_only_administrators_name_issuers(world: World) -> None:
    ana = world.add("ana")
    wanted = issuers.IssuerRequest(
        name="ci", url="https://ci.example", kind="oidc", jwks=FakeIssuer().jwks(), mapping={}
    )
    with pytest.raises(Denied):
        issuers.put_issuer(world.house, world.request(ana), request_id=world.uuid(), wanted=wanted, have=None)
    world.with_settings(protected_changes=False)
    with pytest.raises(Denied):
        world.register(FakeIssuer())


def test_a_repeated_registration_is_the_first_one(world: World) -> None:
    issuer = FakeIssuer()
    wanted = issuers.IssuerRequest(
        name="ci", url=issuer.url, kind="oidc", jwks=issuer.jwks(), mapping=issuer.mapping()
    )
    id = world.uuid()
    first, second = (
        issuers.put_issuer(world.house, world.request(world.admin), request_id=id, wanted=wanted, have=None)
        for _ in range(2)
    )
    assert first["entry"] == second["entry"]


def test_a_signed_object_of_ours_is_not_a_workloads_token(world: World, ci: FakeIssuer) -> None:
    job = world.exchange(ci.token(world.clock.now()))
    key = jose.PrivateKey.generate()
    assertion = token.build_assertion(
        key=key, principal=job.id, issuer=world.house.issuer, now=world.clock.now(), jti="x" * 16
    )
    for subject in (job.token, assertion):
        with pytest.raises(InvalidSubjectToken):
            world.exchange(subject)


def test_a_person_is_not_in_the_grammar_of_workloads(world: World, ci: FakeIssuer) -> None:
    job = world.exchange(ci.token(world.clock.now(), job="user:admin".replace(":", "-")))
    assert job.id == "workload:ci/user-admin"
    assert isinstance(job, Person)
    assert exchange.GRANT_TYPE.endswith("token-exchange")
