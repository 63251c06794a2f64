"""The ceremony after a loss, step by step as docs/operations/rollback.md has it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker.ledger import note
from tests.e2e.running import PROGRAM, Stack, environment

NEW = "recovered.example/log"


def refused(stack: Stack) -> str:
    """What a stack says that does not start."""
    done = subprocess.run(
        [*PROGRAM, "dev", "--home", str(stack.home), *stack.options],
        env=environment(**stack.env),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 6, done.stderr
    return done.stderr


def test_a_log_that_lost_entries_goes_on_under_a_new_name(
    new_stack: Callable[..., Stack], tmp_path: Path
) -> None:
    stack = new_stack("--workers", "1")
    ana, aud = stack.add("ana", "--role", "engineer"), stack.add("aud", "--role", "auditor")
    database = stack.home / "broker.db"
    assert stack.stop() == 0
    shutil.copy(database, tmp_path / "backup.db")
    stack.start()
    ana.cli("can", "acme/a@v1", expect=5)
    ana.cli("ledger", "checkpoint")
    seen = int((ana.profile / "treehead").read_text().split("\n")[1])
    assert stack.stop() == 0
    for path in stack.home.glob("broker.db*"):
        path.unlink()
    shutil.copy(tmp_path / "backup.db", database)
    assert "does not extend" in refused(stack)

    state = json.loads((stack.home / "dev.json").read_text())
    former = state["log_origin"]
    (stack.home / "dev.json").write_text(json.dumps({**state, "log_origin": NEW}))
    settings = {"BROKER_CONFIG": str(stack.home / "broker.toml"), "BROKER_LOG_ORIGIN": NEW}
    made = stack.admin.cli("admin", "new-origin", "--reason", "disk lost", "-o", "json", **settings).json()
    assert made["former"]["origin"] == former
    assert made["known"]["size"] >= seen > made["former"]["size"]
    stack.start()
    assert stack.ready["log"] == {"origin": NEW, "vkey": made["vkey"]}

    # Nobody is led over without knowing.
    told = ana.cli("can", "acme/a@v1", expect=6)
    assert "broker ledger pin" in told.err
    impostor = note.vkey(NEW, Ed25519PrivateKey.generate().public_key())
    ana.cli("ledger", "pin", impostor, "--accept-loss", expect=6)
    assert "lost" not in ana.cli("ledger", "pin", made["vkey"], expect=6).out
    pinned = ana.cli("ledger", "pin", made["vkey"], "--accept-loss", "-o", "json").json()
    assert pinned["former"].startswith(former)
    assert pinned["lost"]
    ana.cli("can", "acme/a@v1", expect=5)
    # The auditor's profile had seen nothing that was lost.
    assert aud.cli("ledger", "pin", made["vkey"], "-o", "json").json()["lost"] is None
    assert aud.cli("ledger", "verify", "--full", "-o", "json").json()["ok"] is True
    rows = aud.cli("ledger", "search", "type:origin", "-o", "json").json()["entries"]
    assert [row["index"] for row in rows] == [made["index"]]
    aud.cli("ledger", "export", "--out", tmp_path / "log")
    aud.cli("ledger", "verify-export", tmp_path / "log")
