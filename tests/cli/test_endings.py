"""How a command ends: the exit status of every error, what is told, and what is kept of a bug."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import click
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker import errors, jose
from broker.cli.command import BrokerCommand
from broker.cli.root import error_text, run
from broker.client.settings import Profile, save_profile
from broker.errors import ERROR_CLASS, EXIT_CODE
from broker.ledger import note

ROOT = Path(__file__).resolve().parents[2]
SECRET = "https://store/x?X-Amz-Signature=0123456789abcdef"


def failing(exc: BaseException) -> click.Command:
    def fail() -> None:
        raise exc

    return BrokerCommand("fail", callback=fail)


def test_an_error_has_exactly_this_form() -> None:
    told = error_text(
        "read of acme/llama-7b@step-1000 is denied",
        3,
        why='policy "critical-needs-approval" (policies/tiers.cedar)',
        next='broker request new acme/llama-7b@step-1000 --reason "..."',
    )
    assert told == (
        "error: read of acme/llama-7b@step-1000 is denied"
        "                                    (exit 3)\n"
        '  why:  policy "critical-needs-approval" (policies/tiers.cedar)\n'
        '  next: broker request new acme/llama-7b@step-1000 --reason "..."\n'
    )


def test_an_error_without_reasons_is_one_line() -> None:
    assert error_text("x" * 200, 2, why=None, next=None) == f"error: {'x' * 200}  (exit 2)\n"


def test_an_error_cannot_steer_the_terminal_or_fake_a_line() -> None:
    told = error_text("a\x1b[2J\nerror: b", 3, why="c\nerror: d\u202e", next=None)
    assert told.splitlines()[0].startswith("error: a\\x1b[2J\\nerror: b")
    assert told.splitlines()[1:] == ["  why:  c", "        error: d\\u202e"]


@pytest.mark.parametrize("code", sorted(EXIT_CODE))
def test_each_code_ends_with_its_status(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    exc = ERROR_CLASS[code]("it went wrong", why="because", next="broker whoami")
    status = run(failing(exc), [])
    told = capsys.readouterr()
    assert status == EXIT_CODE[code]
    assert told.out == ""
    assert told.err == error_text("it went wrong", status, why="because", next="broker whoami")


def test_the_statuses_are_those_of_the_contract() -> None:
    expected = {
        errors.InternalError: 1,
        errors.UsageError: 2,
        errors.ConfigurationError: 2,
        errors.Conflict: 2,
        errors.TooLarge: 2,
        errors.UnsupportedMediaType: 2,
        errors.InvalidRequest: 2,
        errors.Denied: 3,
        errors.ScopeExceeded: 3,
        errors.NotAuthenticated: 4,
        errors.ClockSkew: 4,
        errors.NotFound: 5,
        errors.IntegrityFailure: 6,
        errors.RollbackDetected: 6,
        errors.ApprovalNeeded: 7,
        errors.RateLimited: 8,
        errors.OverBudget: 8,
        errors.Unreachable: 9,
        errors.StoreUnavailable: 9,
        errors.LedgerUnavailable: 9,
        errors.PartlyDone: 10,
        errors.DiskFull: 10,
        errors.Interrupted: 130,
    }
    assert {kind: EXIT_CODE[kind.code] for kind in expected} == expected


def test_verbose_names_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    run(failing(errors.Denied("no", why="because")), ["-v"])
    assert "why:  because [denied]" in capsys.readouterr().err


def test_usage_errors_point_to_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(BrokerCommand("get", callback=lambda: None), ["--nope"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: no such option")
    assert "(exit 2)\n" in told
    assert told.endswith("  next: broker --help\n")


def test_a_bug_leaves_an_id_and_places_but_no_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """I11: the text of a foreign exception may hold a URL with its signature."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert run(failing(RuntimeError(SECRET)), []) == 1
    told = capsys.readouterr()
    [kept] = (tmp_path / "broker" / "faults").iterdir()
    assert told.out == ""
    assert "Traceback" not in told.err
    assert f"id {kept.stem}" in told.err
    assert str(kept) in told.err
    text = kept.read_text()
    assert "builtins.RuntimeError" in text
    assert f"{__file__}:" in text
    assert SECRET not in told.err + text
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_a_bug_is_told_in_full_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert run(failing(RuntimeError(SECRET)), ["-v"]) == 1
    told = capsys.readouterr().err
    assert f"{__file__}:" in told
    assert SECRET not in told


def test_a_bug_is_told_even_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert run(failing(RuntimeError("x")), []) == 1
    assert "run it again with -v" in capsys.readouterr().err


@pytest.mark.parametrize("exc", [KeyboardInterrupt(), click.Abort()])
def test_an_interruption_is_130(exc: BaseException, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(failing(exc), []) == 130
    assert "(exit 130)" in capsys.readouterr().err


def test_a_real_interruption_is_130(tmp_path: Path) -> None:
    """SIGINT while a server that took the connection does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        key = jose.PrivateKey.generate("EdDSA")
        origin = "test.example/log"
        profile = Profile(
            folder=tmp_path / "profile",
            server=f"http://127.0.0.1:{silent.getsockname()[1]}",
            principal="user:ana",
            issuer="http://127.0.0.1:9",
            origin=origin,
            vkey=note.vkey(origin, Ed25519PrivateKey.generate().public_key()),
            store_hosts=(),
        )
        save_profile(profile, key)
        process = subprocess.Popen(
            [sys.executable, "-m", "broker", "ledger", "checkpoint"],
            cwd=ROOT,
            env={**os.environ, "BROKER_PROFILE_DIR": str(profile.folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        silent.settimeout(20)
        line, _ = silent.accept()
        with line:
            line.recv(1)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    assert out == ""
    assert err == error_text("interrupted", 130, why=None, next="the same command again is safe")


def test_a_reader_that_leaves_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "broker", "completion", "bash"],
            cwd=ROOT,
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(write)
    assert done.returncode == 141
    assert done.stderr == ""


def test_color_is_for_terminals_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(failing(errors.Denied("no")), [])
    assert "\x1b" not in capsys.readouterr().err
    assert error_text("no", 3, why=None, next=None, color=True).startswith("\x1b[1;31merror:\x1b[0m no")
