"""The sweep: uploads that ran out are given up, and what they left in the store is deleted."""

from __future__ import annotations

from dataclasses import replace

from broker.drafts import Draft
from broker.errors import BrokerError
from broker.model import Upload
from broker.services import publish, releasing
from broker.services.committing import multiparts
from broker.services.house import House
from broker.services.record import new_entry

SWEPT = '{"swept":true}'


def sweep(house: House, *, most: int = 16) -> int:
    """Give up uploads that ran out, and delete what they left in the store; returns how many were swept.

    The row is given up first, under the tail lock, so that no commit can win against the deletion.
    Crash here: the row says abandoned, and the next sweep deletes again.
    """
    done = 0
    with house.ledger.view() as view:
        now = view.now
        overdue = [row for row in view.list(Upload, status=publish.OPEN) if row.expires <= now][:most]
        given_up = [row for row in view.list(Upload, status=publish.ABANDONED) if row.parts != SWEPT][:most]
    for row in overdue:
        try:
            given_up.append(_give_up(house, row))
        except BrokerError:
            continue  # somebody else took it meanwhile: the next sweep looks again
    for row in given_up:
        for file, upload_id in multiparts(row).items():
            house.store.abort_upload(releasing.object_name(row.version_id, file), upload_id)
        for name, _ in house.store.list(f"v1/{row.version_id.hex()}/"):
            house.store.delete(name)
        house.ledger.set_upload_parts(row.id, SWEPT)
        done += 1
    return done


def _give_up(house: House, row: Upload) -> Upload:
    gone = replace(row, status=publish.ABANDONED)
    entry = new_entry(
        house,
        time=house.clock.now(),
        type="abandon",
        principal=row.principal,
        artifact=row.artifact,
        version=row.version,
        upload=row.id,
    )
    house.ledger.append(Draft(entries=(entry,), rows=(gone,), expects=(row,)))
    return gone
