"""What an access token rests on: its row and its ancestors', their keys, the principal, the issuer."""

from __future__ import annotations

from dataclasses import dataclass

from broker.errors import InvalidToken
from broker.identity import proof
from broker.model import ACTIVE, Key, Principal, Token
from broker.ports import View
from broker.services import federation


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A live token and who holds it; ``key`` is None for a key that was named at minting."""

    token: Token
    principal: Principal
    key: Key | None
    identity: federation.Identity | None


def find_live_token(view: View, id: str, now: int) -> Token:
    """The row of a token that is live, as are all its ancestors.

    Raises:
        InvalidToken: A row is missing, revoked or expired.
    """
    return _live_chain(view, id, now)[-1]


def _live_chain(view: View, id: str, now: int) -> list[Token]:
    row = view.find(Token, id)
    if row is None or row.status != ACTIVE or row.expires <= now:
        raise InvalidToken("the access token is expired, revoked or unknown", next="ask for a new one")
    found = []
    for ancestor in row.chain:
        parent = view.find(Token, ancestor)
        if parent is None or parent.status != ACTIVE or parent.expires <= now:
            raise InvalidToken("a token that this access token was derived from is no longer live")
        found.append(parent)
    return [*found, row]


def find_holder(view: View, id: str, now: int) -> Holder:
    """A token that is live, who holds it, and everything that it rests on (I07, I15).

    The key of the token and those of its ancestors are enrolled to its principal and active. A minted
    token may also be bound to a *delegated* key, which nobody enrolled: whoever held the parent named
    it, and the token's row says so. Such a key is dead once it is enrolled to somebody else, or
    enrolled and revoked.

    Raises:
        InvalidToken: Something of this does not hold, or the issuer behind the token is gone.
    """
    chain = _live_chain(view, id, now)
    row = chain[-1]
    principal = view.find(Principal, row.principal)
    if principal is None:
        raise InvalidToken("the principal of this token does not exist")
    # A disabled principal is let through on purpose: policy forbids it everything, and its attempts
    # are then on record. It gets no new token.
    keys = [_find_key_of(view, each) for each in chain]
    return Holder(token=row, principal=principal, key=keys[-1], identity=federation.find_identity(view, row))


def _find_key_of(view: View, row: Token) -> Key | None:
    key = view.find(Key, row.jkt)
    if key is None and row.delegated:
        return None
    if key is None or key.status != ACTIVE or key.principal != row.principal:
        raise InvalidToken(
            "a key that this access token rests on is not enrolled, was revoked, or is somebody else's",
            next="broker login with a new code",
        )
    if proof.TYP not in key.uses:
        raise InvalidToken(f"the key may not sign {proof.TYP}")
    return key


def find_live_key(view: View, jkt: str, use: str) -> tuple[Key, Principal]:
    """The row of an active key that may sign ``use``, and its principal.

    Raises:
        InvalidToken: There is no such key, it is revoked, may not sign this, or has no principal.
    """
    key = view.find(Key, jkt)
    if key is None or key.status != ACTIVE:
        raise InvalidToken("the key is not enrolled, or was revoked", next="broker login with a new code")
    if use not in key.uses:
        raise InvalidToken(f"the key may not sign {use}")
    principal = view.find(Principal, key.principal)
    if principal is None:
        raise InvalidToken("the principal of this key does not exist")
    return key, principal
