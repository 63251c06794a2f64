"""What administrators and owners change: principals, collections, policies, issuers, revocations, tokens.

Every change is recorded, and its receipt is verified like any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from broker.canonical import Json, drop_absent, format_time
from broker.client.session import Session
from broker.client.trust import LogMemory
from broker.errors import InvalidRequest
from broker.identity.issuers import parse_issuer_name
from broker.ledger.query import parse_query
from broker.names import parse_group, parse_part, parse_principal

REVOCABLE = ("grant", "principal", "token", "key")


class Administration:
    """Administrative requests in one session, against one memory of the log."""

    def __init__(self, session: Session, log: LogMemory) -> None:
        self._session = session
        self._log = log

    def _write(self, method: str, path: str, members: Json) -> Json:
        have = self._log.have()
        body = drop_absent({**members, "request_id": self._session.request_id(), "have": have})
        answer = self._session.write(method, path, body)
        self._log.accept(answer.get("receipt"), have=have, consistency=answer.get("consistency", []))
        return answer

    # -- principals -------------------------------------------------------------------------------------

    def list_principals(self) -> list[Json]:
        """Every principal with its keys."""
        return list(self._session.get("/v1/principals")["principals"])

    def show_principal(self, id: str) -> Json:
        """One principal."""
        return self._session.get(f"/v1/principals/{parse_principal(id)}")

    def add_principal(self, id: str, *, roles: Sequence[str] = (), groups: Sequence[str] = ()) -> Json:
        """A new principal and its one-time enrolment code, which is shown this once.

        Without a role it is an engineer.
        """
        members = {
            "id": parse_principal(id),
            "roles": list(roles) or ["engineer"],
            "groups": [parse_group(group) for group in groups],
        }
        return self._write("POST", "/v1/principals", members)

    def set_principal(
        self,
        id: str,
        *,
        roles: Sequence[str] | None = None,
        groups: Sequence[str] | None = None,
        disabled: bool | None = None,
    ) -> Json:
        """Change a principal; what is None stays as it is."""
        members = {
            "roles": None if roles is None else list(roles),
            "groups": None if groups is None else [parse_group(group) for group in groups],
            "disabled": disabled,
        }
        return self._write("PATCH", f"/v1/principals/{parse_principal(id)}", members)

    def new_code(self, id: str) -> Json:
        """Another one-time enrolment code, for another key."""
        return self._write("POST", f"/v1/principals/{parse_principal(id)}/codes", {})

    # -- collections and policies -------------------------------------------------------------------------

    def list_collections(self) -> list[Json]:
        """Every collection with the groups that read and publish it."""
        return list(self._session.get("/v1/collections")["collections"])

    def set_collection(
        self, name: str, *, readers: Sequence[str] | None = None, publishers: Sequence[str] | None = None
    ) -> Json:
        """Make or change a collection; what is None stays as it is."""
        members = {
            "readers": None if readers is None else [parse_group(group) for group in readers],
            "publishers": None if publishers is None else [parse_group(group) for group in publishers],
        }
        return self._write("PUT", f"/v1/collections/{parse_part(name, 'collection')}", members)

    def show_policies(self) -> Json:
        """The active bundle: its digest and the text of its files."""
        return self._session.get("/v1/policies")

    def apply_policies(self, files: Mapping[str, str]) -> Json:
        """Replace the active bundle."""
        return self._write("PUT", "/v1/policies", {"files": dict(files)})

    # -- issuers of workload identities ------------------------------------------------------------------

    def list_issuers(self) -> list[Json]:
        """Every issuer that was ever registered, with its mapping."""
        return list(self._session.get("/v1/issuers")["issuers"])

    def set_issuer(
        self,
        name: str,
        *,
        url: str,
        kind: str,
        mapping: Json,
        audience: str | None = None,
        jwks_uri: str = "",
        jwks: Json | None = None,
        ca: str = "",
    ) -> Json:
        """Register an issuer, or describe it anew: tokens that rest on what changed are dead.

        Args:
            name: ``[a-z0-9][a-z0-9-]{0,31}``; every principal of the issuer is below it.
            url: The exact ``iss``; ``spiffe://`` and the trust domain for SPIFFE.
            kind: ``oidc``, ``kubernetes``, ``github`` or ``spiffe``.
            mapping: See :func:`broker.client.issuers.parse_map`.
            audience: Our name in its tokens; None for the broker's own issuer identifier.
            jwks_uri: Where its keys are, if not where OIDC discovery says.
            jwks: Its keys themselves, for an issuer that the broker cannot reach.
            ca: PEM of the authorities for its https.

        Raises:
            InvalidRequest: Something of it is not valid.
            Conflict: Another issuer has this URL.
        """
        members: Json = {"url": url, "kind": kind, "mapping": mapping, "jwks_uri": jwks_uri, "ca": ca}
        optional = drop_absent({"audience": audience, "jwks": jwks})
        return self._write("PUT", f"/v1/issuers/{parse_issuer_name(name)}", {**members, **optional})

    def remove_issuer(self, name: str) -> Json:
        """Nothing that the issuer says counts any more; every token that rests on it is dead."""
        return self._write("DELETE", f"/v1/issuers/{parse_issuer_name(name)}", {})

    def issuer_keys(self, name: str) -> Json:
        """``{"issuer": ..., "jwks": ...}``: an issuer, and its keys as the broker knows them now."""
        return self._session.get(f"/v1/issuers/{parse_issuer_name(name)}/keys")

    # -- ends -----------------------------------------------------------------------------------------------

    def revoke(self, kind: str, id: str) -> Json:
        """End a grant, token, key or principal from the next request on.

        Args:
            kind: One of ``grant``, ``principal``, ``token``, ``key``.
            id: Its id.

        Raises:
            InvalidRequest: Another kind.
        """
        if kind not in REVOCABLE:
            raise InvalidRequest(f"what can be revoked is {', '.join(REVOCABLE)}")
        named = parse_principal(id) if kind == "principal" else id
        return self._write("POST", "/v1/revocations", {kind: named})

    def erase_evidence(self, principal: str, *, reason: str, before: str | None = None) -> Json:
        """Erase the evidence of what somebody asked; the entries and every proof stay.

        Args:
            principal: Whose evidence.
            reason: Why, for the record.
            before: A date, RFC 3339 time or age (``90d``); what was asked later keeps its evidence. None:
                as late as the retention rule allows.

        Returns:
            ``principal``, ``before``, ``evidence`` (pieces) and ``pending``: another database role has to
            delete the rows.
        """
        body: Json = {"principal": parse_principal(principal), "reason": reason}
        if before is not None:
            until = parse_query(f"until:{before}", now=self._session.clock.now()).until
            body["before"] = None if until is None else format_time(until)
        return self._write("POST", "/v1/ledger/erasures", body)

    def revoke_grant(self, id: str) -> Json:
        """End one of the caller's own grants."""
        return self._write("DELETE", f"/v1/grants/{id}", {})

    def show_grant(self, id: str) -> Json:
        """One of the caller's own grants and its status."""
        return dict(self._session.get(f"/v1/grants/{id}")["grant"])

    def inspect_token(self, token: str | None = None) -> Json:
        """RFC 7662: what one of the caller's own tokens says; the current one without ``token``."""
        text = self._session.access_token() if token is None else token
        return self._session.oauth_form("/oauth/introspect", {"token": text})

    def revoke_token(self, token: str | None = None) -> None:
        """RFC 7009: end one of the caller's own tokens; the current one without ``token``."""
        text = self._session.access_token() if token is None else token
        self._session.oauth_form("/oauth/revoke", {"token": text})
