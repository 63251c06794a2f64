"""Cosignatures and requests to witnesses, against bytes made by hand from the specification."""

from __future__ import annotations

import base64
import hashlib
import struct

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import BrokerError, ConfigurationError, IntegrityFailure, InvalidRequest
from broker.ledger import cosign, note

HEAD = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
LOG = Ed25519PrivateKey.from_private_bytes(b"L" * 32)
WITNESS = Ed25519PrivateKey.from_private_bytes(b"W" * 32)
NAME = "witness.example/w1"
KEY = cosign.CosignerKey(name=NAME, public=WITNESS.public_key().public_bytes_raw())
VERIFIER = note.Verifier(name="example.com/behind-the-sofa", public=LOG.public_key().public_bytes_raw())
SIGNED = note.sign_note(HEAD, VERIFIER, LOG.sign)
TIME = 1_679_315_147


def by_hand(time_s: int = TIME, text: str = HEAD, key: Ed25519PrivateKey = WITNESS, name: str = NAME) -> str:
    """A signature line, made from the text of C2SP tlog-cosignature with nothing of ours."""
    public = key.public_key().public_bytes_raw()
    key_id = hashlib.sha256(name.encode() + b"\n\x04" + public).digest()[:4]
    signature = key.sign(b"cosignature/v1\ntime " + str(time_s).encode() + b"\n" + text.encode())
    return f"— {name} {base64.b64encode(key_id + struct.pack('>Q', time_s) + signature).decode()}"


def test_a_cosignature_is_what_the_specification_says() -> None:
    assert cosign.cosign(HEAD, KEY, WITNESS.sign, TIME) == by_hand()
    assert cosign.signed_message(HEAD, TIME) == (
        b"cosignature/v1\ntime 1679315147\nexample.com/behind-the-sofa\n20852163\n"
        b"CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    )


def test_a_witness_is_known_by_its_vkey() -> None:
    public = WITNESS.public_key().public_bytes_raw()
    key_id = hashlib.sha256(NAME.encode() + b"\n\x04" + public).digest()[:4]
    encoded = base64.b64encode(b"\x04" + public).decode()
    assert KEY.vkey == f"{NAME}+{key_id.hex()}+{encoded}"
    assert cosign.parse_cosigner(KEY.vkey) == KEY
    for wrong in (VERIFIER.vkey, KEY.vkey.replace("w1", "w2"), KEY.vkey[:-4], ""):
        with pytest.raises(ConfigurationError):
            cosign.parse_cosigner(wrong)
    with pytest.raises(ConfigurationError):
        note.parse_vkey(KEY.vkey)


def test_known_cosignatures_are_found_and_others_ignored() -> None:
    other = Ed25519PrivateKey.from_private_bytes(b"O" * 32)
    merged = cosign.merge(SIGNED, [by_hand(5), by_hand(7), by_hand(9, key=other, name="other.example")])
    assert cosign.cosignatures(merged, [KEY]) == {KEY.vkey: 7}
    assert cosign.cosignatures(SIGNED, [KEY]) == {}
    # It stays a note of the log: its own signature still opens it.
    assert note.open_note(merged, [VERIFIER]) == HEAD


@pytest.mark.parametrize(
    "line",
    [
        by_hand(text=HEAD.replace("163", "164")),
        by_hand(0),
        by_hand()[:-8] + "AAAAAAA=",
        f"— {NAME} " + base64.b64encode(KEY.key_id + bytes(72)).decode(),
        f"— {NAME} " + base64.b64encode(KEY.key_id + WITNESS.sign(HEAD.encode())).decode(),
    ],
    ids=["another-head", "no-time", "cut", "zeros", "no-time-at-all"],
)
def test_a_cosignature_of_a_known_witness_that_does_not_hold_refuses_the_note(line: str) -> None:
    with pytest.raises(IntegrityFailure):
        cosign.cosignatures(cosign.merge(SIGNED, [line]), [KEY])


def test_the_time_is_covered() -> None:
    raw = base64.b64decode(by_hand().rpartition(" ")[2])
    moved = raw[:4] + struct.pack(">Q", TIME + 1) + raw[12:]
    line = f"— {NAME} {base64.b64encode(moved).decode()}"
    with pytest.raises(IntegrityFailure):
        cosign.cosignatures(cosign.merge(SIGNED, [line]), [KEY])


@pytest.mark.parametrize("time_s", [0, -1, 2**63])
def test_a_time_that_is_none_is_not_signed(time_s: int) -> None:
    with pytest.raises(IntegrityFailure):
        cosign.cosign(HEAD, KEY, WITNESS.sign, time_s)


def test_another_key_does_not_cosign() -> None:
    with pytest.raises(IntegrityFailure):
        cosign.cosign(HEAD, KEY, LOG.sign, TIME)


def test_lines_are_merged_once_and_in_order() -> None:
    first, second = by_hand(1), by_hand(2)
    merged = cosign.merge(cosign.merge(SIGNED, [second]), [first, second])
    assert merged == SIGNED + f"{second}\n{first}\n"
    with pytest.raises(IntegrityFailure):
        cosign.merge(SIGNED, [by_hand(n) for n in range(1, 65)])
    for wrong in ("", "x", by_hand() + "\n", "— a"):
        with pytest.raises(IntegrityFailure):
            cosign.merge(SIGNED, [wrong])


# -- requests -------------------------------------------------------------------------------------------


def test_a_request_has_the_form_of_the_specification() -> None:
    proof = [bytes([n]) * 32 for n in range(2)]
    body = cosign.build_request(20852014, proof, SIGNED)
    lines = [base64.b64encode(node).decode() for node in proof]
    assert body.decode() == f"old 20852014\n{lines[0]}\n{lines[1]}\n\n{SIGNED}"
    assert cosign.parse_request(body) == cosign.AddCheckpoint(
        old_size=20852014, proof=tuple(proof), note=SIGNED
    )
    assert cosign.parse_request(cosign.build_request(0, [], SIGNED)).proof == ()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"old 0\n",
        b"old 01\n\n" + SIGNED.encode(),
        b"old -1\n\n" + SIGNED.encode(),
        b"old 99999999999999999\n\n" + SIGNED.encode(),
        b"old 9007199254740992\n\n" + SIGNED.encode(),
        b"new 0\n\n" + SIGNED.encode(),
        b"old 0\nAAAA\n\n" + SIGNED.encode(),
        b"old 0\n" + base64.b64encode(bytes(32)).replace(b"=", b"") + b"\n\n" + SIGNED.encode(),
        b"old 0\r\n\r\n" + SIGNED.encode(),
        b"old 0\n\n\n" + SIGNED.encode()[:10],
        b"old 0\n\n\xff" + SIGNED.encode(),
        cosign.build_request(0, [bytes(32)] * 64, SIGNED),
        cosign.build_request(0, [], SIGNED) + b"x" * cosign.MAX_REQUEST,
    ],
)  # fmt: skip
def test_a_request_that_is_none_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        cosign.parse_request(body)


@given(st.binary(max_size=300))
def test_no_bytes_do_anything_but_be_refused(body: bytes) -> None:
    for parse in (cosign.parse_request, cosign.parse_response):
        with pytest.raises(BrokerError):
            parse(body)


def test_an_answer_is_signature_lines() -> None:
    line = by_hand()
    assert cosign.parse_response(f"{line}\n{line}\n".encode()) == (line, line)
    for wrong in (b"", b"\n", line.encode(), b"ok\n", f"{line}\n".encode() * 1000):
        with pytest.raises(IntegrityFailure):
            cosign.parse_response(wrong)
