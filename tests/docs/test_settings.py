"""The configuration page lists every setting, with its variable, default and meaning."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from broker import config, limits
from broker.config import production

PAGE = Path(__file__).parents[2] / "docs" / "operations" / "configuration.md"


def _settings(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        # A table, or a table that may be absent: `Table | None`.
        tables = [each for each in (field.annotation, *get_args(field.annotation)) if _is_table(each)]
        if tables:
            yield from _settings(tables[0], f"{prefix}{name}.")
        else:
            yield f"{prefix}{field.alias or name}", field


def _is_table(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default is None or field.default == ():
        return "-"
    if isinstance(field.default, bool):
        return f"`{str(field.default).lower()}`"
    return f"`{field.default}`"


def _row(name: str, field: FieldInfo) -> str:
    # A list of tables is one variable, with the whole list in JSON.
    several = name.partition(".")[0] if name.startswith("forward.") else name
    variable = config.PREFIX + several.replace(".", "__").upper()
    return f"| `{name}` | `{variable}` | {_default(field)} | {field.description} |"


def test_every_setting_is_on_the_page_as_it_is() -> None:
    page = PAGE.read_text().splitlines()
    missing = [row for name, field in _settings(config.Settings) if (row := _row(name, field)) not in page]
    assert not missing, "\n".join(missing)


def test_the_page_has_no_other_setting() -> None:
    known = {name for name, _ in _settings(config.Settings)}
    listed = re.findall(r"^\| `([a-z_.]+)` \| `BROKER_", PAGE.read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(known)


def test_every_refusal_is_on_the_page() -> None:
    source = Path(production.__file__).read_text()
    codes = re.findall(r'"([a-z]+(?:-[a-z]+)+)"', source[source.index("def find_refusals") :])
    assert len(codes) == 9
    listed = re.findall(r"^\| `([a-z-]+)` \| (?!`)", PAGE.read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(codes)


def test_the_lease_window_is_explained_with_its_bounds() -> None:
    page = PAGE.read_text()
    assert f"{limits.SEGMENT_SIZE}" in page
    assert f"{limits.MAX_LEASE_BYTES}" in page
