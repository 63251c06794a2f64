"""Stock Tink opens our extents, and we open Tink's.

Tink is told nothing but its own key template: a raw AES-GCM-HKDF streaming key whose value is the
extent key, with the associated data beside it.
"""

from __future__ import annotations

import hashlib
import io
from typing import Any

import pytest

from broker.envelope import extents, stream
from broker.envelope.extents import FIRST_PLAINTEXT, SEGMENT_PLAINTEXT
from broker.errors import IntegrityFailure

tink = pytest.importorskip("tink", reason="stock Tink is not installed: pip install '.[test]'")
streaming_aead = pytest.importorskip("tink.streaming_aead")
streaming_pb2 = pytest.importorskip("tink.proto.aes_gcm_hkdf_streaming_pb2")
common_pb2 = pytest.importorskip("tink.proto.common_pb2")
tink_pb2 = pytest.importorskip("tink.proto.tink_pb2")
secret_key_access = pytest.importorskip("tink.secret_key_access")

KEY = hashlib.sha256(b"extent key").digest()
SIZES = [
    1,
    FIRST_PLAINTEXT - 1,
    FIRST_PLAINTEXT,
    FIRST_PLAINTEXT + 1,
    FIRST_PLAINTEXT + SEGMENT_PLAINTEXT,
    FIRST_PLAINTEXT + SEGMENT_PLAINTEXT + 1,
    FIRST_PLAINTEXT + 3 * SEGMENT_PLAINTEXT + 12_345,
]


@pytest.fixture(scope="module")
def primitive() -> Any:
    streaming_aead.register()
    params = streaming_pb2.AesGcmHkdfStreamingParams(
        ciphertext_segment_size=2**20, derived_key_size=32, hkdf_hash_type=common_pb2.SHA256
    )
    value = streaming_pb2.AesGcmHkdfStreamingKey(version=0, params=params, key_value=KEY)
    data = tink_pb2.KeyData(
        type_url="type.googleapis.com/google.crypto.tink.AesGcmHkdfStreamingKey",
        value=value.SerializeToString(),
        key_material_type=tink_pb2.KeyData.SYMMETRIC,
    )
    keyset = tink_pb2.Keyset(primary_key_id=1)
    keyset.key.add(key_data=data, status=tink_pb2.ENABLED, key_id=1, output_prefix_type=tink_pb2.RAW)
    handle = tink.proto_keyset_format.parse(keyset.SerializeToString(), secret_key_access.TOKEN)
    return handle.primitive(streaming_aead.StreamingAead)


class Kept(io.BytesIO):
    """A file in memory whose content outlives its closing."""

    def close(self) -> None:
        self.content = self.getvalue()
        super().close()


def tink_encrypts(primitive: Any, plaintext: bytes, bound: bytes) -> bytes:
    kept = Kept()
    with primitive.new_encrypting_stream(kept, bound) as writer:
        writer.write(plaintext)
    return kept.content


def tink_opens(primitive: Any, ciphertext: bytes, bound: bytes) -> bytes:
    with primitive.new_decrypting_stream(io.BytesIO(ciphertext), bound) as opened:
        found = opened.read()
    assert isinstance(found, bytes)
    return found


def bound_to(extent: int) -> bytes:
    return extents.associated_data(
        artifact="acme/llama-7b", version_id=bytes(16), path="w.bin", extent=extent, extents=9
    )


@pytest.mark.parametrize("size", SIZES)
def test_tink_opens_ours(primitive: Any, size: int) -> None:
    plaintext = hashlib.shake_128(b"plaintext").digest(size)
    ours = stream.encrypt_extent(KEY, bound_to(0), plaintext, salt=b"\x05" * 32, nonce_prefix=b"\x06" * 7)
    assert tink_opens(primitive, ours, bound_to(0)) == plaintext


@pytest.mark.parametrize("size", SIZES)
def test_we_open_what_tink_made(primitive: Any, size: int) -> None:
    plaintext = hashlib.shake_128(b"plaintext").digest(size)
    theirs = tink_encrypts(primitive, plaintext, bound_to(0))
    assert len(theirs) == extents.ciphertext_size(size)
    assert stream.decrypt_extent(KEY, bound_to(0), theirs, plaintext_size=size) == plaintext


def test_both_refuse_another_place(primitive: Any) -> None:
    ours = stream.encrypt_extent(KEY, bound_to(0), b"abc", salt=bytes(32), nonce_prefix=bytes(7))
    with pytest.raises(tink.TinkError):
        tink_opens(primitive, ours, bound_to(1))
    theirs = tink_encrypts(primitive, b"abc", bound_to(0))
    with pytest.raises(IntegrityFailure):
        stream.decrypt_extent(KEY, bound_to(1), theirs, plaintext_size=3)
