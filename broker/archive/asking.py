"""Questions in SQL to files of rows, by DuckDB in a cage: it reads these files and nothing else.

The text of a question is the caller's own, and may still be somebody else's idea (I04): it can read no other
file, write none, reach no network, load nothing, change no setting, and has bounds of memory, time and rows.
DuckDB keeps most of that itself, but not all: some of what it computes heeds neither its memory limit nor an
interrupt. So :func:`check` is to be run in a child process that is capped, which :mod:`broker.sandbox` does.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date, datetime
from datetime import time as time_of_day
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from broker.archive import library
from broker.canonical import b64url
from broker.errors import BrokerError, ConfigurationError, InternalError, TooLarge, UsageError

VIEW: Final = "entries"
MAX_ANSWER: Final = 64 << 20
"""Bytes of the longest answer, as JSON."""
_BATCH: Final = 1024
_LONGEST_WHY: Final = 500
_CONFIG: Final = {
    "allow_community_extensions": "false",
    "allow_unsigned_extensions": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "temp_directory": "",  # what does not fit into memory is refused, not spread over a disk
}


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How much a question may take.

    Attributes:
        memory_mib: MiB of memory.
        threads: Threads at once.
        seconds: Until it is interrupted.
        rows: Rows of its answer.
    """

    memory_mib: int = 1024
    threads: int = 2
    seconds: float = 60.0
    rows: int = 10_000


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a question gave: names of its columns, no two the same, and rows of JSON values.

    Times are RFC 3339 in UTC, bytes base64url. ``more`` says that the answer goes on beyond its bound.
    """

    columns: tuple[str, ...]
    rows: Sequence[Sequence[Any]]
    more: bool


def ask(files: Sequence[Path], sql: str, *, bounds: Bounds) -> Answer:
    """Answer one SELECT over the view ``entries``, which is all rows of these files.

    Args:
        files: Parquet files of the same columns; at least one. Nobody else may write where they are.
        sql: One statement that reads: SELECT, WITH, FROM, VALUES, DESCRIBE, SUMMARIZE, SHOW.
        bounds: How much it may take.

    Raises:
        UsageError: It is not one such statement, or DuckDB refuses it; or it took too long.
        TooLarge: It needs more memory than it may have.
        ConfigurationError: duckdb or pyarrow is not installed.
    """
    duckdb = library("duckdb")
    library("pyarrow")  # answers come through it
    with _translated(duckdb, bounds) as interrupted, _open(duckdb, files, bounds) as connection:
        statement = _one_select(duckdb, connection, sql)
        with _interrupting(connection, bounds.seconds, interrupted):
            return _read(connection.sql(statement.query), bounds.rows)


@contextmanager
def _open(duckdb: Any, files: Sequence[Path], bounds: Bounds) -> Iterator[Any]:
    config = {**_CONFIG, "memory_limit": f"{bounds.memory_mib}MiB", "threads": str(bounds.threads)}
    connection = duckdb.connect(":memory:", config=config)
    try:
        names = ", ".join(_quoted(str(path.resolve())) for path in files)
        connection.execute("SET TimeZone='UTC'")
        connection.execute("SET python_enable_replacements=false")  # else names in SQL may be our variables
        connection.execute(
            f"CREATE VIEW {VIEW} AS SELECT * FROM read_parquet([{names}], hive_partitioning=false)"  # noqa: S608
        )
        connection.execute(f"SET allowed_paths=[{names}]")
        connection.execute("SET enable_external_access=false")
        connection.execute("SET lock_configuration=true")
        yield connection
    finally:
        connection.close()


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _one_select(duckdb: Any, connection: Any, sql: str) -> Any:
    found = connection.extract_statements(sql)
    # A view could be replaced, a COPY could write over the files that may be read: only what reads is let in.
    if len(found) != 1 or found[0].type != duckdb.StatementType.SELECT:
        raise UsageError(
            "a question to the ledger is one SELECT",
            why="it reads and changes nothing",
            next="for example: SELECT type, count(*) FROM entries GROUP BY type",
        )
    return found[0]


def _read(relation: Any, most: int) -> Answer:
    if relation is None:  # a statement without an answer
        return Answer(columns=(), rows=[], more=False)
    names = _unique(relation.columns)
    rows: list[tuple[Any, ...]] = []
    for batch in relation.to_arrow_reader(_BATCH):
        columns = ([_plain(value) for value in column.to_pylist()] for column in batch.columns)
        rows += zip(*columns, strict=True)
        if len(rows) > most:
            return Answer(columns=names, rows=rows[:most], more=True)
    return Answer(columns=names, rows=rows, more=False)


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    made: list[str] = []
    for name in names:
        candidate, count = name, 1
        while candidate in made:
            count += 1
            candidate = f"{name}_{count}"
        made.append(candidate)
    return tuple(made)


@contextmanager
def _interrupting(connection: Any, seconds: float, interrupted: threading.Event) -> Iterator[None]:
    def interrupt() -> None:
        interrupted.set()
        connection.interrupt()

    timer = threading.Timer(seconds, interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # it must not interrupt a connection that is closed


@contextmanager
def _translated(duckdb: Any, bounds: Bounds) -> Iterator[threading.Event]:
    pyarrow = library("pyarrow")
    interrupted = threading.Event()
    try:
        yield interrupted
    except (duckdb.Error, pyarrow.ArrowException, OSError) as exc:
        if interrupted.is_set():
            raise UsageError(
                f"the question took longer than {bounds.seconds:g} s",
                next="ask for less, for example WHERE principal = ..., or give --timeout",
            ) from exc
        if isinstance(exc, duckdb.OutOfMemoryException):
            raise TooLarge(
                f"the question needs more than {bounds.memory_mib} MiB of memory",
                next="ask for less: fewer rows, or without the column entry",
            ) from exc
        why = " ".join(str(exc).split())
        raise UsageError("DuckDB refuses the question", why=why[:_LONGEST_WHY]) from exc
    except (OverflowError, ValueError) as exc:
        raise UsageError(
            "the answer holds a value that cannot be shown", next="cast it to text: CAST(... AS VARCHAR)"
        ) from exc
    except MemoryError as exc:
        raise TooLarge("the answer needs more memory than it may have", next="ask for fewer rows") from exc


def _plain(value: Any) -> Any:
    """A value as JSON has it; what JSON has no form for, as its text."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case bytes():
            return b64url(value)
        case datetime():
            text = value.isoformat(timespec="microseconds" if value.microsecond % 1000 else "milliseconds")
            return text.replace("+00:00", "Z")
        case date() | time_of_day():
            return value.isoformat()
        case Mapping():
            return {str(name): _plain(member) for name, member in value.items()}
        case list():
            return [_plain(member) for member in value]
        case Decimal() if value == value.to_integral_value():
            return int(value)
        case _:
            return str(value)


