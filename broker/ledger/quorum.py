"""Which logs and witnesses somebody trusts, and how many of them it takes: C2SP ``tlog-policy`` files.

A policy is somebody's own, never the broker's: a client that has one believes a tree head only when one of
its logs signed it and its quorum of witnesses cosigned it (I18).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from broker.errors import ConfigurationError, IntegrityFailure
from broker.ledger import note
from broker.ledger.cosign import CosignerKey, cosignatures, parse_cosigner

MAX_POLICY: Final = 64 * 1024
"""Bytes of a policy file."""
MAX_LINES_OF_A_KIND: Final = 32
"""Logs, witnesses and groups that a policy may name, each."""
NONE: Final = "none"
_ALLOWED: Final = re.compile(r"[\t\n\x20-\x7e\x80-\xff]*", re.ASCII)
_DECIMAL_RE: Final = re.compile(r"[1-9][0-9]{0,3}")


@dataclass(frozen=True, kw_only=True)
class Witness:
    """A witness that a policy names.

    Attributes:
        name: Its name within the policy: opaque octets, a character for each.
        key: Its key.
        url: Its submission prefix, as it is written; None where the policy has none.
    """

    name: str
    key: CosignerKey
    url: str | None


@dataclass(frozen=True, kw_only=True)
class _Group:
    needed: int
    members: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A parsed policy.

    Attributes:
        logs: Keys of the logs; a head that one of them signed is a head.
        witnesses: In the order of the file.
        quorum: Name of the witness or group that decides; ``none`` demands no cosignature.
        groups: The groups by name.
    """

    logs: tuple[note.Verifier, ...]
    witnesses: tuple[Witness, ...]
    quorum: str
    groups: Mapping[str, _Group]

    def check(self, signed: str) -> note.TreeHead:
        """The tree head of a note that a log of this policy signed and its quorum cosigned.

        Raises:
            IntegrityFailure: Not a tree head, a signature that does not hold, or no quorum; ``why`` names
                the witnesses that are missing.
        """
        head = note.open_head(signed, self.logs)
        seen = self.cosigners(signed)
        if not self.is_met(seen):
            missing = sorted(_shown(each.name) for each in self.witnesses if each.name not in seen)
            raise IntegrityFailure(
                f"a tree head of {head.size} entries is not cosigned by the quorum {_shown(self.quorum)}",
                why=f"no cosignature of {', '.join(missing)}",
            )
        return head

    def cosigners(self, signed: str) -> frozenset[str]:
        """Names of the witnesses whose cosignatures a note carries.

        Raises:
            IntegrityFailure: Not a signed note, or a line of a witness does not hold.
        """
        found = cosignatures(signed, [each.key for each in self.witnesses])
        return frozenset(each.name for each in self.witnesses if each.key.vkey in found)

    def is_met(self, names: frozenset[str]) -> bool:
        """Whether these witnesses together are the quorum."""
        return self.quorum == NONE or self._has_seen(self.quorum, names)

    def _has_seen(self, name: str, names: frozenset[str]) -> bool:
        # Members come before their group in the file, so this ends.
        group = self.groups.get(name)
        if group is None:
            return name in names
        return sum(self._has_seen(member, names) for member in group.members) >= group.needed


