"""Another log key in a profile, pinned on purpose: for a log that goes on under a new name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from broker.canonical import parse_b64url
from broker.client import private_files
from broker.client.log_key import add_former, trusted_keys
from broker.client.session import Session
from broker.client.settings import CONFIG, TREE_HEAD, Profile, config_text
from broker.errors import BrokerError, ConfigurationError, IntegrityFailure, RollbackDetected
from broker.ledger import merkle, note
from broker.ledger.note import TreeHead


@dataclass(frozen=True, kw_only=True)
class Pinned:
    """What was pinned.

    Attributes:
        origin: The log's name now.
        vkey: Its key now.
        former: The key before.
        size: Entries of the log that the new key signs.
        lost: Why what the profile has seen is not in it; None when all of it is.
    """

    origin: str
    vkey: str
    former: str
    size: int
    lost: str | None


def pin_log(profile: Profile, vkey: str, *, accept_loss: bool = False) -> Pinned:
    """Hold the broker to another log key from now on.

    The broker must show a tree head that this key signed. If it extends what the profile has seen, nothing
    that was seen is lost. What the profile remembered under the key before is kept beside it.

    Args:
        profile: An enrolled profile; its folder is written.
        vkey: The new key, compared with its operator over another channel.
        accept_loss: Also when the new log does not have all that was seen.

    Raises:
        ConfigurationError: Not a verifier key, or the one that is pinned.
        IntegrityFailure: The broker's tree head is not signed by it.
        RollbackDetected: What was seen is not in the new log, and that was not accepted. Nothing changed.
    """
    key = note.parse_vkey(vkey)
    if vkey == profile.vkey:
        raise ConfigurationError("the profile pins this key already")
    session = Session.of(profile)
    try:
        text = session.get_public("/ledger/checkpoint").text()
        head = note.open_head(text, key)
        seen = _remembered(profile)
        lost = None if seen is None else _find_loss(session, seen[1], head)
    finally:
        session.close()
    if lost is not None and not accept_loss:
        raise RollbackDetected(
            "the log under this key does not have all that this profile has seen",
            why=lost,
            next="ask the operator what was lost; then: broker ledger pin KEY --accept-loss",
        )
    _write(profile, replace(profile, origin=key.name, vkey=vkey), text, None if seen is None else seen[0])
    return Pinned(origin=key.name, vkey=vkey, former=profile.vkey, size=head.size, lost=lost)


def _remembered(profile: Profile) -> tuple[str, TreeHead] | None:
    data = private_files.find_file(profile.folder / TREE_HEAD)
    if data is None:
        return None
    text = data.decode("utf-8", "replace")
    return text, note.open_head(text, trusted_keys(profile))


def _find_loss(session: Session, seen: TreeHead, head: TreeHead) -> str | None:
    if seen.size > head.size:
        return f"it has {head.size} entries, and {seen.size} were seen"
    try:
        merkle.verify_consistency(seen.size, head.size, _ask(session, seen, head), seen.root, head.root)
    except BrokerError as exc:
        return f"its first {seen.size} entries are not those that were seen: {exc.what}"
    return None


def _ask(session: Session, seen: TreeHead, head: TreeHead) -> Sequence[bytes]:
    if seen.size in (0, head.size):
        return ()
    answer = session.get("/v1/ledger/proof/consistency", {"from": seen.size, "to": head.size})
    found = answer.get("consistency")
    if not isinstance(found, list):
        raise IntegrityFailure("the server gives no proof")
    return [parse_b64url(node, size=merkle.HASH_SIZE) for node in found]


def _write(before: Profile, after: Profile, head: str, seen: str | None) -> None:
    folder = before.folder
    add_former(before, [before.vkey])
    if seen is not None:
        key_id = note.parse_vkey(before.vkey).key_id.hex()
        private_files.write_file(folder / f"{TREE_HEAD}.{key_id}", seen.encode(), mode=0o644)
        # Crash here, or after the next line: what was remembered is in that file, and under the old key
        # there is nothing left to be held to. Pinning again goes on.
        (folder / TREE_HEAD).unlink(missing_ok=True)
    private_files.write_file(folder / CONFIG, config_text(after).encode(), mode=0o644)
    private_files.write_file(folder / TREE_HEAD, head.encode(), mode=0o644)
