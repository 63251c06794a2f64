"""The cipher: one extent is one Tink ``AES256_GCM_HKDF_1MB`` streaming-AEAD ciphertext.

Stock Tink opens it, given the extent key and the associated data::

    header     40 (one byte) | salt (32) | nonce prefix (7)
    cipher     AES-256-GCM under HKDF-SHA256(extent key, salt, info = associated data, 32 bytes)
    nonce      nonce prefix (7) | segment index (u32, big-endian) | 1 for the last segment, else 0

A segment is authentic alone, so any of them can be opened without the others. The plaintext size is
known beforehand (from the manifest): it decides which segment is the last and how long each must be, so
a stream that was cut, extended or put in another order is refused (I09).

This authenticates against those who lack the extent key. Whoever read the extent before has it:
:mod:`broker.envelope.reader` adds the check against the publisher's digests.

One call is one segment of about 1 MiB; the library releases the interpreter's lock during it and
writes straight into the caller's buffer.

**Source**: Tink streaming AEAD wire format, "AES-GCM-HKDF"; ``docs/formats/extent.md``.
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from broker.envelope import extents
from broker.envelope.extents import HEADER_SIZE, KEY_SIZE, TAG_SIZE
from broker.errors import IntegrityFailure, InternalError

Buffer = bytes | bytearray | memoryview

SALT_SIZE: Final = 32
NONCE_PREFIX_SIZE: Final = 7


class ExtentEncryptor:
    """Encrypts the segments of one extent, each exactly once, in any order and from any thread.

    Args:
        key: The extent key, 32 bytes.
        associated_data: What the extent is bound to, from :func:`extents.associated_data`.
        salt: 32 fresh random bytes. **The same salt under the same key for another plaintext gives
            both plaintexts away**: an extent that is encrypted again takes a new one.
        nonce_prefix: 7 fresh random bytes.
        plaintext_size: Bytes of the whole extent.

    Attributes:
        header: The 40 bytes that come first in the extent.
        segments: Number of segments.

    Raises:
        InternalError: A key, salt or prefix has another size.
        InvalidRequest: ``plaintext_size`` is not positive.
    """

    __slots__ = ("_done", "_nonce_prefix", "_plain", "_stream", "header", "segments")

    def __init__(
        self, key: bytes, associated_data: bytes, *, salt: bytes, nonce_prefix: bytes, plaintext_size: int
    ) -> None:
        if len(salt) != SALT_SIZE or len(nonce_prefix) != NONCE_PREFIX_SIZE:
            raise InternalError("a salt has 32 bytes and a nonce prefix 7")
        self.header = bytes([HEADER_SIZE]) + salt + nonce_prefix
        self.segments = extents.segment_count(plaintext_size)
        self._stream = _derive_cipher(key, salt, associated_data)
        self._nonce_prefix = nonce_prefix
        self._plain = plaintext_size
        self._done: set[int] = set()

    def encrypt_segment(self, index: int, plaintext: Buffer, out: bytearray | memoryview) -> int:
        """Write segment ``index`` (ciphertext and tag) to the front of ``out``; its size is returned.

        ``out`` may not overlap ``plaintext``.

        Raises:
            InternalError: The plaintext is not as long as the segment, ``out`` is too short, or the
                segment was encrypted before (two plaintexts under one nonce would give both away).
            InvalidRequest: There is no such segment.
        """
        _, length = extents.segment_plaintext_range(self._plain, index)
        if len(plaintext) != length or len(out) < length + TAG_SIZE:
            raise InternalError("a segment's plaintext or buffer has another size")
        if index in self._done:
            raise InternalError("a segment is encrypted twice under one nonce")
        self._done.add(index)
        nonce = _nonce(self._nonce_prefix, index, self.segments)
        return self._stream.encrypt_into(nonce, plaintext, None, memoryview(out)[: length + TAG_SIZE])


class ExtentDecryptor:
    """Opens the segments of one extent, in any order and from any thread.

    Args:
        key: The extent key, 32 bytes.
        associated_data: What the extent must be bound to, from :func:`extents.associated_data`.
        header: The first 40 bytes of the extent.
        plaintext_size: Bytes of the whole extent, from the manifest.

    Attributes:
        segments: Number of segments.

    Raises:
        IntegrityFailure: The header is not one of this cipher.
        InternalError: The key has another size.
        InvalidRequest: ``plaintext_size`` is not positive.
    """

    __slots__ = ("_nonce_prefix", "_plain", "_stream", "segments")

    def __init__(self, key: bytes, associated_data: bytes, header: Buffer, plaintext_size: int) -> None:
        fixed = bytes(header)
        if len(fixed) != HEADER_SIZE or fixed[0] != HEADER_SIZE:
            raise IntegrityFailure("an extent does not begin with a header of its cipher")
        self.segments = extents.segment_count(plaintext_size)
        self._stream = _derive_cipher(key, fixed[1 : 1 + SALT_SIZE], associated_data)
        self._nonce_prefix = fixed[1 + SALT_SIZE :]
        self._plain = plaintext_size

    def decrypt_segment(self, index: int, ciphertext: Buffer, out: bytearray | memoryview) -> int:
        """Write the plaintext of segment ``index`` to the front of ``out``; its size is returned.

        ``out`` may not overlap ``ciphertext``. On failure it holds zeros there, never plaintext.

        Raises:
            IntegrityFailure: The segment was changed, cut, extended, or is another one.
            InternalError: ``out`` is too short.
            InvalidRequest: There is no such segment.
        """
        _, length = extents.segment_plaintext_range(self._plain, index)
        if len(out) < length:
            raise InternalError("a segment's buffer is too short")
        if len(ciphertext) != length + TAG_SIZE:
            raise IntegrityFailure("a segment is shorter or longer than it was published")
        target = memoryview(out)[:length]
        nonce = _nonce(self._nonce_prefix, index, self.segments)
        try:
            return self._stream.decrypt_into(nonce, ciphertext, None, target)
        except InvalidTag as exc:
            # The library decrypts before it compares the tag: without this the caller's buffer
            # would hold unauthenticated plaintext (I09).
            target[:] = bytes(length)
            raise IntegrityFailure("a segment is not as it was published, or of another place") from exc


def encrypt_extent(
    key: bytes, associated_data: bytes, plaintext: Buffer, *, salt: bytes, nonce_prefix: bytes
) -> bytes:
    """A whole extent: header and all segments.

    Args:
        key: The extent key, 32 bytes.
        associated_data: What the extent is bound to, from :func:`extents.associated_data`.
        plaintext: At least one byte.
        salt: 32 fresh random bytes; see :class:`ExtentEncryptor`.
        nonce_prefix: 7 fresh random bytes.

    Raises:
        InternalError: A key, salt or prefix has another size.
        InvalidRequest: The plaintext is empty.
    """
    source = memoryview(plaintext)
    size = len(source)
    encryptor = ExtentEncryptor(
        key, associated_data, salt=salt, nonce_prefix=nonce_prefix, plaintext_size=size
    )
    sealed = bytearray(extents.ciphertext_size(size))
    sealed[:HEADER_SIZE] = encryptor.header
    target = memoryview(sealed)
    for index in range(encryptor.segments):
        start, length = extents.segment_plaintext_range(size, index)
        at, room = extents.segment_ciphertext_range(size, index)
        encryptor.encrypt_segment(index, source[start : start + length], target[at : at + room])
    return bytes(sealed)


def decrypt_extent(key: bytes, associated_data: bytes, ciphertext: Buffer, *, plaintext_size: int) -> bytes:
    """The plaintext of a whole extent, all or nothing.

    Raises:
        IntegrityFailure: A part of it was changed, cut, extended or moved.
        InternalError: The key has another size.
        InvalidRequest: ``plaintext_size`` is not positive.
    """
    source = memoryview(ciphertext)
    if len(source) != extents.ciphertext_size(plaintext_size):
        raise IntegrityFailure("an extent is shorter or longer than it was published")
    decryptor = ExtentDecryptor(key, associated_data, source[:HEADER_SIZE], plaintext_size)
    opened = bytearray(plaintext_size)
    target = memoryview(opened)
    for index in range(decryptor.segments):
        start, length = extents.segment_plaintext_range(plaintext_size, index)
        at, room = extents.segment_ciphertext_range(plaintext_size, index)
        decryptor.decrypt_segment(index, source[at : at + room], target[start : start + length])
    return bytes(opened)


def _derive_cipher(key: bytes, salt: bytes, associated_data: bytes) -> AESGCM:
    if len(key) != KEY_SIZE:
        raise InternalError("an extent key has 32 bytes")
    return AESGCM(HKDF(hashes.SHA256(), KEY_SIZE, salt, associated_data).derive(key))


def _nonce(prefix: bytes, index: int, count: int) -> bytes:
    return prefix + index.to_bytes(4, "big") + (b"\x01" if index == count - 1 else b"\x00")
