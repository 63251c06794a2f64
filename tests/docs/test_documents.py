"""Documents against the code they speak of: what can go stale is compared."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import click
import pytest

import broker
from broker import limits
from broker.cli.root import cli
from broker.errors import ERROR_CLASS, EXIT_CODE, HTTP_STATUS

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
IDS = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
INVARIANTS = [f"I{number:02d}" for number in range(1, 21)]


def text_of(name: str) -> str:
    return (ROOT / name).read_text()


def without_code(text: str) -> str:
    """Markdown without fenced blocks and code spans, whose brackets are not links."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M))


def slug(heading: str) -> str:
    """The anchor that renderers give to a heading."""
    bare = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", bare))


def anchors(path: Path) -> set[str]:
    fenced = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.S | re.M)
    return {slug(line) for line in re.findall(r"^#{1,6} (.+)$", fenced, flags=re.M)}


def section(text: str, heading: str) -> str:
    """The lines under one heading, up to the next of the same depth or higher."""
    depth = heading.split(" ")[0]
    found = re.search(rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{len(depth)}}} |\Z)", text, flags=re.S | re.M)
    assert found, f"no section {heading}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of a Markdown table's rows, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- links ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_links_resolve(path: Path) -> None:
    broken = []
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", without_code(path.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = unquote(target).partition("#")
        found = (path.parent / name).resolve() if name else path
        if not found.exists() or not found.is_relative_to(ROOT) or (anchor and anchor not in anchors(found)):
            broken.append(target)
    assert not broken, f"{path.relative_to(ROOT)}: {broken}"


def test_every_page_is_found_from_the_index() -> None:
    index = text_of("docs/README.md") + text_of("docs/adr/README.md").replace("](", "](adr/")
    linked = {unquote(t.partition("#")[0]) for t in re.findall(r"\]\(([^)\s]+)\)", index)}
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    lost = pages - linked - {"README.md"}
    assert not lost, f"pages without a link in docs/README.md: {sorted(lost)}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_blocks_of_python_compile(path: Path) -> None:
    for code in re.findall(r"^```python[^\n]*\n(.*?)^```$", path.read_text(), flags=re.S | re.M):
        compile(code, str(path), "exec")


def test_pages_that_the_code_names_exist() -> None:
    named = set()
    for path in (ROOT / "broker").rglob("*.py"):
        named |= set(re.findall(r"docs/[A-Za-z0-9_/.-]+\.md", path.read_text()))
    assert named
    assert not [name for name in sorted(named) if not (ROOT / name).exists()]


# -- commands ---------------------------------------------------------------------------------------------


def command_lines(path: Path) -> Iterator[str]:
    """Every ``broker ...`` of a page: lines of plain fenced blocks, and code spans."""
    text = path.read_text()
    for kind, block in re.findall(r"^```([^\n]*)\n(.*?)^```$", text, flags=re.S | re.M):
        if kind not in ("", "sh", "bash", "console"):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            found = re.match(r"(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(broker [a-z].*)", line)
            if found:
                yield re.split(r"\s#\s|\s[|>]\s", found[1])[0]
    for span in re.findall(r"`(broker [a-z][^`\n]*)`", re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M)):
        yield re.sub(r"\s+", " ", span)


def check_command(line: str) -> None:
    """The command exists, and takes these options and this many arguments."""
    words = shlex.split(line)[1:]
    command: click.Command = cli
    context = click.Context(command, info_name="broker", help_option_names=["-h", "--help"])
    while isinstance(command, click.Group) and words:
        found = command.get_command(context, words[0])
        assert found is not None, f"no command {words[0]}"
        command, context, words = found, click.Context(found, parent=context), words[1:]
    if isinstance(command, click.Group):
        return
    _, left, _ = command.make_parser(context).parse_args(list(words))
    assert not left, f"too many arguments: {left}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_commands_that_a_page_names_exist(path: Path) -> None:
    wrong = []
    for line in command_lines(path):
        if re.search(r"[\[\]|]|\.\.\.$|COMMAND", line):
            continue  # usage lines and ellipses
        try:
            check_command(line)
        except (AssertionError, click.UsageError) as exc:
            wrong.append(f"{line}: {exc}")
    assert not wrong, "\n".join(wrong)


def test_the_commands_of_the_tour_are_seen() -> None:
    lines = list(command_lines(ROOT / "README.md"))
    assert len(lines) > 15
    with pytest.raises(AssertionError, match="no command"):
        check_command("broker fly to the moon")
    with pytest.raises(click.UsageError):
        check_command("broker get acme/llama-7b --no-such-option")


