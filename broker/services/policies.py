"""The policy bundle that decides: shown, and replaced."""

from __future__ import annotations

from collections.abc import Mapping

from broker.canonical import Json
from broker.errors import IntegrityFailure
from broker.model import ActiveBundle, BundleRow
from broker.policy.bundle import Bundle, bundle_bytes, parse_bundle
from broker.ports import View
from broker.services import administration, authn, completing
from broker.services.administration import Change
from broker.services.house import House
from broker.services.record import new_entry


def show(house: House, request: authn.SignedRequest) -> Json:
    """The active bundle: its digest and its files as text."""
    administration.read_administration(house, request, "policies", "policies")
    with house.ledger.view() as view:
        bundle = active_bundle(view)
    return {"bundle": bundle.digest, "files": dict(bundle.files)}


def active_bundle(view: View) -> Bundle:
    """The bundle that is active in a snapshot.

    Raises:
        IntegrityFailure: There is none, or it is not what its digest names.
    """
    active = view.find(ActiveBundle, "active")
    row = view.find(BundleRow, active.digest) if active else None
    if active is None or row is None:
        raise IntegrityFailure("no policy bundle is active")
    bundle = parse_bundle(row.body)
    if bundle.digest != active.digest:
        raise IntegrityFailure("the active policy bundle is not what its digest names")
    return bundle


def apply(
    house: House,
    request: authn.SignedRequest,
    *,
    request_id: str,
    files: Mapping[str, str],
    have: str | None,
) -> Json:
    """Make a bundle the active one, from the next decision on (I15). A protected change.

    The text is parsed in a capped child process first: hostile text cannot stop a worker (I13).

    Raises:
        InvalidRequest: The bundle is not valid; nothing changed.
        Denied: Policy says no, or protected changes need several people here.
    """
    previous: list[str] = []
    checked: list[Bundle] = []

    def change(view: View, caller: authn.Caller, common: Json) -> Change:
        administration.check_protected(house, "applying policy")
        if not checked:
            # Only after the caller was found to be allowed: nobody else makes us parse their text.
            checked.append(house.check_policy({name: text.encode() for name, text in files.items()}))
        bundle = checked[0]
        before = view.find(ActiveBundle, "active")
        previous[:] = [before.digest] if before else []
        entry = new_entry(
            house,
            time=caller.now,
            type="policy",
            bundle=bundle.digest,
            previous=before.digest if before else None,
            **common,
        )
        stored = view.find(BundleRow, bundle.digest)
        kept = [] if stored else [BundleRow(digest=bundle.digest, body=bundle_bytes(bundle))]
        return Change(
            entries=[entry],
            rows=[*kept, ActiveBundle(digest=bundle.digest)],
            expects=[before] if before else [],
        )

    recorded = administration.administer(
        house,
        request,
        area="policies",
        right="policies",
        request_id=request_id,
        body={"files": dict(files)},
        have=have,
        change=change,
    )
    return {
        "bundle": checked[0].digest,
        "previous": previous[0] if previous else None,
        **completing.proof_json(recorded),
    }
