"""The only door for changes: drafts go in, and come out durable or refused (step 5).

Any number of threads and processes may append. Inside a process one thread commits for all that
wait; between processes the tail's lock orders the commits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from sqlalchemy import Connection, Engine, delete, func, select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from broker.db import tables
from broker.db.batch import Batch, Decided, check_draft
from broker.db.engine import is_transient, open_engine
from broker.db.held import read_held
from broker.db.macs import Macs, alarm
from broker.db.queue import CommitQueue, Outcome
from broker.db.remembered import Remembered
from broker.db.statements import dialect_insert, insert_missing
from broker.db.tail import StoredTail, TreeRules, create_tail, lock_tail, read_now, read_tail
from broker.db.values import is_storable
from broker.db.view import SqlReader, SqlView
from broker.drafts import Appended, Draft
from broker.errors import (
    BrokerError,
    ConfigurationError,
    InternalError,
    LedgerUnavailable,
    NotFound,
    RollbackDetected,
)
from broker.ports import Clock

_ATTEMPTS: Final = 4
_ERASED_AT_ONCE: Final = 500
"""Pieces of evidence that one transaction deletes."""
_PAUSE_SECONDS: Final = 0.02
"""Before the second attempt; twice as long before each later one."""
_PATIENCE_SECONDS: Final = 4.0
"""An attempt that fails after this time was the last: whoever waits is told, and may ask again."""


class LedgerStore:
    """Implements ``ports.Ledger`` over SQLite or PostgreSQL.

    Args:
        engine: From :func:`~broker.db.engine.open_engine`, for reading. Writing uses a second engine
            on the same database, so that snapshots that are held open never starve an append.
        tree: The Merkle rules.
        integrity_key: At least 32 bytes, kept outside the database, the same for all replicas.
        clock: The time on SQLite; PostgreSQL's own clock is used there.

    Raises:
        ConfigurationError: The integrity key is too short.
    """

    def __init__(self, engine: Engine, *, tree: TreeRules, integrity_key: bytes, clock: Clock) -> None:
        self._readers: Final = engine
        self._writers: Final = open_engine(engine.url, writes=True, pool_size=2)
        self._tree: Final = tree
        self._macs: Final = Macs(integrity_key)
        self._clock: Final = clock
        self._queue: Final = CommitQueue(self._commit)
        self._seen: StoredTail | None = None
        self._outside: tuple[int, bytes] = (0, b"")
        self._remembered: Final = Remembered()
        self._heads_lock: Final = threading.Lock()
        self._kept_head = -1

    def initialize(self) -> None:
        """Begin the ledger of a new database; an existing one is left alone. Safe in parallel.

        Raises:
            IntegrityFailure: The tail is missing although the database is not empty.
            LedgerUnavailable: The database does not answer.
        """
        with self._written() as connection:
            create_tail(connection, self._macs, self._tree)

    def close(self) -> None:
        """Close every connection, the readers' too."""
        self._writers.dispose()
        self._readers.dispose()

    # -- appending ------------------------------------------------------------------------------------

    def append(self, draft: Draft) -> Appended:
        """Make one draft durable, together with whatever else waits. See ``ports.Ledger.append``.

        A proof is used up only when the draft is accepted or is a repeated request: after
        StaleDecision, Conflict or OverBudget the next draft of the same request carries it again.

        Raises:
            ReplayedProof: The proof was used before.
            Conflict: The request id was used with another body.
            StaleDecision: The epoch moved, or an expected row changed; nothing was written.
            OverBudget: A charge found no room; nothing was written.
            LedgerUnavailable: The outcome is not known to be durable; nothing may be released (I01).
            IntegrityFailure: The stored tail or rows are not what the broker wrote.
            TooLarge: An entry has more than ``limits.MAX_ENTRY`` bytes.
            InvalidRequest: A member holds what no database stores (NUL, 2^53).
            InternalError: The draft asks for what it cannot have.
        """
        check_draft(draft)
        return self._queue.append(draft)

    def _commit(self, drafts: Sequence[Draft]) -> Sequence[Outcome]:
        failure: SQLAlchemyError | None = None
        deadline = time.monotonic() + _PATIENCE_SECONDS
        for attempt in range(_ATTEMPTS):
            _pause(attempt)
            try:
                return self._try_commit(drafts)
            except ConfigurationError as exc:
                raise _unwritable() from exc
            except IntegrityError as exc:
                # Under the tail lock every key was free: somebody else writes these tables (I10).
                raise alarm("the ledger's tables hold a row that the broker did not write") from exc
            except SQLAlchemyError as exc:
                failure = exc
                if not is_transient(exc) or time.monotonic() > deadline:
                    break
        raise _unwritable() from failure

    def _try_commit(self, drafts: Sequence[Draft]) -> Sequence[Outcome]:
        with self._writers.connect() as connection:
            tail = lock_tail(connection, self._macs, self._tree)
            self._check_no_rollback(tail)
            batch = Batch(
                held=read_held(connection, drafts, self._macs),
                tail=tail,
                now=read_now(connection, self._clock),
                macs=self._macs,
                tree=self._tree,
            )
            decided = [_decide(batch, draft) for draft in drafts]
            after = tail
            if not batch.is_empty:
                after = batch.write(connection)
                self._make_durable(connection, batch)
            self._seen = after
        moved = after.tail
        return [
            d if isinstance(d, BrokerError) else Appended(index=d.index, tail=moved, repeated=d.repeated)
            for d in decided
        ]

    def _make_durable(self, connection: Connection, batch: Batch) -> None:
        # If we crash before the commit: nothing is there. After it, before we answer: the entries
        # are there without a release, and the same request id finds them.
        try:
            connection.commit()
        except SQLAlchemyError as exc:
            with suppress(SQLAlchemyError):
                connection.invalidate()
            if not self._was_committed(batch, exc):
                raise

    def _was_committed(self, batch: Batch, cause: SQLAlchemyError) -> bool:
        """Whether a commit of unknown outcome happened, read under the tail lock.

        The lock is ours only after the lost transaction has ended, either way. When that cannot be
        read the batch is not tried again: it might be there, and be there twice then.

        Raises:
            LedgerUnavailable: It stays unknown. A batch without an entry leaves no mark of its own.
        """
        if batch.first_entry is None:
            raise _unwritable() from cause
        index, data = batch.first_entry
        wanted = select(tables.ledger_entries.c.entry).where(tables.ledger_entries.c.idx == index)
        failure: SQLAlchemyError = cause
        for attempt in range(_ATTEMPTS):
            _pause(attempt)
            try:
                with self._writers.connect() as connection:
                    lock_tail(connection, self._macs, self._tree)
                    # Entries begin with a random salt: the same bytes are the same append.
                    return bool(connection.execute(wanted).scalar() == data)
            except SQLAlchemyError as exc:
                failure = exc
        raise _unwritable() from failure

    def expect(self, size: int, root: bytes) -> None:
        """The log must go on from this head, which is known outside: checked under every tail lock (I10).

        Args:
            size: Entries of the head, which the stored log was seen to extend.
            root: Its root, 32 bytes.
        """
        self._outside = max(self._outside, (size, root))

    def _check_outside(self, tail: StoredTail) -> None:
        size, root = self._outside
        if tail.size < size or (tail.size == size and size and tail.root != root):
            found = alarm(
                "the ledger does not extend a tree head that is known outside",
                why=f"it has {tail.size} entries, the head {size}",
            )
            raise RollbackDetected(found.what, why=found.why)

    def _check_no_rollback(self, tail: StoredTail) -> None:
        self._check_outside(tail)
        seen = self._seen
        if seen is None or tail.size > seen.size or (tail.size == seen.size and tail.root == seen.root):
            return
        found = alarm(
            "the ledger went back", why=f"it has {tail.size} entries and had {seen.size} in this process"
        )
        raise RollbackDetected(found.what, why=found.why)

    # -- beside the log -------------------------------------------------------------------------------

    def keep_head(self, size: int, note: str) -> None:
        """Keep a signed tree head beside the log (insert-only; the same size again is fine).

        Raises:
            IntegrityFailure: The stored ledger is smaller than the head.
            LedgerUnavailable: The head is not known to be kept.
        """
        with self._heads_lock:
            # Every request of a batch keeps the same head: one write is enough.
            if size == self._kept_head:
                return
            with self._written() as connection:
                if read_tail(connection, self._macs).size < size:
                    raise alarm("a tree head was signed for entries that the ledger no longer has")
                heads = tables.ledger_heads
                if connection.execute(select(heads).where(heads.c.size == size)).first() is None:
                    insert_missing(connection, heads, [{"size": size, "note": note}])
            self._kept_head = size

    def note_enrolment_failure(self, enrolment_id: str) -> int:
        """Count one failed attempt at a code, durably; returns the number so far.

        An id that names no code is not counted and gives 0: guesses take no room (I17).

        Raises:
            LedgerUnavailable: The attempt is not known to be counted.
        """
        if not is_storable(enrolment_id):
            return 0
        table = tables.enrolment_failures
        codes = tables.METADATA.tables["enrolments"]
        with self._written() as connection:
            known = connection.execute(select(codes.c.id).where(codes.c.id == enrolment_id)).first()
            if known is None:
                return 0
            counted = connection.execute(_count_failure(connection, enrolment_id).returning(table.c.failures))
            return int(counted.scalar_one())

    def enrolment_failures(self, enrolment_id: str) -> int:
        """Failed attempts at a code so far."""
        if not is_storable(enrolment_id):
            return 0
        table = tables.enrolment_failures
        with self._snapshot() as connection:
            wanted = select(func.max(table.c.failures)).where(table.c.enrolment_id == enrolment_id)
            return int(connection.execute(wanted).scalar() or 0)

    def set_upload_parts(self, upload_id: str, parts: str) -> None:
        """Remember the store's multipart ids of an upload (loose bookkeeping).

        Raises:
            NotFound: There is no such upload.
            LedgerUnavailable: It is not known to be remembered.
        """
        table = tables.METADATA.tables["uploads"]
        with self._written() as connection:
            statement = update(table).where(table.c.id == upload_id).values(parts=parts)
            changed = connection.execute(statement)
            if not changed.rowcount:
                raise NotFound("there is no such upload")

    def erase_evidence(self, principal: str, until: int) -> int:
        """Delete the evidence behind entries of a principal from before a time; see ``ports.Ledger``.

        In runs of a bounded size, so that appends come between: nothing else reads these rows, and what
        is left after a crash is deleted the next time.

        Raises:
            LedgerUnavailable: The role may not, or it is not known to be done.
        """
        index, kept = tables.ledger_index.c, tables.ledger_evidence
        wanted = select(kept.c.idx).join(tables.ledger_index, index.idx == kept.c.idx)
        wanted = wanted.where(index.principal == principal, index.time < until).limit(_ERASED_AT_ONCE)
        gone = 0
        while True:
            with self._written() as connection:
                found = connection.execute(wanted).scalars().all()
                connection.execute(delete(kept).where(kept.c.idx.in_(found)))
            gone += len(found)
            if len(found) < _ERASED_AT_ONCE:
                return gone

    # -- reading --------------------------------------------------------------------------------------

    @contextmanager
    def view(self) -> Iterator[SqlView]:
        """A snapshot for reading and deciding.

        Raises:
            IntegrityFailure: The tail does not hold.
            LedgerUnavailable: The database does not answer, also later, inside the block.
        """
        with self._snapshot() as connection:
            yield SqlView(connection, macs=self._macs, clock=self._clock, remembered=self._remembered)

    @contextmanager
    def reader(self) -> Iterator[SqlReader]:
        """A snapshot of the log for verification: it opens even when the tail does not hold.

        Raises:
            LedgerUnavailable: The database does not answer, also later, inside the block.
        """
        with self._snapshot() as connection:
            yield SqlReader(connection, macs=self._macs)

    @contextmanager
    def _snapshot(self) -> Iterator[Connection]:
        try:
            with self._readers.connect() as connection, connection.begin():
                yield connection
        except SQLAlchemyError as exc:
            raise LedgerUnavailable("the database does not answer", why=type(exc).__name__) from exc

    @contextmanager
    def _written(self) -> Iterator[Connection]:
        try:
            with self._writers.begin() as connection:
                yield connection
        except SQLAlchemyError as exc:
            raise LedgerUnavailable("the database cannot be written", why=type(exc).__name__) from exc


def _unwritable() -> LedgerUnavailable:
    return LedgerUnavailable(
        "the ledger cannot be written", why="the database does not answer or refuses to write"
    )


def _pause(attempt: int) -> None:
    if attempt:
        threading.Event().wait(_PAUSE_SECONDS * 2**attempt)


def _decide(batch: Batch, draft: Draft) -> Decided | BrokerError:
    try:
        return batch.decide(draft)
    except BrokerError as exc:
        return exc
    except Exception as exc:
        # A bug that one draft meets is that draft's failure, not its neighbours'.
        failure = InternalError("a draft could not be decided because of a bug")
        failure.__cause__ = exc
        return failure


def _count_failure(connection: Connection, enrolment_id: str) -> Any:
    table = tables.enrolment_failures
    statement = dialect_insert(connection, table).values(enrolment_id=enrolment_id, failures=1)
    return statement.on_conflict_do_update(
        index_elements=[table.c.enrolment_id], set_={"failures": table.c.failures + 1}
    )
