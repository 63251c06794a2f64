"""The seams: what the use cases need from the world, with the guarantees they rely on.

Implementations live in ``db/``, ``storage/``, ``keys/`` and ``runtime.py``; the tests' in-memory
world implements the same Protocols.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from broker.drafts import Appended, Draft
from broker.errors import BrokerError, IntegrityFailure
from broker.jwks import ForeignKey
from broker.model import IndexRow, Issuer, Query, Tail

R = TypeVar("R")


class StaleDecision(BrokerError):
    """What the draft was decided on has changed; decide again on a new snapshot. Never leaves services."""

    code = "unavailable"


class Clock(Protocol):
    """The time."""

    def now(self) -> int:
        """Milliseconds since 1970, UTC."""


class Entropy(Protocol):
    """Unpredictable bytes."""

    def random_bytes(self, size: int) -> bytes:
        """``size`` bytes from the operating system's generator."""

    def uuid(self) -> str:
        """A random UUID."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many search rows answer a query, in groups.

    Attributes:
        total: Rows that match.
        groups: (value, rows) of the groups that are named; the value of an hour or day is its first
            millisecond, that of rows without the member is None.
        unnamed: Groups that match too and are not named.
        unnamed_rows: Their rows.
    """

    total: int
    groups: tuple[tuple[str | int | None, int], ...]
    unnamed: int
    unnamed_rows: int


class LedgerReader(Protocol):
    """The append-only log as stored; what it returns is not yet proven to be what was written."""

    def tail(self) -> Tail:
        """The tail. Raises IntegrityFailure when its MAC does not hold."""

    def entry(self, index: int) -> bytes:
        """Exact bytes of one entry. Raises NotFound."""

    def entries(self, start: int, stop: int) -> Iterator[tuple[int, bytes, bytes]]:
        """(index, entry, stored leaf hash) ascending, whatever rows there are in [start, stop)."""

    def index_rows(self, start: int, stop: int) -> Iterator[tuple[int, IndexRow]]:
        """Search rows as stored, ascending, in [start, stop)."""

    def hashes(self, level: int, start: int, stop: int) -> list[bytes]:
        """Stored hashes of complete subtrees [start, stop) at level 0, 8, 16, ...

        Raises IntegrityFailure when one is missing.
        """

    def head(self, size: int) -> str | None:
        """The tree head of that size that was kept beside the log; None when none was."""

    def heads(self) -> list[tuple[int, str]]:
        """Signed tree heads kept so far as (size, note), ascending."""

    def record(self, digest: str) -> bytes:
        """The record that a digest names, checked against it. Raises NotFound or IntegrityFailure."""

    def evidence(self, index: int) -> tuple[bytes, bytes]:
        """(salt, evidence) of an entry. Raises NotFound when there is none, or when it was erased."""

    def count_evidence(self, principal: str, until: int) -> int:
        """Pieces of evidence behind entries of a principal from before a time in milliseconds."""

    def search(self, query: Query, *, after: int, limit: int) -> list[tuple[int, IndexRow]]:
        """Matching rows with index > after, ascending, at most ``limit``. Served by indices."""

    def count(self, query: Query, *, by: str, top: int) -> Counts:
        """All matching rows in groups by one of ``broker.ledger.query.GROUPINGS``.

        The ``top`` largest groups are named, the largest first; of hours and days the newest, in the
        order of time.
        """


class View(LedgerReader, Protocol):
    """One consistent snapshot. A row whose MAC does not hold raises IntegrityFailure (I19)."""

    now: int
    """The database's clock at the snapshot, in milliseconds."""
    epoch: int
    """``state_epoch`` of the snapshot."""

    def find(self, row: type[R], *key: object) -> R | None:
        """The row of that class under that key."""

    def list(self, row: type[R], **where: object) -> Sequence[R]:
        """Rows of that class whose members equal ``where``, ordered by key."""

    def rows(self, row: type[R]) -> Iterator[R | IntegrityFailure]:
        """Every row of that class, as a stream; one whose MAC does not hold comes as its failure."""

    def newest_version(self, collection: str, name: str) -> str | None:
        """Name of the artifact's version that was committed last."""

    def version_by_digest(self, collection: str, name: str, manifest: str) -> str | None:
        """Name of the artifact's version with that manifest digest."""

    def versions(self, collection: str, name: str) -> Sequence[str]:
        """Names of the artifact's versions in the order of their commits."""

    def find_request(self, jkt: str, request_id: str) -> tuple[bytes, int] | None:
        """(body digest, entry index) of a request that was recorded before."""

    def meter(self, holder: str) -> int:
        """Opened bytes charged to a holder so far."""


