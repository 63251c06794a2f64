"""I18 for spans: a broker that seals anything but what was asked for, at its place, is not believed.

The lies are told by whoever holds everything but the log's key: the entry is true, and what is sealed
under it, or said beside it, is not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from broker.client.grants import SealedLease
from broker.client.opening import open_lease
from broker.client.versions import TrustedVersion
from broker.envelope import extents, lease, seal
from broker.envelope.lease import LeaseExtent, LeasePlace, OpenLease
from broker.envelope.manifest import parse_manifest
from broker.errors import IntegrityFailure
from broker.ledger.receipt import verify_receipt
from broker.model import ManifestRow
from broker.services import completing
from tests.world import MIB, Person, World

REF = "acme/llama@v1"
SPANS = ((1, 0, 0, 0), (1, 0, 2, 3), (1, 1, 1, 1))
Change = Callable[[tuple[LeaseExtent, ...]], tuple[LeaseExtent, ...]]


class Honest:
    """A lease of spans as an honest broker gives it, and the means to give another one."""

    def __init__(self, world: World, ana: Person) -> None:
        released = world.ask(ana, REF, spans=SPANS)
        self.jkt, self.recipient = ana.key.jkt, world.recipient
        self.opened = world.open_lease(ana, released)
        answer = completing.released_json(released)
        receipt = verify_receipt(answer["receipt"], world.house.log.vkey)
        with world.ledger.view() as view:
            row = view.find(ManifestRow, released.grant.manifest)
        assert row is not None
        self.version = TrustedVersion(
            manifest=parse_manifest(row.body),
            digest=released.grant.manifest,
            body=row.body,
            signature="",
            publisher="user:pub",
            commit=receipt,
        )
        said = answer["lease"]
        self.lease = SealedLease(
            grant=released.grant.id,
            number=0,
            expires_at=said["expires_at"],
            runs=tuple(map(tuple, said["extents"])),
            spans=tuple(map(tuple, said["spans"])),
            ciphertext=b"",
            recipient=self.recipient,
            receipt=receipt,
            receipt_text=answer["receipt"],
        )

    def open(self, *, sealed: OpenLease | None = None, asked: Any = SPANS, **said: Any) -> OpenLease:
        info = seal.lease_info(
            grant=self.lease.grant,
            number=0,
            leaf_hash=self.lease.receipt.leaf_hash,
            jkt=self.jkt,
            recipient_digest=self.recipient.digest,
            expires_at=self.lease.expires_at,
        )
        ciphertext = seal.seal(lease.lease_bytes(sealed or self.opened), self.recipient.public_bytes, info)
        told = replace(self.lease, ciphertext=ciphertext, **said)
        files = range(len(self.version.manifest.files))
        return open_lease(told, self.version, files, spans=asked, jkt=self.jkt)

    def sealed(self, change: Change) -> OpenLease:
        (file,) = self.opened.files
        return replace(self.opened, files=(replace(file, extents=change(file.extents)),))


@pytest.fixture
def honest(world: World) -> Honest:
    pub = world.add("pub", roles=["publisher"], groups=["acme"])
    world.publish(pub, REF, {"a": b"x", "w.bin": bytes(9 * MIB)}, extent_size=4 * MIB)
    return Honest(world, world.add("ana", groups=["acme"]))


def test_the_honest_broker_is_believed(honest: Honest) -> None:
    assert honest.open() == honest.opened
    assert honest.open(asked=(*SPANS, (1, 2, 0, 0))) == honest.opened, "a prefix may be served"


def moved(at: int, **changes: Any) -> Change:
    def change(found: tuple[LeaseExtent, ...]) -> tuple[LeaseExtent, ...]:
        return (*found[:at], replace(found[at], **changes), *found[at + 1 :])

    return change


def shifted(by: int) -> Change:
    return lambda found: moved(1, start=found[1].start + by)(found)


ELSEWHERE = LeasePlace(url="http://127.0.0.1:1/b/x", start=4, length=extents.HEADER_SIZE)

SEALED: dict[str, Change] = {
    "a segment less": lambda found: moved(0, span=(1, 1), header=found[1].header, start=MIB)(found),
    "a segment more": moved(0, span=(0, 1)),
    "a longer range": lambda found: moved(0, length=found[0].length + 1)(found),
    "a shorter range": lambda found: moved(2, length=found[2].length - 1)(found),
    "a shifted range": shifted(1),
    "a range of the segment before": shifted(-MIB),
    "a header elsewhere": moved(1, header=ELSEWHERE),
    "a whole extent": lambda found: (replace(found[0], span=None), found[2]),
    "one span left out": lambda found: found[:2],
    "one span only": lambda found: found[1:2],
    "one span more": lambda found: (*found, replace(found[0], index=2)),
    "a segment that no extent has": moved(1, span=(2, 4000)),
    "another extent": moved(2, index=2),
}


@pytest.mark.parametrize("lie", SEALED.values(), ids=SEALED)
def test_other_content_is_refused(honest: Honest, lie: Change) -> None:
    with pytest.raises(IntegrityFailure):
        honest.open(sealed=honest.sealed(lie))


SAID: dict[str, dict[str, Any]] = {
    "no spans": {"spans": None},
    "empty spans": {"spans": ()},
    "other segments": {"spans": ((1, 0, 0, 1), *SPANS[1:])},
    "fewer": {"spans": SPANS[:2]},
    "more": {"spans": (*SPANS, (1, 2, 0, 0)), "runs": ((1, 0, 2),)},
    "another order": {"spans": SPANS[::-1]},
    "other extents": {"runs": ((1, 0, 2),)},
    "extents of another file": {"runs": ((0, 0, 0),)},
}


@pytest.mark.parametrize("said", SAID.values(), ids=SAID)
def test_other_words_are_refused(honest: Honest, said: dict[str, Any]) -> None:
    with pytest.raises(IntegrityFailure):
        honest.open(**said)


@pytest.mark.parametrize(
    "asked",
    [None, SPANS[:2], SPANS[1:], ((1, 0, 0, 0),), ((1, 0, 0, 4), (1, 1, 1, 1))],
    ids=["whole extents", "fewer", "others", "one", "wider ones"],
)
def test_what_was_not_asked_for_is_refused(honest: Honest, asked: Any) -> None:
    with pytest.raises(IntegrityFailure):
        honest.open(asked=asked)


def test_an_entry_that_counts_otherwise_is_refused(honest: Honest) -> None:
    receipt = honest.lease.receipt
    for entry in (
        {**receipt.entry, "served": receipt.entry["served"] - 1},
        {name: value for name, value in receipt.entry.items() if name != "served"},
        {**receipt.entry, "selection": {**receipt.entry["selection"], "segments": 5}},
    ):
        with pytest.raises(IntegrityFailure):
            honest.open(receipt=replace(receipt, entry=entry))
