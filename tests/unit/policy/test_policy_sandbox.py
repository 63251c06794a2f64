"""The capped child: what it caps, and that a bundle is the same bundle on both sides."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from broker import canonical, limits, sandbox
from broker.errors import InvalidRequest, Unavailable
from broker.policy.bundle import Bundle, bundle_bytes
from broker.policy.engine import PolicyEngine
from broker.policy.sandbox import MODULE, check, parse_report
from broker.sandbox import run_capped

MEMORY = 256 * limits.MIB


@pytest.fixture
def child_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """A module for the child to run, made of the body of its ``check``."""
    monkeypatch.setattr(sandbox, "_ROOT", f"{sandbox._ROOT}{os.pathsep}{tmp_path}")

    def make(body: str) -> str:
        lines = "".join(f"    {line}\n" for line in body.splitlines())
        (tmp_path / "capped_child.py").write_text(f"import os, sys, time\n\ndef check(data):\n{lines}")
        return "capped_child"

    return make


def test_the_child_answers(child_module: Callable[[str], str]) -> None:
    module = child_module("return data[::-1]")
    assert run_capped(module, b"abc\x00\xff", seconds=10, memory=MEMORY) == b"\xff\x00cba"


def test_the_child_sees_no_environment(
    child_module: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKER_SECRET", "hunter2")
    module = child_module("return repr(sorted(os.environ)).encode()")
    seen = run_capped(module, b"", seconds=10, memory=MEMORY)
    assert set(eval(seen)) <= {"PYTHONPATH", "LC_CTYPE"}


@pytest.mark.parametrize(
    "body",
    [
        "os.kill(os.getpid(), 11)",
        "os.abort()",
        "sys.exit(3)",
        "raise ValueError",
        "return None",
        "return bytearray(300 << 20)",
        f"return b'x' * ({limits.MAX_CAPPED_OUTPUT} + 1)",
        "return open(os.devnull).fileno() and [open(os.devnull) for _ in range(100)]",
    ],
)
def test_a_child_that_fails_is_a_refusal(child_module: Callable[[str], str], body: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot be parsed"):
        run_capped(child_module(body), b"", seconds=10, memory=MEMORY)


def test_an_answer_may_be_as_long_as_the_limit(child_module: Callable[[str], str]) -> None:
    module = child_module(f"return b'x' * {limits.MAX_CAPPED_OUTPUT}")
    answer = run_capped(module, b"", seconds=10, memory=MEMORY)
    assert len(answer) == limits.MAX_CAPPED_OUTPUT


def test_a_child_that_hangs_is_killed_with_what_it_started(
    child_module: Callable[[str], str], tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    pids.touch()
    body = f"""pid = os.fork()
fd = os.open({str(pids)!r}, os.O_WRONLY | os.O_APPEND)
os.write(fd, b"%d\\n" % os.getpid())
time.sleep(600)"""
    begun = time.monotonic()
    with pytest.raises(InvalidRequest) as caught:
        run_capped(child_module(body), b"", seconds=1.5, memory=MEMORY)
    assert caught.value.why == "checking it took too long"
    assert time.monotonic() - begun < 10
    for pid in map(int, pids.read_text().split()):
        assert ended(pid), pid


def ended(pid: int) -> bool:
    """Whether the process is gone, or goes now: its killing is not acknowledged to us."""
    try:
        watch = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([watch], [], [], 10)[0])
    finally:
        os.close(watch)


def test_no_process_is_no_answer(child_module: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    module = child_module("return b''")
    monkeypatch.setattr("sys.executable", "/no/such/python")
    with pytest.raises(Unavailable):
        run_capped(module, b"", seconds=1, memory=MEMORY)


# -- a bundle in the child ----------------------------------------------------------------------------


def test_a_valid_bundle_is_reported(default_bundle: Bundle, engine: PolicyEngine) -> None:
    answer = run_capped(
        MODULE,
        bundle_bytes(default_bundle),
        seconds=limits.POLICY_PARSE_SECONDS,
        memory=limits.POLICY_PARSE_MEMORY,
    )
    assert answer == check(bundle_bytes(default_bundle))
    report = parse_report(answer, default_bundle)
    assert report.bundle == default_bundle.digest
    assert report.policies == engine.policies


def test_an_invalid_bundle_is_refused_in_the_childs_words(bundle_of: Callable[[str], Bundle]) -> None:
    bundle = bundle_of('@id("a") permit (principal, action, resource) when { resource.nothing };')
    with pytest.raises(InvalidRequest) as caught:
        parse_report(check(bundle_bytes(bundle)), bundle)
    assert "nothing" in (caught.value.why or "")


def test_bytes_that_are_no_bundle_are_reported_too(default_bundle: Bundle) -> None:
    with pytest.raises(InvalidRequest):
        parse_report(check(b"\xff"), default_bundle)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        canonical.canonical_bytes(
            {"schema": "broker/policy-report/v1", "bundle": "sha256:0", "policies": []}
        ),
        canonical.canonical_bytes({"schema": "broker/policy-report/v2", "what": "x", "why": ""}),
    ],
)
def test_an_answer_that_is_no_report_on_this_bundle_is_a_refusal(
    default_bundle: Bundle, answer: bytes
) -> None:
    with pytest.raises(InvalidRequest):
        parse_report(answer, default_bundle)
