"""Properties of the envelope: arithmetic that tiles, round trips, and inputs of any shape."""

from __future__ import annotations

import dataclasses
import hashlib
import string
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from broker import limits
from broker.canonical import canonical_bytes, parse_canonical
from broker.envelope import digest, extents, lease, manifest, reader, seal, stream
from broker.envelope.extents import FIRST_PLAINTEXT, HEADER_SIZE, SEGMENT_PLAINTEXT
from broker.errors import BrokerError, IntegrityFailure, InvalidRequest, MalformedRequest, TooLarge

MIB = limits.MIB
extent_sizes = st.integers(limits.MIN_EXTENT_SIZE, limits.MAX_EXTENT_SIZE)
BOUNDARY = [1, FIRST_PLAINTEXT, FIRST_PLAINTEXT + 1, MIB, FIRST_PLAINTEXT + SEGMENT_PLAINTEXT]
keys = st.binary(min_size=32, max_size=32)


# -- arithmetic -----------------------------------------------------------------------------------------


@given(extent_size=extent_sizes, count=st.integers(0, 20), rest=st.integers(0, limits.MAX_EXTENT_SIZE))
def test_extents_tile_file_object_and_segment_list(extent_size: int, count: int, rest: int) -> None:
    size = count * extent_size + min(rest, extent_size)
    plain = offset = listed = 0
    for index in range(extents.extent_count(size, extent_size)):
        start, length = extents.extent_range(size, extent_size, index)
        assert start == offset
        first, digests = extents.segments_slice(size, extent_size, index)
        assert first == listed
        here = extents.extent_plaintext_size(size, extent_size, index)
        assert 1 <= here <= extent_size
        assert extents.extent_span(size, extent_size, plain, plain + here) == (index, index)
        plain, offset, listed = plain + here, offset + length, listed + digests
    assert plain == size
    assert offset == extents.object_size(size, extent_size)
    assert listed == extents.file_segment_count(size, extent_size)
    assert extents.has_segments_object(size, extent_size) == (
        listed > extents.extent_count(size, extent_size)
    )


@given(plain=st.one_of(st.integers(1, 40 * MIB), st.sampled_from(BOUNDARY)))
def test_segments_tile_plaintext_and_ciphertext(plain: int) -> None:
    at, offset = 0, HEADER_SIZE
    for index in range(extents.segment_count(plain)):
        start, length = extents.segment_plaintext_range(plain, index)
        place, room = extents.segment_ciphertext_range(plain, index)
        assert (start, place) == (at, offset)
        assert length >= 1
        assert extents.segment_span(plain, start, start + length) == (index, index)
        at, offset = at + length, offset + room
        # Every ciphertext segment but the last ends on a multiple of 1 MiB.
        assert offset % MIB == 0 or index == extents.segment_count(plain) - 1
    assert at == plain
    assert offset == extents.ciphertext_size(plain)


# -- the cipher -----------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    size=st.one_of(st.integers(1, 2000), st.sampled_from(BOUNDARY)),
    key=keys,
    bound=keys,
    salt=keys,
    prefix=st.binary(min_size=7, max_size=7),
)
def test_streams_round_trip(size: int, key: bytes, bound: bytes, salt: bytes, prefix: bytes) -> None:
    plaintext = hashlib.shake_128(key).digest(size)
    sealed = stream.encrypt_extent(key, bound, plaintext, salt=salt, nonce_prefix=prefix)
    assert stream.decrypt_extent(key, bound, sealed, plaintext_size=size) == plaintext


PLAINTEXT = hashlib.shake_128(b"two segments").digest(MIB)
SEALED = stream.encrypt_extent(bytes(32), bytes(32), PLAINTEXT, salt=bytes(32), nonce_prefix=bytes(7))


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, len(SEALED) - 1), bit=st.integers(0, 7))
def test_I09_a_flip_of_any_bit_is_refused(at: int, bit: int) -> None:
    changed = bytearray(SEALED)
    changed[at] ^= 1 << bit
    with pytest.raises(IntegrityFailure):
        stream.decrypt_extent(bytes(32), bytes(32), changed, plaintext_size=MIB)


