"""Enrolment codes and the MAC that binds a key to one: layout, and everything that must not pass."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest

from broker.errors import EnrolmentRefused, IntegrityFailure, InvalidRequest
from broker.identity import enrolment

ID = bytes(range(8))
SECRET = bytes(range(100, 116))
VKEY = "broker.example/log+c7a1f3d2+AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyAh"
CODE = enrolment.build_code(id=ID, secret=SECRET, vkey=VKEY)
BINDING = {
    "jkt": "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
    "url": "https://broker.example",
    "vkey": VKEY,
}
HASH = enrolment.secret_hash(SECRET)


def test_the_layout_is_id_secret_fingerprint():
    raw = base64.b32decode(CODE.removeprefix("bke1.").upper())
    assert raw == ID + SECRET + hashlib.sha256(VKEY.encode()).digest()[:16]
    assert len(CODE) == 69


def test_what_was_built_is_parsed():
    code = enrolment.parse_code(CODE)
    assert (code.id, code.secret) == (ID, SECRET)
    enrolment.verify_vkey(code, VKEY)


def test_a_secret_is_in_no_repr_and_no_message():
    code = enrolment.parse_code(CODE)
    assert repr(SECRET) not in repr(code)
    with pytest.raises(InvalidRequest) as caught:
        enrolment.parse_code(CODE + "a")
    assert CODE[10:40] not in f"{caught.value!r} {caught.value.what} {caught.value.why} {caught.value.next}"


@pytest.mark.parametrize(
    "text",
    ["", "bke1.", CODE[:-1], CODE + "a", CODE + "=", CODE.upper(), " " + CODE, CODE + "\n", "bke2" + CODE[4:]]
    + [CODE[:-1] + wrong for wrong in "018A="]
    + [CODE.replace(".", ""), None, CODE.encode()],
    ids=ascii,
)
def test_a_code_has_one_spelling(text: object):
    with pytest.raises(InvalidRequest):
        enrolment.parse_code(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(("id_size", "secret_size"), [(7, 16), (9, 16), (8, 15), (8, 17), (0, 0)])
def test_a_code_has_parts_of_fixed_size(id_size: int, secret_size: int):
    with pytest.raises(InvalidRequest):
        enrolment.build_code(id=bytes(id_size), secret=bytes(secret_size), vkey=VKEY)


def test_a_server_with_another_log_key_is_refused():
    code = enrolment.parse_code(CODE)
    for vkey in (VKEY + " ", VKEY[:-1] + "A", VKEY.replace("log", "lag"), ""):
        with pytest.raises(IntegrityFailure):
            enrolment.verify_vkey(code, vkey)


def test_the_mac_is_over_length_prefixed_parts():
    parts = [b"broker/enrol/v1", *(text.encode() for text in BINDING.values())]
    message = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    key = hashlib.sha256(SECRET).digest()
    assert enrolment.enrolment_mac(HASH, **BINDING) == hmac.new(key, message, hashlib.sha256).digest()


def test_the_mac_holds_for_its_binding_only():
    mac = enrolment.enrolment_mac(HASH, **BINDING)
    enrolment.verify_enrolment_mac(mac, HASH, **BINDING)
    for name, value in BINDING.items():
        with pytest.raises(EnrolmentRefused):
            enrolment.verify_enrolment_mac(mac, HASH, **{**BINDING, name: value + "x"})
    with pytest.raises(EnrolmentRefused):
        enrolment.verify_enrolment_mac(mac, enrolment.secret_hash(bytes(16)), **BINDING)


def test_characters_cannot_move_from_one_part_to_the_next():
    mac = enrolment.enrolment_mac(HASH, jkt="ab", url="c", vkey="d")
    with pytest.raises(EnrolmentRefused):
        enrolment.verify_enrolment_mac(mac, HASH, jkt="a", url="bc", vkey="d")


def test_no_bit_of_a_mac_can_be_changed():
    mac = enrolment.enrolment_mac(HASH, **BINDING)
    for wrong in (b"", mac[:-1], mac + b"\0", bytes(32), *(_flip(mac, bit) for bit in range(256))):
        with pytest.raises(EnrolmentRefused):
            enrolment.verify_enrolment_mac(wrong, HASH, **BINDING)


def _flip(data: bytes, bit: int) -> bytes:
    return (int.from_bytes(data, "big") ^ (1 << bit)).to_bytes(len(data), "big")
