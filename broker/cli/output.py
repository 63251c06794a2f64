"""What a person or a program sees: one record or many rows, as text, JSON, JSON lines or CSV.

Nothing that came from elsewhere reaches a terminal as it is: control characters, bidirectional overrides
and their like are shown as escapes, in every format (a purpose or a file name may hold anything).
"""

from __future__ import annotations

import csv
import io
import json
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TextIO, cast

Format = Literal["text", "json", "jsonl", "csv"]
FORMATS: Final[tuple[Format, ...]] = ("text", "json", "jsonl", "csv")
WIDTH: Final = 100
"""Columns that tables and help fit into when nobody says how wide the terminal is."""

_UNSAFE: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_UNITS: Final = ("KiB", "MiB", "GiB", "TiB", "PiB")
_FORMULA: Final = ("=", "+", "-", "@")
_GAP: Final = "  "
_ELLIPSIS: Final = "…"
_NARROWEST: Final = 6


# -- values ---------------------------------------------------------------------------------------------


def safe(text: object) -> str:
    """The text with every character that could steer a terminal shown as an escape."""
    found = str(text)
    if found.isascii() and found.isprintable():
        return found
    return "".join(_escape(ch) if unicodedata.category(ch) in _UNSAFE else ch for ch in found)


def _escape(ch: str) -> str:
    code = ord(ch)
    if ch in "\n\r\t":
        return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}[ch]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def safe_lines(text: str) -> str:
    """Text of several lines, each of them safe; tabs are kept."""
    return "\n".join("\t".join(safe(part) for part in line.split("\t")) for line in text.split("\n"))


def safe_json(value: Any, *, indent: int | None = None) -> str:
    """JSON that keeps letters of every script, and has all unsafe characters as escapes."""
    separators = (",", ":") if indent is None else None
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators)
    if text.isascii() and "\x7f" not in text:
        return text
    # Inside strings json.dumps left no newline; outside of them the newlines are its own.
    return "".join(map(_json_char, text))


def _json_char(ch: str) -> str:
    if ch == "\n" or unicodedata.category(ch) not in _UNSAFE:
        return ch
    return "\\u007f" if ch == "\x7f" else json.dumps(ch)[1:-1]


def size_text(count: int) -> str:
    """A number of bytes for a person: ``612 B``, ``31.3 MiB``, ``1.50 GiB``."""
    if count < 1024:
        return f"{count} B"
    amount, unit = count / 1024, 0
    # 1023.95 would round up to "1024.0" of the smaller unit.
    while amount >= 1023.95 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1024, unit + 1
    digits = 2 if amount < 10 else 1 if amount < 1000 else 0
    return f"{amount:.{digits}f} {_UNITS[unit]}"


def time_text(value: str | None) -> str:
    """An RFC 3339 time without its milliseconds, UTC."""
    found = "" if value is None else value
    return f"{found[:19]}Z" if len(found) == 24 and found[19] == "." else found


def counted(count: int, noun: str) -> str:
    """``1 file``, ``2 files``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def plain(value: Any) -> str:
    """Any JSON value in one cell: nothing for null, words for truth, commas between the items of a list."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={plain(item)}" for name, item in value.items())
    return str(value)