@settings(max_examples=60, deadline=None)
@given(start=st.integers(0, MIB), length=st.integers(1, 2 * MIB))
def test_I09_cutting_out_any_run_is_refused(start: int, length: int) -> None:
    changed = SEALED[:start] + SEALED[start + length :]
    assume(len(changed) > HEADER_SIZE + 16)
    # Also when whoever cut it could make the reader believe in the smaller size.
    for believed in (MIB, max(1, len(changed) - HEADER_SIZE - 16), max(1, len(changed) - HEADER_SIZE - 32)):
        with pytest.raises(IntegrityFailure):
            stream.decrypt_extent(bytes(32), bytes(32), changed, plaintext_size=believed)


@settings(max_examples=30, deadline=None)
@given(at=st.integers(0, MIB - 1), value=st.integers(1, 255))
def test_I09_a_forger_with_the_key_is_refused(at: int, value: int) -> None:
    forged = bytearray(PLAINTEXT)
    forged[at] ^= value
    sealed = stream.encrypt_extent(bytes(32), bytes(32), forged, salt=b"\x01" * 32, nonce_prefix=bytes(7))
    cuts = [PLAINTEXT[:FIRST_PLAINTEXT], PLAINTEXT[FIRST_PLAINTEXT:]]
    digests = [digest.segment_digest(cut) for cut in cuts]
    expected = digest.extent_digest(digests)
    with pytest.raises(IntegrityFailure):
        reader.open_extent(bytes(32), bytes(32), sealed, plaintext_size=MIB, extent_digest=expected)
    ranged = reader.RangeReader(
        bytes(32),
        bytes(32),
        sealed[:HEADER_SIZE],
        plaintext_size=MIB,
        extent_digest=expected,
        segment_digests=digests,
    )
    index = extents.segment_span(MIB, at, at + 1)[0]
    place, room = extents.segment_ciphertext_range(MIB, index)
    out = bytearray(SEGMENT_PLAINTEXT)
    with pytest.raises(IntegrityFailure):
        ranged.read_segment(index, sealed[place : place + room], out)
    assert not any(out)


# -- seals ------------------------------------------------------------------------------------------------


parts = st.fixed_dictionaries(
    {
        "upload": st.text(min_size=1, max_size=20),
        "leaf_hash": keys,
        "jkt": st.text(min_size=1, max_size=20),
        "recipient_digest": keys.map(lambda value: "sha256:" + value.hex()),
    }
)


