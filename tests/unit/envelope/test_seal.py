"""Sealing: round trips, what a seal is bound to, and keys that cannot be sealed to."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import mlkem, x25519

from broker.envelope import seal
from broker.errors import IntegrityFailure, InternalError, InvalidRequest, MalformedRequest

RECIPIENT = seal.Recipient.generate()
LEASE: dict[str, Any] = {
    "grant": "g_1",
    "number": 0,
    "leaf_hash": bytes(32),
    "jkt": "j" * 43,
    "recipient_digest": RECIPIENT.digest,
    "expires_at": "2026-01-02T03:04:05.678Z",
}
UPLOAD: dict[str, Any] = {name: LEASE[name] for name in ("leaf_hash", "jkt", "recipient_digest")} | {
    "upload": "u_1"
}
INFO = seal.lease_info(**LEASE)


def test_round_trip() -> None:
    assert len(RECIPIENT.public_bytes) == seal.PUBLIC_SIZE == 1216
    sealed = seal.seal(b"the lease", RECIPIENT.public_bytes, INFO)
    assert len(sealed) == 9 + seal.OVERHEAD
    assert seal.open_sealed(sealed, RECIPIENT, INFO) == b"the lease"
    assert seal.seal(b"the lease", RECIPIENT.public_bytes, INFO) != sealed
    assert len(seal.seal(bytes(32), RECIPIENT.public_bytes, INFO)) == 1168


def test_it_opens_for_nobody_else() -> None:
    sealed = seal.seal(b"the lease", RECIPIENT.public_bytes, INFO)
    with pytest.raises(IntegrityFailure):
        seal.open_sealed(sealed, seal.Recipient.generate(), INFO)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("grant", "g_2"),
        ("number", 1),
        ("leaf_hash", b"\x01" * 32),
        ("jkt", "k" * 43),
        ("recipient_digest", "sha256:" + "0" * 64),
        ("expires_at", "2026-01-02T03:04:05.679Z"),
    ],
)
def test_it_opens_under_no_other_info(name: str, value: object) -> None:
    sealed = seal.seal(b"the lease", RECIPIENT.public_bytes, INFO)
    with pytest.raises(IntegrityFailure):
        seal.open_sealed(sealed, RECIPIENT, seal.lease_info(**{**LEASE, name: value}))


def test_every_part_of_an_upload_changes_its_info() -> None:
    found = {seal.upload_info(**UPLOAD), INFO}
    for name, value in (
        ("upload", "u_2"),
        ("leaf_hash", b"\x01" * 32),
        ("jkt", "k" * 43),
        ("recipient_digest", "sha256:" + "0" * 64),
    ):
        found.add(seal.upload_info(**{**UPLOAD, name: value}))
    assert len(found) == 6


def test_parts_cannot_be_shifted_into_each_other() -> None:
    one = seal.upload_info(**{**UPLOAD, "upload": "ab"})
    other = seal.upload_info(**{**UPLOAD, "upload": "a"})
    assert one != other
    assert one.startswith(b"\x00\x10broker/upload/v1\x00\x02ab\x00\x20")


@pytest.mark.parametrize("at", [0, 1087, 1088, 1119, 1120, -1])
def test_a_flip_anywhere_is_refused(at: int) -> None:
    sealed = bytearray(seal.seal(b"the lease", RECIPIENT.public_bytes, INFO))
    sealed[at] ^= 1
    with pytest.raises(IntegrityFailure):
        seal.open_sealed(bytes(sealed), RECIPIENT, INFO)


@pytest.mark.parametrize("size", [0, 1, 1119, 1120, 1135, 1136, 1144])
def test_a_cut_is_refused(size: int) -> None:
    sealed = seal.seal(b"the lease", RECIPIENT.public_bytes, INFO)
    with pytest.raises(IntegrityFailure):
        seal.open_sealed(sealed[:size], RECIPIENT, INFO)


@pytest.mark.parametrize(
    "public",
    [
        b"",
        RECIPIENT.public_bytes[:-1],
        RECIPIENT.public_bytes + b"\x00",
        b"\xff" * 1184 + RECIPIENT.public_bytes[1184:],
        RECIPIENT.public_bytes[:1184] + bytes(32),
        RECIPIENT.public_bytes[:1184] + b"\x01" + bytes(31),
        # A point of order eight (RFC 7748 section 7 speaks of them).
        RECIPIENT.public_bytes[:1184]
        + bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    ],
)
def test_a_key_that_cannot_be_sealed_to_is_refused_at_the_door(public: bytes) -> None:
    with pytest.raises(InvalidRequest):
        seal.parse_recipient(public)
    with pytest.raises(InvalidRequest):
        seal.seal(b"x", public, INFO)


def test_parts_of_another_form_are_refused() -> None:
    with pytest.raises(MalformedRequest):
        seal.lease_info(**{**LEASE, "expires_at": "2026-01-02T03:04:05Z"})
    with pytest.raises(MalformedRequest):
        seal.lease_info(**{**LEASE, "recipient_digest": "0" * 64})
    with pytest.raises(InternalError):
        seal.lease_info(**{**LEASE, "leaf_hash": bytes(31)})
    with pytest.raises(InternalError):
        seal.lease_info(**{**LEASE, "grant": ""})


def test_I11_a_recipient_does_not_show_its_key() -> None:
    assert repr(RECIPIENT) == f"Recipient({RECIPIENT.digest!r})"
    with pytest.raises(TypeError):
        pickle.dumps(RECIPIENT)


def test_public_bytes_are_the_lattice_key_then_the_curve_key() -> None:
    lattice, curve = mlkem.MLKEM768PrivateKey.generate(), x25519.X25519PrivateKey.generate()
    recipient = seal.Recipient(lattice, curve)
    assert recipient.public_bytes[:1184] == lattice.public_key().public_bytes_raw()
    assert recipient.public_bytes[1184:] == curve.public_key().public_bytes_raw()
    assert recipient.digest == seal.recipient_digest(recipient.public_bytes)
