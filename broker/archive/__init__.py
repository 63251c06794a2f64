"""The log as a table in Parquet files, and questions to it in SQL. Needs the extra ``archive``.

Nothing here knows what an entry is: columns and rows come from :mod:`broker.ledger.columns`, by whoever joins
the two. pyarrow and duckdb are imported when they are first needed.
"""

from __future__ import annotations

import importlib
from typing import Any

from broker.errors import ConfigurationError


def library(name: str) -> Any:
    """pyarrow, one of its modules, or duckdb.

    Raises:
        ConfigurationError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as exc:
        raise ConfigurationError(
            f"the library {name.partition('.')[0]} is not installed",
            why="Parquet files and SQL over the ledger need it",
            next="pip install 'model-access-broker[archive]'",
        ) from exc
