"""Cosignatures in both databases: what several replicas keep and read at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from sqlalchemy import create_engine, text

from broker.db.cosignatures import CosignatureStore
from broker.db.engine import open_engine, parse_database_url
from broker.errors import LedgerUnavailable
from tests.databases import database_url

__all__ = ["database_url"]


@pytest.fixture
def kept(database_url: str) -> Iterator[CosignatureStore]:
    made = CosignatureStore(open_engine(database_url))
    yield made
    made.close()


def test_nothing_is_there_at_first(kept: CosignatureStore) -> None:
    assert kept.newest_of("a") is None
    assert kept.newest(above=0, most=5) == []
    assert kept.of_size(1) == {}


def test_the_newest_sizes_come_first_with_all_their_lines(kept: CosignatureStore) -> None:
    for size, witness in ((3, "a"), (5, "b"), (5, "a"), (9, "b"), (7, "a")):
        kept.keep(size, witness=witness, line=f"{witness}{size}", time=size * 1000)
    assert kept.newest(above=0, most=2) == [(9, {"b": "b9"}), (7, {"a": "a7"})]
    assert kept.newest(above=3, most=9) == [
        (9, {"b": "b9"}),
        (7, {"a": "a7"}),
        (5, {"a": "a5", "b": "b5"}),
    ]
    assert kept.newest(above=9, most=9) == []
    assert kept.newest_of("a") == (7, 7000)
    assert kept.newest_of("b") == (9, 9000)
    assert kept.of_size(5) == {"a": "a5", "b": "b5"}


def test_the_first_line_stays_whoever_comes_second(kept: CosignatureStore, database_url: str) -> None:
    replicas = [CosignatureStore(open_engine(database_url)) for _ in range(4)]
    threads = [
        threading.Thread(target=replica.keep, args=(8,), kwargs={"witness": "a", "line": line, "time": 1})
        for replica, line in zip(replicas, "wxyz", strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (line,) = kept.of_size(8).values()
    assert line in "wxyz"
    kept.keep(8, witness="a", line="later", time=2)
    assert kept.of_size(8) == {"a": line}
    assert kept.newest_of("a") == (8, 1)
    for replica in replicas:
        replica.close()


def test_a_database_without_the_table_is_unavailable(kept: CosignatureStore, database_url: str) -> None:
    plain = create_engine(parse_database_url(database_url))
    with plain.begin() as connection:
        connection.execute(text("DROP TABLE ledger_cosignatures"))
    plain.dispose()
    for ask in (
        lambda: kept.newest_of("a"),
        lambda: kept.newest(above=0, most=1),
        lambda: kept.of_size(1),
        lambda: kept.keep(1, witness="a", line="x", time=1),
    ):
        with pytest.raises(LedgerUnavailable):
            ask()
