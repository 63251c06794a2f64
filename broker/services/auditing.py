"""What auditors ask: search, entries, proofs, and the whole log for verification.

Every such read is itself recorded: one entry for each auditor, query and hour.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import Final

from broker import limits
from broker.canonical import Json, b64url, canonical_bytes, format_time, parse_json
from broker.drafts import Draft, RequestKey
from broker.errors import BrokerError, IntegrityFailure, InternalError, InvalidRequest, NotFound
from broker.identity import scope
from broker.ledger import entry as entries
from broker.ledger import merkle, receipt
from broker.ledger.query import parse_query, search_row
from broker.model import IndexRow
from broker.policy import request as policy
from broker.ports import View
from broker.services import authn, cosigned, deciding, denials, erasing
from broker.services.house import House
from broker.services.record import (
    Recorded,
    decide_and_append,
    digest_of,
    forgetting,
    new_entry,
    sign_head,
)

MAX_LEAVES: Final = 5000
_HOUR: Final = 3_600_000


def authorize(
    house: House, request: authn.SignedRequest, right: str, query: str, *, to_verify: bool = False
) -> authn.Caller:
    """The caller may audit; the read is on record before its answer is made.

    Args:
        to_verify: What is read shows what is wrong with the log. A log that contradicts itself takes no
            more entries, so nobody could find out where it does: such a read then goes unrecorded.

    Raises:
        ScopeExceeded, Denied: Recorded refusals.
        IntegrityFailure: The stored log contradicts itself, and this read would not help to find out where.
    """
    attempt = AuditAttempt(house, request, right)
    try:
        decide_and_append(
            house,
            lambda view: attempt.decide(view, lambda caller: _query_draft(house, caller, right, query)),
        )
    except IntegrityFailure:
        # I10: nothing is released any more, and whoever may audit can still say which entry it is.
        if not to_verify or attempt.caller is None:
            raise
    return attempt.allowed_caller()


class AuditAttempt:
    """One request of an auditor while it is decided, possibly several times.

    Attributes:
        caller: Who asks, once policy and token allow it; None before, and after a refusal.
    """

    def __init__(self, house: House, request: authn.SignedRequest, right: str) -> None:
        self._house, self._request, self._right = house, request, right
        self._refusal: BrokerError | None = None
        self.caller: authn.Caller | None = None

    def decide(self, view: View, make: Callable[[authn.Caller], Draft]) -> Draft:
        """What ``make`` drafts for a caller who may audit; for another, the denial."""
        self.caller = self._refusal = None
        caller = authn.authenticate(self._house, view, self._request)
        answer = None
        try:
            scope.permits(caller.levels, scope.Ask(type=scope.LEDGER, action=self._right))
            answer = deciding.decide(
                self._house,
                view,
                caller.principal,
                "audit",
                policy.LedgerTarget(),
                network=self._request.network,
            )
            if not answer.allowed:
                raise answer.refusal("reading the ledger")
        except denials.REFUSALS as error:
            self._refusal = error
            return denials.denial_draft(self._house, caller, error=error, action="audit", answer=answer)
        draft = make(caller)
        self.caller = caller
        return draft

    def allowed_caller(self) -> authn.Caller:
        """The caller, after what was decided is on record.

        Raises:
            ScopeExceeded, Denied: It was a refusal.
        """
        if self._refusal is not None:
            raise self._refusal
        if self.caller is None:
            raise InternalError("an auditor's request was recorded without a decision")
        return self.caller


def _query_draft(house: House, caller: authn.Caller, right: str, query: str) -> Draft:
    hour = caller.now - caller.now % _HOUR
    shown = entries.cut_name(f"{right} {query}".strip(), size=limits.MAX_QUERY)
    # One entry for each auditor, query and hour: the hour's first request gives the id, and every
    # later one is a repetition of it, which adds nothing but the use of its own proof.
    # The whole query, not what of it fits the entry: two that differ at their ends are two.
    digest = digest_of(canonical_bytes([caller.principal.id, right, query, hour]))
    entry = new_entry(
        house,
        time=caller.now,
        type="audit-query",
        evidence=caller.evidence(),
        action="audit",
        query=shown,
        hour=format_time(hour),
        **caller.members(),
    )
    key = RequestKey(jkt=caller.principal.id, request_id=f"audit-{b64url(digest)}", body_digest=digest)
    return Draft(proof=caller.proof_use, request=key, entries=(entry,))


def search(
    house: House,
    request: authn.SignedRequest,
    *,
    q: str,
    since: str | None,
    until: str | None,
    after: int | None,
    limit: int,
) -> Json:
    """One page of matching entries, ascending by index; ``next_after`` goes on, null at the end.

    Raises:
        InvalidRequest: The query or the page is not valid.
    """
    text = query_text(q, since=since, until=until)
    if not 1 <= limit <= limits.MAX_PAGE:
        raise InvalidRequest(f"limit is from 1 to {limits.MAX_PAGE}")
    parse_query(text, now=house.clock.now())
    authorize(house, request, "search", text)
    with house.ledger.view() as view:
        query = parse_query(text, now=view.now)
        page = view.search(query, after=-1 if after is None else after, limit=limit)
        more = len(page) == limit and bool(view.search(query, after=page[-1][0], limit=1))
        size = view.tail().size
    return {
        "entries": [search_row(index, row) for index, row in page],
        "next_after": page[-1][0] if more else None,
        "size": size,
    }


def query_text(q: str, *, since: str | None, until: str | None) -> str:
    """The one query that a query and its times make together."""
    return " ".join(
        part for part in (q, f"since:{since}" if since else "", f"until:{until}" if until else "") if part
    )


def show_entry(house: House, request: authn.SignedRequest, index: int) -> Json:
    """One entry with its exact bytes, its record, and a receipt under a signed tree head.

    Raises:
        NotFound: The log is not that long.
    """
    authorize(house, request, "read", f"entry {index}")
    with house.ledger.view() as view:
        recorded = _prove(house, view, index)
        found = recorded.entry
        record = None
        if "selection" in found:
            record = parse_json(view.record(found["selection"]["digest"]))
        erased_by = erasing.find_erasure(view, index, found)
    return {
        "index": index,
        "entry": found,
        "data": b64url(recorded.data),
        "leaf_hash": b64url(recorded.leaf_hash),
        "record": record,
        "erased_by": erased_by,
        "receipt": recorded.receipt,
    }


def _prove(house: House, view: View, index: int) -> Recorded:
    tail = view.tail()
    if not 0 <= index < tail.size:
        raise NotFound(f"the ledger has no entry {index}", why=f"it has {tail.size} entries, from 0")
    data = view.entry(index)
    # A head that witnesses cosigned, if there is one that covers it: others may demand their quorum.
    covering = cosigned.covering(house, view, index)
    size, root = (tail.size, tail.root) if covering is None else (covering.head.size, covering.head.root)
    proof = merkle.inclusion_proof(index, size, view.hashes, nodes=house.nodes)
    with forgetting(house):
        merkle.verify_inclusion(merkle.leaf_hash(data), index, size, proof, root)
    head = sign_head(house, tail) if covering is None else covering.note
    return Recorded(
        index=index,
        data=data,
        head=head,
        receipt=receipt.build_receipt(data, index, proof, head),
        consistency=(),
    )


def inclusion(house: House, request: authn.SignedRequest, index: int) -> Json:
    """A receipt of one entry under the newest tree head, or cosigned one: verifies offline.

    Raises:
        NotFound: The log is not that long.
    """
    authorize(house, request, "prove", f"inclusion {index}")
    with house.ledger.view() as view:
        return {"receipt": _prove(house, view, index).receipt}


@denials.recorded("audit")
def consistency(house: House, request: authn.SignedRequest, from_size: int, to_size: int | None) -> Json:
    """Proof that the tree of ``to_size`` (None: the newest) extends that of ``from_size``.

    For every authenticated caller: a reader that holds an older head needs it, and it holds hashes only.

    Raises:
        InvalidRequest: The sizes are not ascending sizes of this log.
    """
    with house.ledger.view() as view:
        caller = authn.authenticate(house, view, request)
        tail = view.tail()
        stop = tail.size if to_size is None else to_size
        if not 0 <= from_size <= stop <= tail.size:
            raise InvalidRequest(f"sizes are ascending, and at most {tail.size}")
        proof = merkle.consistency_proof(from_size, stop, view.hashes)
    authn.use_proof(house, caller)
    return {
        "consistency": [b64url(node) for node in proof],
        "from": from_size,
        "to": stop,
        "checkpoint": sign_head(house, tail),
    }


def leaves(
    house: House, request: authn.SignedRequest, start: int, stop: int, *, with_index: bool
) -> Iterator[bytes]:
    """Stored rows [start, stop) as JSON lines, exactly as stored, for somebody else to verify.

    Raises:
        InvalidRequest: More than ``MAX_LEAVES`` rows are asked for.
    """
    if not 0 <= start <= stop or stop - start > MAX_LEAVES:
        raise InvalidRequest(f"at most {MAX_LEAVES} rows are read at once")
    authorize(house, request, "read", "verify", to_verify=True)
    lines: list[bytes] = []
    with house.ledger.view() as view:
        # The search rows are merged by index: one that is missing or too many shows as what it is.
        rows = dict(view.index_rows(start, stop)) if with_index else {}
        for index, data, leaf in view.entries(start, stop):
            line: Json = {"i": index, "e": _text(data), "h": _text(leaf)}
            if with_index:
                line["x"] = _index_json(rows.pop(index, None))
            lines.append(canonical_bytes(line) + b"\n")
        lines += [canonical_bytes({"i": i, "x": _index_json(row)}) + b"\n" for i, row in sorted(rows.items())]
    return iter(lines)


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _index_json(row: IndexRow | None) -> Json | None:
    if row is None:
        return None
    return {**{k: v for k, v in vars(row).items() if k != "policies"}, "policies": list(row.policies)}


def hashes(house: House, request: authn.SignedRequest, level: int, start: int, stop: int) -> Json:
    """Stored interior hashes [start, stop) of a level, to be compared with recomputed ones.

    Raises:
        InvalidRequest: The range is too long.
        NotFound: One of them is not stored. Whoever verifies asks beyond the end too, and says what is wrong.
    """
    if not 0 <= start <= stop or stop - start > MAX_LEAVES or level < 0:
        raise InvalidRequest(f"at most {MAX_LEAVES} hashes are read at once")
    authorize(house, request, "read", "verify", to_verify=True)
    with house.ledger.view() as view:
        try:
            return {"hashes": [b64url(node) for node in view.hashes(level, start, stop)]}
        except IntegrityFailure as exc:
            raise NotFound(exc.what, why=exc.why) from exc


def heads(house: House, request: authn.SignedRequest) -> Json:
    """Every signed tree head that was kept, and the newest, ascending by size."""
    authorize(house, request, "read", "verify", to_verify=True)
    with house.ledger.view() as view:
        kept = dict(view.heads())
        tail = view.tail()
    kept[tail.size] = sign_head(house, tail)
    return {"heads": [{"size": size, "note": text} for size, text in sorted(kept.items())]}


def checkpoint(house: House) -> str:
    """The newest signed tree head, with what witnesses cosigned of it. Public.

    **Source**: C2SP tlog-tiles, "Checkpoints".
    """
    with house.ledger.view() as view:
        tail = view.tail()
    return cosigned.with_cosignatures(house, sign_head(house, tail), tail.size)
