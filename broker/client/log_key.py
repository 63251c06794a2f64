"""The next key of a log: followed from the one that is pinned, by what that one signed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from broker.client import private_files
from broker.client.settings import CONFIG, TREE_HEAD, Profile, config_text
from broker.errors import ConfigurationError, IntegrityFailure
from broker.ledger import lineage, note
from broker.ledger.lineage import Lineage

if TYPE_CHECKING:
    from broker.client.session import Session

FORMER: Final = "former-logs"
"""The keys that the profile pinned before, one a line: with them older receipts still verify."""
_LOG: Final = logging.getLogger("broker.client")


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a log shows of its keys; nothing of it is believed yet.

    Attributes:
        vkeys: The keys that it names, oldest first.
        statements: What leads from each to the next.
        head: Its newest tree head, a signed note.
    """

    vkeys: tuple[str, ...]
    statements: tuple[str, ...]
    head: str

    def follow(self, vkey: str) -> Lineage:
        """Where the statements lead from a trusted key: see :func:`broker.ledger.lineage.follow`."""
        return lineage.follow(vkey, self.statements)


FindKeys = Callable[[], Shown]
"""Asks the server which keys its log names."""
Keep = Callable[[Sequence[str], str], None]
"""Told (the pinned key and those that it led to, tree head under the last) to pin that one durably."""
LOCK: Final = f".{TREE_HEAD}.lock"
"""Held by whoever changes what a profile knows of its log."""
_MOST_CHANGES: Final = 256


def find_keys(session: Session) -> Shown:
    """Ask the log which keys it names.

    Raises:
        IntegrityFailure: The answer is not of the form.
        BrokerError: There is none.
    """
    answer = session.get_public("/ledger/keys").json()
    keys, head = answer.get("keys"), answer.get("head")
    if not isinstance(keys, list) or not isinstance(head, str) or not all(isinstance(k, dict) for k in keys):
        raise IntegrityFailure("the server does not say which keys its log has")
    vkeys = tuple(str(key.get("vkey")) for key in keys)
    try:
        for vkey in vkeys:
            note.parse_vkey(vkey)
    except ConfigurationError as exc:
        raise IntegrityFailure("the server names a key of its log that is none", why=exc.what) from exc
    statements = tuple(key["statement"] for key in keys if isinstance(key.get("statement"), str))
    if len(statements) > _MOST_CHANGES:
        raise IntegrityFailure("the server says that its log's key was changed more often than a log's is")
    return Shown(vkeys=vkeys, statements=statements, head=head)


def signed_beside(text: str, vkey: str) -> bool:
    """Whether another key of the same log signed the note too: its key is being changed."""
    key = note.parse_vkey(vkey)
    _, signatures = note.split_note(text)
    return any(name == key.name and signature[:4] != key.key_id for name, signature in signatures)


def keep_with(profile: Profile) -> Keep | None:
    """Pins a verified successor in the profile's folder; None where this process alone remembers it."""
    if profile.source is not None or not (profile.folder / CONFIG).exists():
        return None

    def keep(vkeys: Sequence[str], head: str) -> None:
        pin_successor(profile, vkeys, head)

    return keep


def pin_successor(profile: Profile, vkeys: Sequence[str], head: str) -> None:
    """Pin the last of these keys, each of which the one before named, in the place of the first.

    The tree head was compared with all that the profile remembers. Crash here, before the last line: the new
    key is pinned, and the older head is one that a former key signed.

    Raises:
        ConfigurationError: The folder cannot be written.
    """
    folder = profile.folder
    with private_files.locked(folder / LOCK):
        config = (private_files.find_file(folder / CONFIG) or b"").decode("utf-8", "replace")
        before, after = (config_text(replace(profile, vkey=each)) for each in (vkeys[0], vkeys[-1]))
        lines = zip(before.splitlines(), after.splitlines(), strict=True)
        [(old, new)] = [(old, new) for old, new in lines if old != new]
        if old not in config.splitlines():
            return  # another process, or somebody, has pinned another key meanwhile
        add_former(profile, vkeys[:-1])
        changed = "".join(f"{new if line == old else line}\n" for line in config.splitlines())
        private_files.write_file(folder / CONFIG, changed.encode(), mode=0o644)
        known = (private_files.find_file(folder / TREE_HEAD) or b"").decode("utf-8", "replace")
        if _size_of(known) < _size_of(head):
            private_files.write_file(folder / TREE_HEAD, head.encode(), mode=0o644)


def _size_of(text: str) -> int:
    """Entries that a tree head is for, whoever signed it; -1 where there is none."""
    return note.parse_head(note.split_note(text)[0]).size if text else -1


def add_former(profile: Profile, vkeys: Sequence[str]) -> None:
    """Remember keys as ones that were pinned before."""
    lines = [line for line in former_keys(profile) if line not in vkeys] + [*vkeys]
    data = "".join(f"{line}\n" for line in lines).encode()
    private_files.write_file(profile.folder / FORMER, data, mode=0o644)


def former_keys(profile: Profile) -> Sequence[str]:
    """The keys that the profile pinned before, of whatever log."""
    return (private_files.find_file(profile.folder / FORMER) or b"").decode("utf-8", "replace").splitlines()


def trusted_keys(profile: Profile) -> Sequence[str]:
    """The pinned key, and those before it of the same log: with them every receipt of the log verifies."""
    return [profile.vkey, *(key for key in former_keys(profile) if key.partition("+")[0] == profile.origin)]


def tell(former: str, vkey: str) -> None:
    """Say that the pinned key is another now."""
    _LOG.warning("the log's key was changed: %s is pinned now, named by %s", vkey, former)
