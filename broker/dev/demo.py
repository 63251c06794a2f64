"""``broker demo``: the whole story on one machine, told by the commands that its people type.

A publisher puts a checkpoint and a dataset, an engineer fetches them, a stranger and a critical version
are refused, an auditor searches and proves, and somebody who edits the database is caught. The data is
real, every command is a process of its own, and the story ends at the first step that does not hold.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import sqlite3
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final, TextIO

from broker.dev import stage
from broker.dev.stage import Stage, StoryFailed
from broker.errors import EXIT_CODE, BrokerError

MODEL: Final = "acme/llama-mini"
VERSION: Final = f"{MODEL}@step-1000"
CORPUS: Final = "acme/corpus@2026-11"
CRITICAL: Final = "acme/frontier@step-9000"
PURPOSE: Final = "evaluation of step 1000"
SEED: Final = 20_261_123
ROWS: Final = 150_000
_ALLOWED: Final = 0
_DENIED: Final = EXIT_CODE["denied"]
_INVISIBLE: Final = EXIT_CODE["not_found"]
_INTEGRITY: Final = EXIT_CODE["integrity"]
_INTERRUPTED: Final = EXIT_CODE["interrupted"]
_BUG: Final = EXIT_CODE["internal"]
_TABLE: Final = "ledger_entries"


def run_demo(*, keep: bool = False, out: TextIO | None = None) -> int:
    """Tell the story.

    Args:
        keep: Leave the working folder (about 1 GB) behind, to look at.
        out: Where to tell it; stdout without it.

    Returns:
        0 when every step held, else the exit status of what went wrong.
    """
    told = sys.stdout if out is None else out
    folder = Path(tempfile.mkdtemp(prefix="broker-demo-"))
    act = Stage(folder, told)
    started = time.monotonic()
    try:
        stage.check_installed()
        act.say(f"The working folder is {folder}" + (", which stays." if keep else "; it goes at the end."))
        _tell(act)
        act.say()
        act.say(f"The story held: {act.held} claims in {time.monotonic() - started:.0f} s.")
        return _ALLOWED
    except KeyboardInterrupt:
        act.say("interrupted")
        return _INTERRUPTED
    except BrokerError as exc:
        act.say()
        act.say(f"The story broke off: {exc}" + (f" ({exc.why})" if exc.why else ""))
        act.say(f"The stack's log ends with:\n{act.last_words()}")
        return EXIT_CODE.get(exc.code, _BUG)
    finally:
        act.stop()
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def _tell(act: Stage) -> None:
    _make_samples(act)
    act.act("A broker of your own: an S3 server, a database, keys; all on this machine")
    with act.stack("--workers", "2") as ready:
        act.hold(f"it answers at {ready['url']}, its log is {ready['log']['origin']}", holds=True)
        _enrol_people(act)
        _publish(act)
        _fetch(act)
        _refuse(act)
        _audit(act)
        _tamper(act, Path(ready["database"]))
        act.act("The end")
        act.hold("broker dev stops cleanly on SIGTERM", holds=act.stop() == _ALLOWED)


def _make_samples(act: Stage) -> None:
    # numpy and safetensors are there only where the embedded extra is installed.
    from broker.dev import sample

    act.act("A checkpoint and a dataset, as a training run leaves them")
    shape = sample.ModelShape()
    parameters = sample.make_checkpoint(act.folder / "llama-mini", shape, seed=SEED)
    rows = sample.make_dataset(act.folder / "corpus", rows=ROWS, seed=SEED)
    tiny = sample.ModelShape(vocabulary=2048, hidden=256, inner=704, layers=2, heads=4, shards=1)
    sample.make_checkpoint(act.folder / "frontier", tiny, seed=SEED + 1)
    act.hold(f"llama-mini/: {parameters:,} float16 parameters, {_mib(act.folder / 'llama-mini')}", holds=True)
    act.hold(f"corpus/: {rows:,} rows of text, {_mib(act.folder / 'corpus')}", holds=True)


def _mib(folder: Path) -> str:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return f"{sum(path.stat().st_size for path in files) / 2**20:.0f} MiB in {len(files)} files"


def _enrol_people(act: Stage) -> None:
    act.act("People: each makes a key of their own and enrols it with a one-time code")
    people = {
        "pub": ("--role", "publisher", "--group", "acme"),
        "ana": ("--role", "engineer", "--group", "acme"),
        "eve": ("--role", "engineer"),
        "aud": ("--role", "auditor"),
    }
    for user, options in people.items():
        words = ("admin", "principal", "add", user, *options)
        act.say(f"admin$ broker {' '.join(words)}")
        added = act.run("admin", *words, "-o", "json", aside=True).json()
        # A code is good for one key and one hour; it is not shown all the same.
        code, server = added["enrolment_code"], added["login"].split()[3]
        shown = f"login --server {server} --code {code[:10]}…"
        act.run(
            user,
            *("login", "--server", server, "--code", code),
            shown=shown,
            lines=0,
            claim=f"user:{user} is enrolled",
        )


def _publish(act: Stage) -> None:
    act.act("Publishing: encrypted here, uploaded straight to the store, signed by the publisher")
    act.run("pub", "put", "llama-mini", VERSION, claim="the checkpoint is published", live=True)
    act.run("pub", "put", "corpus", CORPUS, "--kind", "dataset", claim="the dataset is published", live=True)
    critical = ("put", "frontier", CRITICAL, "--label", "tier=critical")
    act.run("pub", *critical, claim="a critical checkpoint is published", live=True)


def _fetch(act: Stage) -> None:
    from broker.dev import sample

    act.act("Fetching: asked, decided, recorded, then served; lease by lease")
    act.run("ana", "ls", "acme")
    words = ("get", VERSION, "ckpt", "--purpose", PURPOSE)
    act.run("ana", *words, claim="the checkpoint is here", live=True)
    act.run("ana", "get", CORPUS, "data", claim="the dataset is here", live=True)
    for original, copy in (("llama-mini", "ckpt"), ("corpus", "data")):
        same = _digests(act.folder / original) == _digests(act.folder / copy)
        act.hold(f"{copy}/ is byte for byte {original}/ (SHA-256 of every file)", holds=same)
    loaded = sample.load_checkpoint(act.folder / "ckpt")
    whole = loaded.parameters == sample.ModelShape().parameters
    act.hold(f"it loads: {loaded.tensors} tensors, {loaded.parameters:,} parameters", holds=whole)


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file, by its path; the client's own ``.broker`` is left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and name.parts[0] != ".broker":
            with open(path, "rb") as file:
                found[str(name)] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _refuse(act: Stage) -> None:
    act.act("Refusing: a stranger does not even learn that it exists")
    act.run("eve", "get", VERSION, "loot", expect=_INVISIBLE, claim="eve finds nothing there")
    act.hold("nothing was written", holds=not (act.folder / "loot").exists())
    act.run(
        "ana", "get", CRITICAL, "frontier-copy", expect=_DENIED, claim="critical needs more than one person"
    )
    act.hold("nothing was written", holds=not (act.folder / "frontier-copy").exists())


def _audit(act: Stage) -> None:
    act.act("Auditing: who touched what, when, why, under which policy; and is that all?")
    act.run("aud", "ledger", "search", f"artifact:{MODEL}")
    act.run("aud", "ledger", "search", "decision:deny")
    denied = _search(act, "decision:deny")
    named = {row["artifact"] for row in denied} >= {MODEL, CRITICAL.partition("@")[0]}
    act.hold("both refusals are on record", holds=named)
    act.run("aud", "ledger", "verify", claim="the whole log verifies")
    index = _grant_of_ana(act)["index"]
    act.hold(f"ana's read is entry {index}", holds=index > 0)
    act.run("aud", "ledger", "prove", str(index), "--out", "evidence.tlog-proof", lines=1)
    act.run(
        "aud", "ledger", "verify-receipt", "evidence.tlog-proof", lines=1, claim="the proof holds offline"
    )


def _search(act: Stage, query: str) -> list[dict[str, Any]]:
    found = act.run("aud", "ledger", "search", query, "-o", "json", aside=True).json()
    rows: list[dict[str, Any]] = found["entries"]
    return rows


def _grant_of_ana(act: Stage) -> dict[str, Any]:
    rows = [
        row for row in _search(act, f"actor:ana artifact:{MODEL} type:grant") if row["decision"] == "allow"
    ]
    if len(rows) != 1:
        raise StoryFailed(f"the log has {len(rows)} grants of ana's read, not one")
    return rows[0]


def _tamper(act: Stage, database: Path) -> None:
    act.act("Tampering: somebody with the database makes it another person's read")
    index = int(_grant_of_ana(act)["index"])
    act.say(f"dba$ sqlite3 {stage.STACK}/{database.name} 'DROP TRIGGER ...; UPDATE ...'")
    _rewrite_entry(database, index, b'"user:ana"', b'"user:bob"')
    done = act.run("aud", "ledger", "verify", "-o", "json", expect=_INTEGRITY, claim="the auditor finds out")
    act.hold(f"and it names the entry: {index}", holds=done.json().get("first_bad_index") == index)


def _rewrite_entry(database: Path, index: int, old: bytes, new: bytes) -> None:
    """Change one stored row as its administrator could: the triggers go first."""
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        triggers = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ?", (_TABLE,)
        ).fetchall()
        for (name,) in triggers:
            connection.execute(f'DROP TRIGGER "{name}"')
        (entry,) = connection.execute(f"SELECT entry FROM {_TABLE} WHERE idx = ?", (index,)).fetchone()  # noqa: S608
        changed = bytes(entry).replace(old, new)
        connection.execute(f"UPDATE {_TABLE} SET entry = ? WHERE idx = ?", (changed, index))  # noqa: S608
