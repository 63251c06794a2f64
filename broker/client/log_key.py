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
Keep = Callable[[str, str], None]
"""Told (new key, tree head under it) once the new key is verified, to pin it durably."""


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

    def keep(vkey: str, head: str) -> None:
        pin_successor(profile, vkey, head)

    return keep


def pin_successor(profile: Profile, vkey: str, head: str) -> None:
    """Pin a verified successor, with the tree head that was compared with what the profile remembered.

    Crash here, before the settings are written: the profile pins the key before, and follows again.
    """
    add_former(profile)
    private_files.write_file(profile.folder / TREE_HEAD, head.encode(), mode=0o644)
    changed = replace(profile, vkey=vkey)
    private_files.write_file(profile.folder / CONFIG, config_text(changed).encode(), mode=0o644)


def add_former(profile: Profile) -> None:
    """Remember the pinned key as one that was pinned before."""
    lines = [line for line in former_keys(profile) if line != profile.vkey] + [profile.vkey]
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
