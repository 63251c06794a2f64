"""The first entries of a new log: the genesis, the policy that decides, and the first administrator."""

from __future__ import annotations

from collections.abc import Sequence

from broker import jose, names
from broker.canonical import format_time
from broker.drafts import Absent, Draft, NewEntry
from broker.model import ActiveBundle, BundleRow, Enrolment, Principal, Row
from broker.policy.bundle import Bundle, bundle_bytes
from broker.services import enrolment
from broker.services.house import House
from broker.services.record import new_entry


def is_founded(house: House) -> bool:
    """Whether the log has its genesis entry."""
    with house.ledger.view() as view:
        return view.tail().size > 0


def found(house: House, *, bundle: Bundle, mode: str) -> None:
    """Begin the log: entry 0 names it, entry 1 makes the seed bundle the active one.

    Crash here, between the two: nothing can be decided without a bundle, and the next start goes on.
    """
    with house.ledger.view() as view:
        size = view.tail().size
        seeded = size > 0 and view.find(ActiveBundle, "active") is not None
        now = view.now
    if size == 0:
        genesis = new_entry(
            house, time=now, type="genesis", origin=house.log.origin, vkey=house.log.vkey, mode=mode
        )
        _append(house, [genesis], [])
    if not seeded:
        entry = new_entry(house, time=now, type="policy", bundle=bundle.digest)
        rows: list[Row] = [
            BundleRow(digest=bundle.digest, body=bundle_bytes(bundle)),
            ActiveBundle(digest=bundle.digest),
        ]
        _append(house, [entry], rows, expects=[Absent(row=ActiveBundle, key=("active",))])


def first_admin(house: House, id: str, *, roles: Sequence[str] = ("admin",)) -> str | None:
    """Add the first administrator and draw its one-time code; None when there are principals already.

    Only this and an administrator's own request ever add one, and this only while there is none.
    """
    id = names.parse_principal(id)
    with house.ledger.view() as view:
        if view.list(Principal):
            return None
        now = view.now
    row = Principal(id=id, roles=tuple(roles), groups=(), disabled=False, created=now)
    code, enrolment_row = enrolment.draw_code(house, id, now)
    _append(
        house,
        [_principal_entry(house, row, now), _code_entry(house, enrolment_row, now)],
        [row, enrolment_row],
        expects=[Absent(row=Principal, key=(id,))],
    )
    return code


def bind_first_key(house: House, id: str, key: jose.PrivateKey) -> int:
    """Add the first administrator with a key that is at hand (the embedded stack); returns its entry.

    The key's binding is an entry like any other; there is no code, because nobody is elsewhere.
    """
    id = names.parse_principal(id)
    with house.ledger.view() as view:
        now = view.now
    row = Principal(id=id, roles=("admin",), groups=(), disabled=False, created=now)
    _append(house, [_principal_entry(house, row, now)], [row], expects=[Absent(row=Principal, key=(id,))])
    bound, entry = enrolment.first_key(house, row, key, now)
    return _append(house, [entry], [bound])


def _principal_entry(house: House, row: Principal, now: int) -> NewEntry:
    return new_entry(
        house,
        time=now,
        type="principal",
        subject=row.id,
        roles=list(row.roles),
        groups=list(row.groups),
        disabled=row.disabled,
    )


def _code_entry(house: House, row: Enrolment, now: int) -> NewEntry:
    return new_entry(
        house,
        time=now,
        type="enrolment-code",
        subject=row.principal,
        code=row.id,
        expires_at=format_time(row.expires),
    )


def _append(
    house: House, entries: Sequence[NewEntry], rows: Sequence[Row], *, expects: Sequence[Row | Absent] = ()
) -> int:
    draft = Draft(entries=tuple(entries), rows=tuple(rows), expects=tuple(expects), bumps_epoch=True)
    index = house.ledger.append(draft).index
    return -1 if index is None else index
