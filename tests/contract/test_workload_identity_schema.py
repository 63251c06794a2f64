"""The second migration: tokens of the first release are gone, everything else stays as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import inspect, text

from broker.db import migrate
from broker.db.engine import open_engine
from tests.postgres import postgres_url  # noqa: F401 - a fixture

PRINCIPAL = "INSERT INTO principals VALUES ('user:ana', '[]', '[]', 0, 1, 0, :mac)"
TOKEN = "INSERT INTO tokens VALUES ('t_1', 'user:ana', 'j', '[]', '[]', 1, 2, 'active', 0, :mac)"


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def first_release(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database with the first release's schema, a principal and a token."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'broker.db'}"
    else:
        url = request.getfixturevalue("postgres_url")
    engine = open_engine(url, writes=True, pool_size=1)
    config = migrate._config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        for statement in (PRINCIPAL, TOKEN):
            connection.execute(text(statement), {"mac": b"m" * 32})
    engine.dispose()
    return url


def test_tokens_are_dropped_and_the_rest_is_kept(first_release: str) -> None:
    assert migrate.upgrade(first_release) == migrate.head_revision()
    engine = open_engine(first_release, writes=True, pool_size=1)
    with engine.begin() as connection:
        assert connection.execute(text("SELECT count(*) FROM tokens")).scalar() == 0
        assert connection.execute(text("SELECT id FROM principals")).scalar() == "user:ana"
        columns = {column["name"]: column for column in inspect(connection).get_columns("tokens")}
        assert columns["identity"]["nullable"] is False
        assert {index["name"] for index in inspect(connection).get_indexes("tokens")} == {
            "ix_tokens_jkt",
            "ix_tokens_principal",
        }
    engine.dispose()


@pytest.mark.postgres
def test_rights_on_the_table_of_tokens_stay(request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue("postgres_url")
    engine = open_engine(url, writes=True, pool_size=1)
    config = migrate._config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(text("GRANT SELECT ON tokens TO PUBLIC"))
    migrate.upgrade(url)
    with engine.begin() as connection:
        granted = connection.execute(
            text(
                "SELECT count(*) FROM information_schema.table_privileges WHERE table_name = 'tokens'"
                " AND grantee = 'PUBLIC'"
            )
        )
        assert granted.scalar() == 1
    engine.dispose()