# -- architecture -----------------------------------------------------------------------------------------


def test_the_house_is_the_one_that_is_enforced() -> None:
    house = load(ROOT / "tests" / "test_architecture.py")
    kinds = {
        "words": house.WORDS,
        "rules": house.RULES,
        "service": house.SERVICE,
        "hands": house.HANDS,
        "edge": house.EDGE,
    }
    written: dict[str, set[str]] = {kind: set() for kind in kinds}
    for rooms, kind, _ in rows(section(text_of("docs/ARCHITECTURE.md"), "## 4. The house")):
        written[kind] |= set(re.findall(r"`(\w+)`", rooms))
    assert written == kinds


def test_sections_and_steps_that_the_code_cites_exist() -> None:
    text = text_of("docs/ARCHITECTURE.md")
    sections = set(re.findall(r"^#{2,3} (\d+(?:\.\d+)?)\.? ", text, flags=re.M))
    life = section(text, "## 3. The life of a read")
    steps = set(re.findall(r"^(\d+)\. \*\*", life, flags=re.M)) | set(
        re.findall(r"^\* \*\*(P\d)\*\*", life, flags=re.M)
    )
    assert steps == {str(n) for n in range(1, 11)} | {f"P{n}" for n in range(1, 8)}
    wrong = []
    for path in (ROOT / "broker").rglob("*.py"):
        code = path.read_text()
        cited = re.findall(r"ARCHITECTURE (\d+(?:\.\d+)?)", code)
        wrong += [f"{path.name}: section {n}" for n in cited if n not in sections]
        wrong += [f"{path.name}: step {n}" for n in re.findall(r"\b(P\d)\b", code) if n not in steps]
    assert not wrong, wrong


# -- threats ----------------------------------------------------------------------------------------------


def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def named_tests(number: str) -> Iterator[tuple[str, str]]:
    """(file, function) pairs that one promise names; functions follow the file that they are in."""
    body = section(text_of("docs/THREAT_MODEL.md"), f"### {number}")
    for file, names in re.findall(r"^\* `(tests/[\w/]+\.py)`: (.+?)$", body, flags=re.M):
        found = re.findall(r"`(test_\w+)`", names)
        assert found, f"{number}: {file} without a function"
        for name in found:
            yield file, name


def test_the_promises_are_numbered_one_by_one() -> None:
    assert re.findall(r"^### (\w+)$", text_of("docs/THREAT_MODEL.md"), flags=re.M) == INVARIANTS


@pytest.mark.parametrize("number", INVARIANTS)
def test_a_promise_names_tests_that_exist(number: str) -> None:
    body = section(text_of("docs/THREAT_MODEL.md"), f"### {number}")
    assert len(re.findall(r"\*Holds\b|\*Partly\b", body)) == 1
    named = list(named_tests(number))
    assert named, f"{number} names no test"
    missing = [f"{file}::{name}" for file, name in named if name not in functions(ROOT / file)]
    assert not missing, missing
    own = [name for file, name in named if file.startswith("tests/invariants/")]
    assert own, f"{number} has no test in tests/invariants"
    assert all(name.startswith(f"test_{number}_") for name in own)


def test_every_test_of_a_promise_is_found_from_it() -> None:
    named = {(number, file) for number in INVARIANTS for file, _ in named_tests(number)}
    lost = []
    for path in sorted((ROOT / "tests" / "invariants").glob("test_*.py")):
        file = str(path.relative_to(ROOT))
        numbers = {found[1] for name in functions(path) if (found := re.match(r"test_(I\d\d)_", name))}
        assert numbers, f"{file} tests no promise"
        lost += [f"{number}: {file}" for number in sorted(numbers) if (number, file) not in named]
    assert not lost, f"not named in docs/THREAT_MODEL.md: {lost}"


# -- tables and numbers -----------------------------------------------------------------------------------


def test_the_table_of_errors_is_that_of_the_code() -> None:
    table = rows(section(text_of("docs/errors.md"), "## All codes"))
    written = {row[0].strip("`"): (row[1].strip("`"), int(row[2]), int(row[3])) for row in table}
    assert written == {
        code: (cls.__name__, HTTP_STATUS[code], EXIT_CODE[code]) for code, cls in ERROR_CLASS.items()
    }
    assert len(table) == len(written)


def test_the_exit_statuses_are_explained() -> None:
    table = rows(section(text_of("docs/errors.md"), "## On the command line"))
    assert {int(row[0]) for row in table} == {0, *EXIT_CODE.values()}


