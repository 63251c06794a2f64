"""What there is, who I am, and would it be allowed: the catalogue and dry runs."""

from __future__ import annotations

from collections.abc import Iterator

from broker.canonical import Json, drop_absent
from broker.client.session import Session
from broker.client.trust import LogMemory, check_entry
from broker.errors import IntegrityFailure, InvalidRequest
from broker.names import Ref, parse_principal, parse_ref

PAGE = 1000
MOST_PAGES = 1000
"""A broker that never comes to an end is not believed: whoever lists keeps what it says in memory (I17)."""


class Catalogue:
    """Reads the catalogue in one session."""

    def __init__(self, session: Session, log: LogMemory) -> None:
        self._session = session
        self._log = log

    def whoami(self) -> Json:
        """The caller: principal, every key that is bound to it, and the current token."""
        return self._session.get("/v1/whoami")

    def iter_artifacts(self, collection: str | None = None) -> Iterator[Json]:
        """The artifacts that the caller may see, by name."""
        path = "/v1/artifacts" if collection is None else f"/v1/artifacts/{collection}"
        after = None
        for _ in range(MOST_PAGES):
            page = self._session.get(path, {"after": after, "limit": PAGE})
            yield from page["artifacts"]
            after = page.get("next_after")
            if after is None:
                return
        raise IntegrityFailure("the broker's list of artifacts does not end")

    def artifact(self, ref: Ref) -> Json:
        """One artifact with its versions in the order of their commits."""
        return self._session.get(f"/v1/artifacts/{ref.artifact}")

    def version(self, ref: Ref) -> Json:
        """One version as the broker lists it; the newest without a version in the reference."""
        return self._session.get(f"/v1/artifacts/{ref.artifact}/versions/{ref.version or '-'}")

    def decide(self, ref: Ref, *, action: str = "read", principal: str | None = None) -> Json:
        """A dry run: the decision that policy would come to, itself recorded.

        Args:
            ref: What it is about.
            action: ``describe``, ``read`` or ``publish``.
            principal: Somebody else, for auditors and administrators.

        Raises:
            IntegrityFailure: The receipt does not verify, or is not for this question.
        """
        have, request_id = self._log.have(), self._session.request_id()
        body = drop_absent(
            {
                "request_id": request_id,
                "artifact": ref.artifact,
                "version": ref.version,
                "path": ref.path,
                "action": action,
                "principal": None if principal is None else parse_principal(principal),
                "have": have,
            }
        )
        answer = self._session.write("POST", "/v1/decisions", body)
        verified = self._log.accept(
            answer.get("receipt"), have=have, consistency=answer.get("consistency", [])
        )
        check_entry(
            verified.entry,
            {
                "type": "decision",
                "action": action,
                "artifact": ref.artifact,
                "request_id": request_id,
                "decision": answer.get("decision"),
            },
        )
        return answer


def as_ref(ref: str | Ref) -> Ref:
    """A reference as text or parsed.

    Raises:
        InvalidRequest: It is not one.
    """
    if isinstance(ref, Ref):
        return ref
    if not isinstance(ref, str):
        raise InvalidRequest("a reference is text: collection/name[@version][/path]")
    return parse_ref(ref)
