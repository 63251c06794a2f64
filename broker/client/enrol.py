"""``login``: bind a fresh key of this machine to a principal with a one-time code.

The code carries a fingerprint of the log's key. A server that does not show that log key is refused before
anything that depends on the code's secret is sent; the secret itself is never sent at all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from broker.canonical import Json, b64url
from broker.client import cosigned, private_files
from broker.client.metadata import fetch_metadata
from broker.client.session import Session
from broker.client.settings import (
    Profile,
    check_server,
    check_store_host,
    check_vacant,
    save_profile,
)
from broker.client.trust import LogMemory, check_entry
from broker.errors import IntegrityFailure, Unreachable
from broker.identity import enrolment
from broker.jose import PrivateKey
from broker.names import parse_principal


def enrol(folder: Path, *, server: str, code: str, witness_policy: bytes | None = None) -> Profile:
    """Make a key, enrol it, and write the profile.

    Args:
        folder: The new profile's folder; it may exist and be empty of a profile.
        server: The broker's base URL.
        code: The one-time code, ``bke1....``.
        witness_policy: Kept in the profile: which witnesses must vouch for what the log records.

    Raises:
        InvalidRequest: The text is not a code.
        ConfigurationError: There is a profile already, the URL is http beyond this machine, or the policy
            is not one for the server's log; the code is unused then.
        IntegrityFailure: The server's log is not the one that the code was made for, or its receipt does
            not verify. No profile is written.
        EnrolmentRefused: The code is wrong, used, expired or dead.
    """
    parsed = enrolment.parse_code(code)
    base = check_server(server)
    check_vacant(folder)
    key = PrivateKey.generate()
    session = Session(server=base, key=key)
    try:
        found = fetch_metadata(session)
        origin, vkey = found.origin, found.vkey
        enrolment.verify_vkey(parsed, vkey)
        if witness_policy is not None:
            cosigned.parse_policy(witness_policy, vkey=vkey)
        request_id = session.request_id()
        # The MAC names the URL that we use, not one that the server tells us.
        mac = enrolment.enrolment_mac(enrolment.secret_hash(parsed.secret), jkt=key.jkt, url=base, vkey=vkey)
        body = {"request_id": request_id, "id": parsed.id.hex(), "mac": b64url(mac)}
        answer = session.write("POST", "/v1/enrolments", body, auth="proof")
    finally:
        session.close()
    profile = _profile(answer, folder, server=base, origin=origin, vkey=vkey)
    log = LogMemory(folder, vkey=vkey, find_proof=_no_proof)
    verified = log.accept(answer.get("receipt"))
    check_entry(
        verified.entry,
        {"type": "enrolment", "principal": profile.principal, "request_id": request_id},
    )
    if verified.entry["key"] != {"jwk": key.jwk, "jkt": key.jkt}:
        raise IntegrityFailure("the receipt is for the enrolment of another key")
    # Crash here: the key is lost with this process; an administrator gives out another code.
    if witness_policy is not None:
        # Before the profile: there is never one that demands less than was asked for.
        private_files.write_file(folder / cosigned.FILE, witness_policy, mode=0o644)
    save_profile(profile, key)
    return profile


def _profile(answer: Json, folder: Path, *, server: str, origin: str, vkey: str) -> Profile:
    principal, log = answer.get("principal"), answer.get("log")
    if not isinstance(principal, dict) or not isinstance(answer.get("issuer"), str):
        raise Unreachable("the server's answer is not an enrolment")
    if log != {"origin": origin, "vkey": vkey}:
        raise IntegrityFailure("the server enrolled the key in another log")
    hosts: Any = answer.get("store_hosts")
    return Profile(
        folder=folder,
        server=server,
        principal=parse_principal(str(principal.get("id"))),
        issuer=answer["issuer"],
        origin=origin,
        vkey=vkey,
        store_hosts=tuple(check_store_host(host) for host in (hosts if isinstance(hosts, list) else [])),
    )


def _no_proof(older: int, newer: int) -> list[str]:
    # A new profile has seen no tree head before, so nothing has to be linked to one.
    raise IntegrityFailure(f"the folder remembers another log ({older} of {newer} entries)")