@given(one=parts, other=parts)
def test_different_parts_are_different_infos(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert (seal.upload_info(**one) == seal.upload_info(**other)) == (one == other)


# -- manifests and leases -----------------------------------------------------------------------------------

names = st.text(string.ascii_lowercase + string.digits + "_é重", min_size=1, max_size=8)
paths = st.lists(names, min_size=1, max_size=3).map("/".join)
sizes = st.one_of(st.just(0), st.integers(1, 3 * MIB), st.just(limits.MAX_FILE_SIZE // 4096))


@st.composite
def manifests(draw: st.DrawFn) -> manifest.Manifest:
    extent_size = draw(st.sampled_from([MIB, 32 * MIB, limits.MAX_EXTENT_SIZE]))
    chosen = draw(st.lists(paths, min_size=1, max_size=5, unique=True))
    chosen = [path for path in chosen if not any(other.startswith(path + "/") for other in chosen)]
    files = []
    for path in sorted(chosen, key=str.encode):
        size = draw(sizes)
        empty = hashlib.sha256(b"").digest()
        found = empty if size == 0 else draw(keys)
        cuts = tuple(draw(keys) for _ in range(min(4, extents.extent_count(size, extent_size))))
        cuts += (bytes(32),) * (extents.extent_count(size, extent_size) - len(cuts))
        files.append(manifest.ManifestFile(path=path, size=size, sha256=found, extents=cuts, segments=found))
    return manifest.Manifest(
        artifact="acme/llama-7b",
        version=draw(st.sampled_from(["v1", "step-1000", "2026.11"])),
        version_id=draw(st.binary(min_size=16, max_size=16)),
        kind=draw(st.sampled_from(["checkpoint", "dataset"])),
        labels=draw(st.dictionaries(st.sampled_from(["tier", "team"]), st.just("standard"))),
        extent_size=extent_size,
        files=tuple(files),
    )


@settings(max_examples=50, deadline=None)
@given(manifests())
def test_manifests_round_trip(found: manifest.Manifest) -> None:
    data = manifest.manifest_bytes(found)
    assert manifest.parse_manifest(data) == found


@settings(max_examples=50, deadline=None)
@given(found=manifests(), at=st.integers(0), byte=st.integers(0, 255))
def test_a_manifest_has_one_byte_form(found: manifest.Manifest, at: int, byte: int) -> None:
    data = bytearray(manifest.manifest_bytes(found))
    data[at % len(data)] = byte
    try:
        parsed = manifest.parse_manifest(bytes(data))
    except (MalformedRequest, InvalidRequest):
        return
    assert manifest.manifest_bytes(parsed) == bytes(data)


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_with_one_of_our_errors(data: bytes) -> None:
    with pytest.raises(BrokerError):
        manifest.parse_manifest(data)
    with pytest.raises(IntegrityFailure):
        lease.parse_lease(data)
    with pytest.raises(IntegrityFailure):
        lease.parse_upload_key(data)
    with pytest.raises(BrokerError):
        seal.parse_recipient(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["schema", "grant", "number", "files", "path", "extents", "segments", "size"]),
            inner,
        )
    ),
    max_leaves=8,
)


@given(member=st.sampled_from(["artifact", "version", "files", "labels", "extent_size"]), value=json_values)
def test_any_json_in_a_manifest_is_refused_or_written_back(member: str, value: object) -> None:
    base = manifest.parse_manifest(BASE)
    data = canonical_bytes({**parse_canonical(BASE), member: value})
    try:
        parsed = manifest.parse_manifest(data)
    except (MalformedRequest, InvalidRequest, TooLarge):
        return
    assert manifest.manifest_bytes(parsed) == data
    changed = {name for name in vars(base) if getattr(parsed, name) != getattr(base, name)}
    assert changed <= {member}


@given(json_values)
def test_any_json_in_a_lease_is_refused_or_written_back(value: object) -> None:
    data = canonical_bytes({"schema": "broker/lease/v1", "grant": "g", "number": 0, "files": value})
    try:
        parsed = lease.parse_lease(data)
    except IntegrityFailure:
        return
    assert lease.lease_bytes(parsed) == data


BASE = manifest.manifest_bytes(
    manifest.Manifest(
        artifact="a/b",
        version="v1",
        version_id=bytes(16),
        kind="dataset",
        labels={},
        extent_size=MIB,
        files=(
            manifest.ManifestFile(
                path="a", size=1, sha256=bytes(32), extents=(bytes(32),), segments=bytes(32)
            ),
        ),
    )
)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**53), st.integers(1, 2**30))
def test_leases_round_trip(index: int, start: int, length: int) -> None:
    extent = lease.LeaseExtent(index=index, key=bytes(32), url="http://s/o?a=b", start=start, length=length)
    one = lease.OpenLease(
        grant="g", number=index, files=(lease.LeaseFile(file=index, path="p", extents=(extent,)),)
    )
    assert lease.parse_lease(lease.lease_bytes(one)) == one
    ranged = dataclasses.replace(
        one.files[0], segments=lease.LeasePiece(key=bytes(32), url="http://s/o", start=start, length=length)
    )
    two = dataclasses.replace(one, files=(ranged,))
    assert lease.parse_lease(lease.lease_bytes(two)) == two