# -- between two processes ---------------------------------------------------------------------------------

_CODES: Final = {each.code: each for each in (UsageError, TooLarge, ConfigurationError, InternalError)}


def request(files: Sequence[Path], sql: str, *, bounds: Bounds) -> bytes:
    """What :func:`check` is to be given."""
    named = {"files": [os.fspath(path) for path in files], "sql": sql, "bounds": asdict(bounds)}
    return json.dumps(named).encode()


def check(data: bytes) -> bytes:
    """Do what a :func:`request` says, in the process that is capped for it."""
    asked = json.loads(data)
    try:
        # Arrow's own allocators reserve more address space than the process may have.
        pyarrow = library("pyarrow")
        pyarrow.set_memory_pool(pyarrow.system_memory_pool())
        found = ask([Path(name) for name in asked["files"]], asked["sql"], bounds=Bounds(**asked["bounds"]))
        answer = json.dumps(asdict(found)).encode()
        if len(answer) > MAX_ANSWER:
            raise TooLarge(f"the answer has more than {MAX_ANSWER >> 20} MiB", next="ask for fewer columns")
    except BrokerError as exc:
        answer = json.dumps({"code": exc.code, "what": exc.what, "why": exc.why, "next": exc.next}).encode()
    return answer


def answer(data: bytes) -> Answer:
    """What :func:`check` gave back.

    Raises:
        UsageError, TooLarge, ConfigurationError: What :func:`ask` raised there.
    """
    found = json.loads(data)
    if "code" in found:
        raise _CODES.get(found["code"], InternalError)(found["what"], why=found["why"], next=found["next"])
    return Answer(columns=tuple(found["columns"]), rows=found["rows"], more=found["more"])