# -- tables -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table.

    Attributes:
        name: Member of the row.
        title: Heading.
        right: Whether numbers stand under each other at the right.
        shrink: Whether cells may be cut (with an ellipsis) to make the table fit.
        show: The cell of a value.
    """

    name: str
    title: str
    right: bool = False
    shrink: bool = False
    show: Callable[[Any], str] = plain


def table(rows: Iterable[Mapping[str, Any]], columns: Sequence[Column], *, width: int = WIDTH) -> list[str]:
    """The rows under their headings, aligned; at most ``width`` columns if cutting can do it."""
    cells = [[column.title for column in columns]]
    cells += [[safe(column.show(row.get(column.name))) for column in columns] for row in rows]
    widths = [max(map(_columns_of, column)) for column in zip(*cells, strict=True)]
    _shrink(widths, columns, width - len(_GAP) * (len(columns) - 1))
    return [_line(row, columns, widths) for row in cells]


def _shrink(widths: list[int], columns: Sequence[Column], room: int) -> None:
    while sum(widths) > room:
        able = [at for at, column in enumerate(columns) if column.shrink and widths[at] > _NARROWEST]
        if not able:
            return
        widest = max(able, key=lambda at: widths[at])
        widths[widest] -= 1


def _line(row: Sequence[str], columns: Sequence[Column], widths: Sequence[int]) -> str:
    cells = []
    for cell, column, width in zip(row, columns, widths, strict=True):
        shown = _cut(cell, width)
        blank = " " * (width - _columns_of(shown))
        cells.append(blank + shown if column.right else shown + blank)
    return _GAP.join(cells).rstrip()


def _cut(text: str, width: int) -> str:
    if _columns_of(text) <= width:
        return text
    kept = ""
    for ch in text:
        if _columns_of(kept + ch) > width - 1:
            break
        kept += ch
    return kept + _ELLIPSIS


def _columns_of(text: str) -> int:
    if text.isascii():
        return len(text)
    return sum(_char_columns(ch) for ch in text)


def _char_columns(ch: str) -> int:
    if unicodedata.combining(ch):
        return 0
    return 2 if unicodedata.east_asian_width(ch) in "WF" else 1


def fields(members: Iterable[tuple[str, Any]]) -> list[str]:
    """Names and values under each other; values that are null are left out."""
    shown = [(name, safe(plain(value))) for name, value in members if value is not None]
    wide = max((len(name) for name, _ in shown), default=0)
    return [f"{name:<{wide}}  {value}".rstrip() for name, value in shown]


# -- where it goes ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where one command's data and talk go.

    Attributes:
        format: What stdout carries.
        quiet: No talk and no bars; errors are still told.
        verbose: More talk.
    """

    format: Format = "text"
    quiet: bool = False
    verbose: bool = False

    def record(self, value: Mapping[str, Any], lines: Iterable[str]) -> None:
        """One object: its members, or for text these lines (which are safe already)."""
        match self.format:
            case "text":
                self._write_lines(lines)
            case "csv":
                self._write_csv([value], list(value))
            case _:
                self.write_text(safe_json(value, indent=2 if self.format == "json" else None) + "\n")

    def rows(
        self,
        rows: Iterable[Mapping[str, Any]],
        columns: Sequence[Column],
        *,
        whole: Callable[[list[Mapping[str, Any]]], Mapping[str, Any]],
        members: Sequence[str],
        empty: str,
    ) -> None:
        """Many rows.

        Args:
            rows: May be endless for JSON lines and CSV: they are written as they come.
            columns: Of the table.
            whole: The JSON object around all rows.
            members: Columns of the CSV.
            empty: Said on stderr when a table would have no row.
        """
        match self.format:
            case "jsonl":
                self._write_lines(safe_json(row) for row in rows)
            case "csv":
                self._write_csv(rows, members)
            case "json":
                self.write_text(safe_json(whole(list(rows)), indent=2) + "\n")
            case _:
                found = list(rows)
                if found:
                    self._write_lines(table(found, columns, width=terminal_width()))
                else:
                    self.say(empty)

    def say(self, text: str) -> None:
        """One line of talk, unless quiet. The text must be safe already."""
        if not self.quiet:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()

    def detail(self, text: str) -> None:
        """One line of talk for those who asked for more."""
        if self.verbose:
            self.say(text)

    def write_text(self, text: str) -> None:
        """Data, as it is."""
        sys.stdout.write(text)
        sys.stdout.flush()

    def _write_lines(self, lines: Iterable[str]) -> None:
        for line in lines:
            sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    def _write_csv(self, rows: Iterable[Mapping[str, Any]], members: Sequence[str]) -> None:
        held = io.StringIO()
        writer = csv.writer(held, lineterminator="\n")
        writer.writerow(members)
        for row in rows:
            writer.writerow([csv_cell(row.get(name)) for name in members])
            sys.stdout.write(held.getvalue())
            held.seek(0)
            held.truncate()
        sys.stdout.write(held.getvalue())
        sys.stdout.flush()


def csv_cell(value: Any) -> str:
    """A value as a CSV cell. Text that a spreadsheet would run as a formula gets a quote before it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        value = " ".join(value)
    text = safe(value) if isinstance(value, str) else safe_json(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def terminal_width() -> int:
    """Columns of the terminal that stdout is, else :data:`WIDTH`."""
    import shutil

    return shutil.get_terminal_size((WIDTH, 24)).columns if is_terminal(sys.stdout) else WIDTH


def is_terminal(stream: TextIO) -> bool:
    """Whether somebody looks at the stream."""
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False


def to_bytes_stream() -> io.BufferedIOBase:
    """Stdout for bytes that are data themselves."""
    sys.stdout.flush()
    return cast(io.BufferedIOBase, sys.stdout.buffer)