def parse_policy(text: str | bytes) -> Policy:
    """The policy that a file says.

    Args:
        text: At most 64 KiB; at most 32 logs, witnesses and groups each.

    Raises:
        ConfigurationError: It is not of the form; the message names the line.

    Source: C2SP tlog-policy, "Policy file syntax and structure".
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    # Names are opaque octets: one character for each.
    octets = data.decode("latin-1")
    if len(data) > MAX_POLICY or _ALLOWED.fullmatch(octets) is None:
        raise ConfigurationError(f"a witness policy is text of at most {MAX_POLICY} bytes")
    reader = _Reader()
    for number, line in enumerate(octets.split("\n"), start=1):
        words = line.replace("\t", " ").split(" ")
        words = [word for word in words if word]
        if words and not words[0].startswith("#"):
            reader.take(number, words)
    return reader.finish()


class _Reader:
    def __init__(self) -> None:
        self._logs: list[note.Verifier] = []
        self._witnesses: dict[str, Witness] = {}
        self._groups: dict[str, _Group] = {}
        self._members: set[str] = set()
        self._quorum: str | None = None
        self._line = 0

    def take(self, number: int, words: list[str]) -> None:
        self._line = number
        take = {
            "log": self._take_log,
            "witness": self._take_witness,
            "group": self._take_group,
            "quorum": self._take_quorum,
        }.get(words[0])
        if take is None:
            raise self._wrong("begins with none of log, witness, group, quorum")
        take(words[1:])

    def finish(self) -> Policy:
        if self._quorum is None:
            raise ConfigurationError("a witness policy has no quorum line", next="add: quorum NAME, or none")
        return Policy(
            logs=tuple(self._logs),
            witnesses=tuple(self._witnesses.values()),
            quorum=self._quorum,
            groups=self._groups,
        )

    def _wrong(self, why: str) -> ConfigurationError:
        return ConfigurationError(f"line {self._line} of the witness policy is not valid", why=f"it {why}")

    def _take_log(self, words: list[str]) -> None:
        if not 1 <= len(words) <= 2:
            raise self._wrong("is not: log VKEY [URL]")
        try:
            key = note.parse_vkey(_utf8(words[0]))
        except ConfigurationError as exc:
            raise self._wrong(f"has no log's key: {exc.what}") from exc
        if any(other.public == key.public for other in self._logs):
            raise self._wrong("names a key that an earlier line has")
        self._check_room(len(self._logs))
        self._logs.append(key)

    def _take_witness(self, words: list[str]) -> None:
        if not 2 <= len(words) <= 3:
            raise self._wrong("is not: witness NAME VKEY [URL]")
        name = self._new_name(words[0])
        try:
            key = parse_cosigner(_utf8(words[1]))
            url = _utf8(words[2]) if len(words) == 3 else None
        except ConfigurationError as exc:
            raise self._wrong(f"has no witness's key: {exc.what}") from exc
        if any(other.key.public == key.public for other in self._witnesses.values()):
            raise self._wrong("names a key that an earlier line has")
        self._check_room(len(self._witnesses))
        self._witnesses[name] = Witness(name=name, key=key, url=url)

    def _take_group(self, words: list[str]) -> None:
        if len(words) < 3:
            raise self._wrong("is not: group NAME any|all|K MEMBER...")
        name, count, *members = words
        name = self._new_name(name)
        for member in members:
            if member not in self._witnesses and member not in self._groups:
                raise self._wrong("names a member that no earlier line defines")
            # Each name once in all groups together: so no witness counts twice.
            if member in self._members:
                raise self._wrong("names a member that is in a group already")
            self._members.add(member)
        self._check_room(len(self._groups))
        self._groups[name] = _Group(needed=self._needed(count, len(members)), members=tuple(members))

    def _needed(self, count: str, members: int) -> int:
        if count in ("any", "all"):
            return 1 if count == "any" else members
        if _DECIMAL_RE.fullmatch(count) is None or int(count) > members:
            raise self._wrong("needs any, all, or a number from 1 to the number of members")
        return int(count)

    def _take_quorum(self, words: list[str]) -> None:
        if len(words) != 1:
            raise self._wrong("is not: quorum NAME")
        if self._quorum is not None:
            raise self._wrong("is a second quorum line")
        if words[0] not in (NONE, *self._witnesses, *self._groups):
            raise self._wrong("names a quorum that no earlier line defines")
        self._quorum = words[0]

    def _new_name(self, name: str) -> str:
        if name == NONE or name in self._witnesses or name in self._groups:
            raise self._wrong("gives a name that is taken")
        return name

    def _check_room(self, count: int) -> None:
        if count >= MAX_LINES_OF_A_KIND:
            raise self._wrong(f"is one more of its kind than {MAX_LINES_OF_A_KIND}")


def _shown(name: str) -> str:
    return name.encode("latin-1").decode("utf-8", "replace")


def _utf8(octets: str) -> str:
    try:
        return octets.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError as exc:
        raise ConfigurationError("a key or URL is not UTF-8") from exc
