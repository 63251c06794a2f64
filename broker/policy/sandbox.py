"""The child's side of checking hostile policy text.

Policy text from outside is parsed first in a process of its own with capped memory and time: should
a text still find a way to kill its parser, it kills nobody else (I13). The parent starts that
process with this module's name, gives it :func:`~broker.policy.bundle.bundle_bytes`, and reads the
answer with :func:`parse_report`. This module itself does no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from broker import canonical
from broker.canonical import Json
from broker.errors import BrokerError, InvalidRequest, MalformedRequest
from broker.policy.bundle import Bundle, PolicyInfo, parse_bundle
from broker.policy.engine import PolicyEngine

MODULE: Final = __name__
REPORT: Final = "broker/policy-report/v1"


@dataclass(frozen=True, kw_only=True)
class BundleReport:
    """What the child found in a valid bundle: its digest, and its policies sorted by ``@id``."""

    bundle: str
    policies: tuple[PolicyInfo, ...]


def check(data: bytes) -> bytes:
    """Parse and validate a bundle; the report says whether it is valid. Runs in the capped child.

    Args:
        data: The bytes of a bundle, from anybody.
    """
    try:
        bundle = parse_bundle(data)
        policies = PolicyEngine(bundle).policies
    except BrokerError as exc:
        return canonical.canonical_bytes({"schema": REPORT, "what": exc.what, "why": exc.why or ""})
    rows = [{"id": p.id, "file": p.file, "effect": p.effect, "next": p.next or ""} for p in policies]
    return canonical.canonical_bytes({"schema": REPORT, "bundle": bundle.digest, "policies": rows})


def parse_report(data: bytes, bundle: Bundle) -> BundleReport:
    """What the child said of this bundle.

    Raises:
        InvalidRequest: The bundle is not valid (in the child's words), or the answer is not a report
            on this bundle.
    """
    try:
        report = canonical.parse_canonical(data)
    except MalformedRequest as exc:
        raise InvalidRequest("the policies cannot be checked", why="no report came back") from exc
    if report.get("schema") != REPORT or report.get("bundle", bundle.digest) != bundle.digest:
        raise InvalidRequest("the policies cannot be checked", why="the report is about something else")
    if "bundle" not in report:
        raise InvalidRequest(report["what"], why=report["why"] or None)
    return BundleReport(bundle=bundle.digest, policies=tuple(_info(row) for row in report["policies"]))


def _info(row: Json) -> PolicyInfo:
    return PolicyInfo(id=row["id"], file=row["file"], effect=row["effect"], next=row["next"] or None)
