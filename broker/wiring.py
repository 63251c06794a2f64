"""The one place where rules and hands are joined to a house."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from broker import limits, sandbox
from broker.ledger import merkle
from broker.policy import sandbox as policy_check
from broker.policy.bundle import Bundle, build_bundle, bundle_bytes


class MerkleRules:
    """The Merkle rules as the database needs them: frontiers as opaque bytes."""

    def leaf_hash(self, data: bytes) -> bytes:
        """The leaf hash (32 bytes) of an entry."""
        return merkle.leaf_hash(data)

    def empty(self) -> bytes:
        """The frontier of the tree without leaves."""
        return merkle.Frontier().to_bytes()

    def size_root(self, frontier: bytes) -> tuple[int, bytes]:
        """Size and root (32 bytes) of a frontier's tree."""
        found = merkle.Frontier.from_bytes(frontier)
        return found.size, found.root()

    def extend(
        self, frontier: bytes, leaf_hashes: Iterable[bytes]
    ) -> tuple[bytes, bytes, list[tuple[int, int, bytes]]]:
        """(frontier, root, completed stored nodes) with these leaves added."""
        grown, completed = merkle.Frontier.from_bytes(frontier).extend(leaf_hashes)
        return grown.to_bytes(), grown.root(), list(completed)


def check_policy(files: Mapping[str, bytes]) -> Bundle:
    """A bundle of unknown origin, parsed and validated in a capped child process first (I13).

    Raises:
        InvalidRequest: It is not valid, or could not be parsed within the caps.
    """
    bundle = build_bundle(files)
    answer = sandbox.run_capped(
        policy_check.MODULE,
        bundle_bytes(bundle),
        seconds=limits.POLICY_PARSE_SECONDS,
        memory=limits.POLICY_PARSE_MEMORY,
    )
    policy_check.parse_report(answer, bundle)
    return bundle
