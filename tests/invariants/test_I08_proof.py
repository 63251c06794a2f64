"""I08, as far as it is arithmetic: one method, URL, query, body, token, key and window for each proof.

That a proof works once, on any worker, is the replay table's half of the invariant.
"""

from __future__ import annotations

from typing import Any

import pytest

from broker import jose, limits
from broker.errors import InvalidProof
from broker.identity import proof, token

KEY = jose.PrivateKey.generate("ES256")
NOW = 1_800_000_000_000
URLS = ["https://broker.example", "https://broker.internal:8443/base"]
TOKEN = "header.payload.signature"
REQUEST: dict[str, Any] = {
    "method": "GET",
    "public_urls": URLS,
    "raw_path": "/v1/ledger/entries",
    "query": b"after=7&limit=100",
    "body": b"",
    "access_token": TOKEN,
    "now": NOW,
    "require_digests": True,
    "nonce_check": None,
}


def build(**change: Any) -> str:
    request: dict[str, Any] = {
        "key": KEY,
        "method": "GET",
        "url": f"{URLS[0]}/v1/ledger/entries",
        "now": NOW,
        "jti": "a-jti-of-its-own",
        "body": b"",
        "query": "after=7&limit=100",
        "access_token": TOKEN,
        "nonce": None,
    }
    return proof.build_proof(**{**request, **change})


def refused(made: str, **change: Any) -> None:
    with pytest.raises(InvalidProof):
        proof.verify_proof(made, **{**REQUEST, **change})


def test_I08_the_request_itself_passes():
    assert proof.verify_proof(build(), **REQUEST).jkt == KEY.jkt


def test_I08_every_configured_url_passes_and_a_base_path_counts():
    made = build(url=f"{URLS[1]}/v1/ledger/entries")
    assert proof.verify_proof(made, **REQUEST).jkt == KEY.jkt
    assert proof.verify_proof(build(), **{**REQUEST, "public_urls": [URLS[0] + "/"]}).jkt == KEY.jkt
    refused(made, public_urls=URLS[:1])
    refused(build(), public_urls=[])


@pytest.mark.parametrize(
    "change",
    [
        {"method": "POST"},
        {"method": "get"},
        {"method": "HEAD"},
        {"raw_path": "/v1/ledger/entries/"},
        {"raw_path": "/v1/ledger/entries/7"},
        {"raw_path": "/v1/ledger"},
        {"raw_path": "/V1/ledger/entries"},
        {"query": b""},
        {"query": b"after=7&limit=1000"},
        {"query": b"limit=100&after=7"},
        {"body": b"{}"},
        {"body": b"\0"},
        {"access_token": None},
        {"access_token": TOKEN + "A"},
        {"access_token": TOKEN[:-1]},
        {"now": NOW + (limits.PROOF_WINDOW + 1) * 1000},
        {"now": NOW - (limits.PROOF_WINDOW + 1) * 1000},
    ],
    ids=str,
)
def test_I08_the_same_proof_does_not_pass_for_another_request(change: dict[str, Any]):
    refused(build(), **change)


@pytest.mark.parametrize(
    "url",
    [
        "https://attacker.example/v1/ledger/entries",
        "https://broker.example.attacker.example/v1/ledger/entries",
        "https://broker.example@attacker.example/v1/ledger/entries",
        "https://user@broker.example/v1/ledger/entries",
        "https://broker.example:8443/v1/ledger/entries",
        "http://broker.example/v1/ledger/entries",
        "//broker.example/v1/ledger/entries",
        "/v1/ledger/entries",
        "https://broker.example//v1/ledger/entries",
        "https://broker.example/v1/ledger/../ledger/entries",
        "https://broker.example/v1/ledger/entries;x",
        "https://broker.internal:8443/v1/ledger/entries",
        "https://broker.internal/base/v1/ledger/entries",
    ],
)
def test_I08_a_proof_for_another_host_is_refused_whatever_the_host_header_says(url: str):
    # verify_proof has no parameter for the Host header: only the configured URLs count.
    refused(build(url=url))


@pytest.mark.parametrize("tail", ["?after=7&limit=100", "#", "?", "/"])
def test_I08_the_url_of_a_proof_has_no_query_and_no_fragment(tail: str):
    claims = jose.verify_jwt(build(), jwk=KEY.jwk, typ=proof.TYP).claims
    forged = {**claims, "htu": claims["htu"] + tail}
    refused(jose.sign_jwt(forged, key=KEY, typ=proof.TYP, header_extra={"jwk": KEY.jwk}))


def test_I08_another_key_cannot_take_over_a_proof():
    thief = jose.PrivateKey.generate("ES256")
    head, body, tail = build().split(".")
    stolen_head = build(key=thief).split(".")[0]
    refused(f"{stolen_head}.{body}.{tail}")
    refused(f"{head}.{body}.{build(key=thief).split('.')[2]}")


def test_I08_a_proof_names_its_key_so_that_a_token_of_another_key_is_noticed():
    thief = jose.PrivateKey.generate("ES256")
    verified = proof.verify_proof(build(key=thief), **REQUEST)
    assert verified.jkt == thief.jkt != KEY.jkt


@pytest.mark.parametrize("typ", ["JWT", "at+jwt", token.ASSERTION_TYP, "DPOP+JWT"])
def test_I08_another_signed_object_of_the_same_key_is_no_proof(typ: str):
    claims = jose.verify_jwt(build(), jwk=KEY.jwk, typ=proof.TYP).claims
    refused(jose.sign_jwt(claims, key=KEY, typ=typ, header_extra={"jwk": KEY.jwk}))


@pytest.mark.parametrize("made", ["", ".", "..", "a.b.c", " ", "null", "\u2028", "=" * 40], ids=ascii)
def test_I08_junk_is_refused(made: str):
    refused(made)


def test_I08_padding_and_joined_proofs_are_refused():
    made = build()
    for other in (made + "=", made + " ", " " + made, made + "," + made, made + "\r\n", made.upper()):
        refused(other)


def test_I08_a_secret_is_in_no_message():
    with pytest.raises(InvalidProof) as caught:
        proof.verify_proof(build(access_token="another-secret-token"), **REQUEST)
    said = f"{caught.value!r} {caught.value.what} {caught.value.why} {caught.value.next}"
    assert TOKEN not in said
    assert "another-secret-token" not in said
    assert build().split(".")[1] not in said