MIB = limits.MIB
NUMBERS = [
    ("docs/ARCHITECTURE.md", "at most 128 MiB of plaintext", limits.DEFAULT_LEASE_WINDOW == 128 * MIB),
    (
        "docs/ARCHITECTURE.md",
        "(32 MiB unless the publisher chose otherwise)",
        limits.DEFAULT_EXTENT_SIZE == 32 * MIB,
    ),
    ("docs/ARCHITECTURE.md", "(up to 256)", limits.MAX_BATCH == 256),
    ("docs/ARCHITECTURE.md", "a pass of at most 15 minutes", limits.ACCESS_TOKEN_TTL == 15 * 60),
    ("docs/ARCHITECTURE.md", "up to 60 a minute", limits.DENIALS_PER_MINUTE == 60),
    ("docs/ARCHITECTURE.md", "runs out after a day", limits.UPLOAD_TTL == 24 * 3600),
    ("docs/THREAT_MODEL.md", "in at most five minutes", limits.LEASE_TTL == 5 * 60),
    ("docs/THREAT_MODEL.md", "two windows of 128 MiB", limits.DEFAULT_LEASE_WINDOW == 128 * MIB),
    ("docs/THREAT_MODEL.md", "open, at most an hour", limits.ENROLMENT_TTL == 3600),
    ("docs/adr/0005-c2sp-log-and-canonical-entries.md", "at most 65,535 bytes", limits.MAX_ENTRY == 65_535),
    ("docs/adr/0007-group-commit-and-row-macs.md", "up to 256 drafts", limits.MAX_BATCH == 256),
    (
        "docs/adr/0009-lease-window.md",
        "up to 16 GiB and 1,024 extents",
        limits.MAX_LEASE_BYTES == 16 * limits.GIB,
    ),
    ("docs/adr/0009-lease-window.md", "at most 128 MiB", limits.DEFAULT_LEASE_WINDOW == 128 * MIB),
    ("SECURITY.md", "good for 60 seconds either way", limits.PROOF_WINDOW == 60),
]


@pytest.mark.parametrize(("name", "words", "holds"), NUMBERS, ids=[f"{n}: {w}" for n, w, _ in NUMBERS])
def test_numbers_are_those_of_the_code(name: str, words: str, holds: bool) -> None:
    assert words in re.sub(r"\s+", " ", text_of(name))
    assert holds


# -- the rest ---------------------------------------------------------------------------------------------


def test_decisions_have_their_form() -> None:
    pages = sorted((ROOT / "docs" / "adr").glob("[0-9]*.md"))
    assert [path.name[:4] for path in pages] == [f"{n:04d}" for n in range(1, len(pages) + 1)]
    index = text_of("docs/adr/README.md")
    for path in pages:
        text = path.read_text()
        title = text.splitlines()[0].removeprefix(f"# {path.name[:4]} ")
        assert f"| [{path.name[:4]}]({path.name}) | {title} |" in index
        assert re.search(r"^Date: \d{4}-\d\d-\d\d\. Status: (accepted|superseded by .+)\.$", text, flags=re.M)
        assert re.findall(r"^## (.+)$", text, flags=re.M) == ["Context", "Decision", "Consequences"]


def test_the_changelog_begins_with_this_version() -> None:
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", text_of("CHANGELOG.md"), flags=re.M)
    assert released[0] == broker.__version__
    assert f"{broker.__version__.rpartition('.')[0]}.x" in text_of("SECURITY.md")


def test_the_targets_of_make_are_explained() -> None:
    made = set(re.findall(r"^([a-z-]+):.*## ", text_of("Makefile"), flags=re.M)) - {"help"}
    table = section(text_of("CONTRIBUTING.md"), "## Begin")
    assert set(re.findall(r"`make ([a-z-]+)`", table)) - {"help"} == made


def test_the_folders_of_tests_are_explained() -> None:
    table = rows(section(text_of("CONTRIBUTING.md"), "## Tests"))
    written = {name for row in table for name in re.findall(r"`tests/(\w+)/`", row[0])}
    there = {
        path.parent.relative_to(ROOT / "tests").parts[0] for path in (ROOT / "tests").glob("*/**/test_*.py")
    }
    assert there <= written, sorted(there - written)
    assert all((ROOT / "tests" / name).is_dir() for name in written)


def test_the_image_is_linted_when_the_linter_is_here() -> None:
    linter = Path(sys.executable).parent / "hadolint"
    if not linter.exists():
        pytest.skip("hadolint is not installed (make check installs it)")
    done = subprocess.run([linter, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
