"""The memory of a profile's log, joined to the server that shows it."""

from __future__ import annotations

from collections.abc import Sequence

from broker.client.cosigned import find_policy
from broker.client.log_key import find_keys, keep_with, trusted_keys
from broker.client.session import Session
from broker.client.settings import TREE_HEAD, Profile
from broker.client.trust import LogMemory


def open_memory(session: Session, profile: Profile) -> LogMemory:
    """What a profile knows of its log; what it does not is asked of the session's server.

    Raises:
        ConfigurationError: The profile's witness policy cannot be used.
    """

    def find_proof(older: int, newer: int) -> Sequence[str]:
        answer = session.get("/v1/ledger/proof/consistency", {"from": older, "to": newer})
        found = answer.get("consistency")
        return found if isinstance(found, list) else []

    return LogMemory(
        profile.state,
        vkey=profile.vkey,
        former=trusted_keys(profile)[1:],
        find_proof=find_proof,
        seed=profile.folder / TREE_HEAD,
        witnesses=find_policy(profile.folder, vkey=profile.vkey),
        find_keys=lambda: find_keys(session),
        keep_key=keep_with(profile),
    )
