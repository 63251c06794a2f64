"""docs/cli.md against the commands' own help."""

from __future__ import annotations

from pathlib import Path

from broker.cli.reference import render_reference
from broker.errors import EXIT_CODE

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"


def test_the_page_is_what_the_commands_say() -> None:
    assert PAGE.read_text() == render_reference(), (
        "make it again: python -m broker.cli.reference > docs/cli.md"
    )


def test_the_page_has_every_exit_status_and_code() -> None:
    text = PAGE.read_text()
    for code, status in EXIT_CODE.items():
        [row] = [line for line in text.splitlines() if line.startswith(f"| {status} |")]
        assert f"`{code}`" in row