class Ledger(Protocol):
    """Appends for any number of threads and processes; the only door for changes of access state.

    After a crash: a draft whose Appended was returned is there, whole; any other is there whole or
    not at all. Indices are dense. Between processes: the tail lock orders every append. After a lost
    answer: the same request id returns the first outcome.
    """

    def append(self, draft: Draft) -> Appended:
        """Make one draft durable, together with whatever else waits (group commit).

        Raises:
            ReplayedProof: The proof was used before.
            Conflict: The request id was used with another body.
            StaleDecision: The epoch moved, or an expected row changed; nothing was written.
            OverBudget: A charge found no room; nothing was written.
            LedgerUnavailable: The outcome is not known to be durable; nothing may be released (I01).
            IntegrityFailure: The stored tail or rows are not what the broker wrote; nothing is signed.
        """

    def keep_head(self, size: int, note: str) -> None:
        """Keep a signed tree head beside the log (insert-only; the same size again is fine)."""

    def view(self) -> AbstractContextManager[View]:
        """A snapshot for reading and deciding."""

    def note_enrolment_failure(self, enrolment_id: str) -> int:
        """Count one failed attempt at a code, durably; returns the number so far."""

    def enrolment_failures(self, enrolment_id: str) -> int:
        """Failed attempts at a code so far."""

    def erase_evidence(self, principal: str, until: int) -> int:
        """Delete the evidence behind entries of a principal from before a time; returns how many pieces.

        The erasure is on record before. Doing it again is fine. Raises LedgerUnavailable when the role
        may not, or it is not known to be done.
        """

    def set_upload_parts(self, upload_id: str, parts: str) -> None:
        """Remember the store's multipart ids of an upload (loose bookkeeping)."""


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """What the store says of an object: size in bytes, and its ETag without quotes."""

    size: int
    etag: str


class ObjectStore(Protocol):
    """The object store, as the broker itself uses it. Raises StoreUnavailable when it does not answer."""

    def create_upload(self, name: str) -> str:
        """Open a multipart upload; returns its id."""

    def complete_upload(self, name: str, upload_id: str, parts: Sequence[tuple[int, str]]) -> None:
        """Join the parts (number from 1, ETag). A retry after a lost answer is fine."""

    def abort_upload(self, name: str, upload_id: str) -> None:
        """Drop a multipart upload and its parts. Dropping it twice is fine."""

    def list_parts(self, name: str, upload_id: str) -> list[tuple[int, str, int]]:
        """(number, ETag, size) of the parts that the store holds."""

    def head(self, name: str) -> ObjectInfo | None:
        """Size and ETag, or None when there is no such object."""

    def delete(self, name: str) -> None:
        """Delete an object. Deleting it twice is fine."""

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """(name, size in bytes) of the objects whose names begin with ``prefix``."""

    def check(self) -> None:
        """The store answers and the bucket is there."""


class Presigner(Protocol):
    """Presigned URLs. Each returns (URL, real expiry in milliseconds): never later than asked (I06)."""

    def get(self, name: str, *, byte_range: str, grant: str, expires: int, now: int) -> tuple[str, int]:
        """A GET that needs exactly the header ``Range: <byte_range>`` and carries the grant's id."""

    def put(self, name: str, *, content_length: int, expires: int, now: int) -> tuple[str, int]:
        """A create-only PUT of exactly ``content_length`` bytes."""

    def upload_part(
        self, name: str, *, upload_id: str, part_number: int, content_length: int, expires: int, now: int
    ) -> tuple[str, int]:
        """One part of a multipart upload, of exactly ``content_length`` bytes."""


