"""The cipher: whole extents, single segments, buffers."""

from __future__ import annotations

import pytest

from broker.envelope import extents
from broker.envelope.extents import FIRST_PLAINTEXT, HEADER_SIZE, SEGMENT_PLAINTEXT
from broker.envelope.stream import ExtentDecryptor, ExtentEncryptor, decrypt_extent, encrypt_extent
from broker.errors import IntegrityFailure, InternalError, InvalidRequest

KEY = bytes(range(32))
AD = bytes(32)
SALT = bytes([7]) * 32
PREFIX = bytes([9]) * 7


def seal(plaintext: bytes, *, key: bytes = KEY, ad: bytes = AD) -> bytes:
    return encrypt_extent(key, ad, plaintext, salt=SALT, nonce_prefix=PREFIX)


def pattern(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


@pytest.mark.parametrize(
    "size", [1, 100, FIRST_PLAINTEXT, FIRST_PLAINTEXT + 1, FIRST_PLAINTEXT + SEGMENT_PLAINTEXT + 5]
)
def test_round_trip(size: int) -> None:
    plaintext = pattern(size)
    ciphertext = seal(plaintext)
    assert len(ciphertext) == extents.ciphertext_size(size)
    assert decrypt_extent(KEY, AD, ciphertext, plaintext_size=size) == plaintext


def test_segments_open_alone_and_in_any_order() -> None:
    size = FIRST_PLAINTEXT + 2 * SEGMENT_PLAINTEXT + 77
    plaintext = pattern(size)
    ciphertext = memoryview(seal(plaintext))
    decryptor = ExtentDecryptor(KEY, AD, ciphertext[:HEADER_SIZE], size)
    assert decryptor.segments == 4
    out = bytearray(SEGMENT_PLAINTEXT)
    for index in (3, 0, 2, 1):
        at, room = extents.segment_ciphertext_range(size, index)
        start, length = extents.segment_plaintext_range(size, index)
        assert decryptor.decrypt_segment(index, ciphertext[at : at + room], out) == length
        assert out[:length] == plaintext[start : start + length]


def test_segments_may_be_encrypted_in_any_order() -> None:
    size = FIRST_PLAINTEXT + 10
    plaintext = pattern(size)
    encryptor = ExtentEncryptor(KEY, AD, salt=SALT, nonce_prefix=PREFIX, plaintext_size=size)
    sealed = bytearray(extents.ciphertext_size(size))
    sealed[:HEADER_SIZE] = encryptor.header
    for index in (1, 0):
        start, length = extents.segment_plaintext_range(size, index)
        at, room = extents.segment_ciphertext_range(size, index)
        target = memoryview(sealed)[at : at + room]
        assert encryptor.encrypt_segment(index, plaintext[start : start + length], target) == room
    assert bytes(sealed) == seal(plaintext)


def test_the_header_is_length_salt_and_prefix() -> None:
    assert seal(b"x")[:HEADER_SIZE] == bytes([40]) + SALT + PREFIX


def test_a_segment_is_encrypted_once() -> None:
    encryptor = ExtentEncryptor(KEY, AD, salt=SALT, nonce_prefix=PREFIX, plaintext_size=3)
    encryptor.encrypt_segment(0, b"abc", bytearray(19))
    with pytest.raises(InternalError):
        encryptor.encrypt_segment(0, b"abd", bytearray(19))


def test_a_refused_segment_leaves_no_plaintext_behind() -> None:
    plaintext = b"weights!" * 8
    ciphertext = bytearray(seal(plaintext))
    ciphertext[-1] ^= 1
    out = bytearray(b"\xff" * 100)
    decryptor = ExtentDecryptor(KEY, AD, ciphertext[:HEADER_SIZE], len(plaintext))
    with pytest.raises(IntegrityFailure):
        decryptor.decrypt_segment(0, ciphertext[HEADER_SIZE:], out)
    assert out[:64] == bytes(64)
    assert out[64:] == b"\xff" * 36


@pytest.mark.parametrize("cut", [0, 1, HEADER_SIZE - 1, HEADER_SIZE, HEADER_SIZE + 16, 59])
def test_a_cut_extent_is_refused(cut: int) -> None:
    with pytest.raises(IntegrityFailure):
        decrypt_extent(KEY, AD, seal(b"abcd")[:cut], plaintext_size=4)


@pytest.mark.parametrize("more", [b"\x00", bytes(16), seal(b"abcd")])
def test_an_extended_extent_is_refused(more: bytes) -> None:
    with pytest.raises(IntegrityFailure):
        decrypt_extent(KEY, AD, seal(b"abcd") + more, plaintext_size=4)


def test_a_segment_of_another_length_is_refused() -> None:
    sealed = seal(b"abcd")
    decryptor = ExtentDecryptor(KEY, AD, sealed[:HEADER_SIZE], 4)
    for changed in (b"", sealed[HEADER_SIZE:-1], sealed[HEADER_SIZE:] + b"\x00"):
        with pytest.raises(IntegrityFailure):
            decryptor.decrypt_segment(0, changed, bytearray(64))


def test_an_extent_cannot_pass_for_a_shorter_one() -> None:
    # Segment 0 of two, taken for the only segment of a shorter extent: the last flag differs.
    ciphertext = seal(pattern(FIRST_PLAINTEXT + 1))
    cut = ciphertext[: extents.ciphertext_size(FIRST_PLAINTEXT)]
    with pytest.raises(IntegrityFailure):
        decrypt_extent(KEY, AD, cut, plaintext_size=FIRST_PLAINTEXT)


@pytest.mark.parametrize("first", [0, 39, 41])
def test_another_header_is_refused(first: int) -> None:
    with pytest.raises(IntegrityFailure):
        ExtentDecryptor(KEY, AD, bytes([first]) + bytes(39), 1)


def test_another_key_or_place_is_refused() -> None:
    ciphertext = seal(b"abcd")
    with pytest.raises(IntegrityFailure):
        decrypt_extent(bytes(32), AD, ciphertext, plaintext_size=4)
    with pytest.raises(IntegrityFailure):
        decrypt_extent(KEY, b"\x01" * 32, ciphertext, plaintext_size=4)


def test_wrong_sizes_are_bugs_of_the_caller() -> None:
    with pytest.raises(InternalError):
        seal(b"abcd", key=bytes(16))
    with pytest.raises(InternalError):
        ExtentEncryptor(KEY, AD, salt=bytes(31), nonce_prefix=PREFIX, plaintext_size=1)
    with pytest.raises(InternalError):
        ExtentEncryptor(KEY, AD, salt=SALT, nonce_prefix=bytes(8), plaintext_size=1)
    encryptor = ExtentEncryptor(KEY, AD, salt=SALT, nonce_prefix=PREFIX, plaintext_size=4)
    with pytest.raises(InternalError):
        encryptor.encrypt_segment(0, b"abc", bytearray(64))
    with pytest.raises(InternalError):
        encryptor.encrypt_segment(0, b"abcd", bytearray(19))
    decryptor = ExtentDecryptor(KEY, AD, seal(b"abcd")[:HEADER_SIZE], 4)
    with pytest.raises(InternalError):
        decryptor.decrypt_segment(0, seal(b"abcd")[HEADER_SIZE:], bytearray(3))
    with pytest.raises(InvalidRequest):
        decryptor.decrypt_segment(1, b"", bytearray(4))
    with pytest.raises(InvalidRequest):
        seal(b"")