class KeyCustody(Protocol):
    """Whoever holds the key-encryption key."""

    def wrap(self, key: bytes, aad: bytes) -> bytes:
        """Wrap a 32-byte key, bound to ``aad``."""

    def unwrap(self, wrapped: bytes, aad: bytes) -> bytes:
        """The key again. Raises IntegrityFailure when the wrap or ``aad`` differ."""

    def check(self) -> None:
        """It answers, and its key is fit for use. Raises Unavailable or ConfigurationError."""


class TreeHeadStore(Protocol):
    """A store outside the database that remembers signed tree heads, create-only by size."""

    def publish(self, size: int, note: str) -> None:
        """Keep the head of that size. Raises RollbackDetected when another head of that size is there."""

    def newest(self) -> tuple[int, str] | None:
        """The largest head kept."""


@dataclass(frozen=True, kw_only=True)
class WitnessAnswer:
    """What a witness answered: HTTP status, media type in lower case, and bounded bytes."""

    status: int
    kind: str
    body: bytes


class Witness(Protocol):
    """Somebody else who cosigns tree heads."""

    def add_checkpoint(self, body: bytes) -> WitnessAnswer:
        """What it answers to a tree head with its proof. Raises Unavailable when it does not."""


class Cosignatures(Protocol):
    """Signature lines of witnesses, shared by all replicas; insert-only, and verified by who uses them.

    Every method raises LedgerUnavailable when the database does not answer.
    """

    def keep(self, size: int, *, witness: str, line: str, time: int) -> None:
        """Keep a line durably; the first one of a size and witness (its key as text) stays."""

    def newest_of(self, witness: str) -> tuple[int, int] | None:
        """(size, time in milliseconds) of the largest head that a witness signed."""

    def newest(self, *, above: int, most: int) -> list[tuple[int, dict[str, str]]]:
        """The ``most`` largest sizes over ``above``, descending: (size, witness -> line)."""

    def of_size(self, size: int) -> dict[str, str]:
        """Witness -> line of one tree size."""

    def close(self) -> None:
        """Close every connection."""


class LogSite(Protocol):
    """A place where others read the log as static files. Raises StoreUnavailable when it does not answer."""

    def checkpoint(self) -> tuple[str, str] | None:
        """The checkpoint there and a mark of it, for :meth:`move`; None before the first."""

    def create(self, path: str, data: bytes) -> None:
        """Put a file that never changes there. Raises Conflict when another one has its place."""

    def move(self, note: str, before: str | None) -> None:
        """Replace the checkpoint that has this mark. Raises Conflict when it is another by now."""

    def has(self, path: str) -> bool:
        """Whether a file that never changes is there."""

    def find(self, path: str, *, most: int) -> bytes | None:
        """Such a file, of at most ``most`` bytes; None when it is not there."""


class ArchiveFormat(Protocol):
    """Files of rows of the log, as engines for tables read them. A row is values in the columns' order."""

    def encode(self, rows: Sequence[tuple[Any, ...]]) -> bytes:
        """A file of these rows, in their order."""

    def decode(self, data: bytes, *, most: int) -> list[tuple[Any, ...]]:
        """The rows of a file of at most ``most``. Raises IntegrityFailure for anything but a true one."""


class IssuerKeys(Protocol):
    """The keys of foreign issuers, as far as they are known. Between processes nothing is shared."""

    def keys(self, issuer: Issuer, kid: str | None, *, now: int) -> tuple[ForeignKey, ...]:
        """The issuer's keys, asked for anew when they are old or ``kid`` is not among them.

        Whether one of them is called ``kid`` is for the caller to see. Never called in a transaction: it
        may take seconds.

        Args:
            issuer: Whose keys.
            kid: The key that a token names, None when it names none.
            now: Milliseconds since 1970.

        Raises:
            Unavailable: The issuer does not answer, or not with keys, and what is known is too old.
        """
