"""``broker exec`` as it is used: a real command beside a real agent."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.e2e.agents import agent
from tests.e2e.running import MIB, PROGRAM, Stack, User, noise, write_tree
from tests.outside import tool_env

FILES = {"config.json": b"{}", "weights.bin": noise(20 * MIB + 5, "exec")}
SHOW = "import json, os; print(json.dumps(dict(os.environ)))"
STUBBORN = """
import json, os, signal
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
print(json.dumps({"pid": os.getpid(), "agent": os.getppid(), "env": dict(os.environ)}), flush=True)
while True:
    signal.pause()
"""
NOBODY = 65534


@pytest.fixture(scope="module", autouse=True)
def _published(pub: User, tmp_path_factory: pytest.TempPathFactory) -> None:
    pub.cli("put", write_tree(tmp_path_factory.mktemp("exec") / "t", FILES), "acme/exec@v1")


def python(code: str) -> tuple[str, ...]:
    return ("--", sys.executable, "-c", code)


@contextmanager
def running(user: User, *words: str, **env: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """``broker exec WORDS``, and what its command said first, as JSON."""
    with subprocess.Popen(
        [*PROGRAM, "exec", *words],
        env=user.env(**env),
        cwd=user.stack.home,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


def await_gone(pid: int) -> None:
    try:
        found = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([found], [], [], 30)[0], f"process {pid} is still there"
    finally:
        os.close(found)


# -- the command ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 3, 130])
def test_the_commands_exit_status_is_ours(ana: User, status: int) -> None:
    ana.cli("exec", "--", "sh", "-c", f"exit {status}", expect=status)


def test_a_command_that_a_signal_ended(ana: User) -> None:
    ana.cli("exec", "--", "sh", "-c", "kill -9 $$", expect=128 + signal.SIGKILL)


def test_a_command_that_is_not_there_or_cannot_be_executed(ana: User, tmp_path: Path) -> None:
    done = ana.cli("exec", "--", "no-such-command", expect=127)
    assert "error: no-such-command: the command is not found" in done.err
    (tmp_path / "plain").write_text("x")
    done = ana.cli("exec", "--", tmp_path / "plain", expect=126)
    assert "the command cannot be executed" in done.err


def test_options_after_the_command_are_the_commands(ana: User) -> None:
    done = ana.cli("exec", "echo", "-o", "json", "--help", "--", "x")
    assert done.out == "-o json --help -- x\n"


def test_a_command_is_needed(ana: User) -> None:
    ana.cli("exec", "--", expect=2)


def test_input_and_output_are_the_commands(ana: User) -> None:
    data = noise(MIB, "pipe")
    done = subprocess.run(
        [*PROGRAM, "exec", "--", "cat"],
        env=ana.env(),
        input=data,
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, data, b"")


def test_no_profile_no_command(ana: User, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    done = ana.cli("exec", "--profile", "none", "--", "touch", begun, expect=2, XDG_CONFIG_HOME=str(tmp_path))
    assert "there is no profile" in done.err
    assert not begun.exists()


def test_a_refused_login_is_told_before_the_command_starts(stack: Stack, tmp_path: Path) -> None:
    ron = stack.add("ron", "--role", "engineer", "--group", "acme")
    stack.admin.cli("admin", "principal", "disable", "ron")
    begun = tmp_path / "begun"
    ron.cli("exec", "--", "touch", begun, expect=4)
    assert not begun.exists()


# -- its environment --------------------------------------------------------------------------------------


def test_a_command_is_led_to_the_agent_and_nowhere_else(ana: User) -> None:
    mine = {"AWS_PROFILE": "mine", "AWS_SESSION_TOKEN": "mine", "HF_TOKEN": "mine", "AWS_ROLE_ARN": "mine"}
    found = ana.cli("exec", *python(SHOW), **mine, NO_PROXY="a.example", KEEP="mine").json()
    assert {name for name, value in found.items() if value == "mine"} == {"KEEP"}
    assert found["NO_PROXY"].split(",") == ["a.example", "127.0.0.1"]
    for name in ("HF_ENDPOINT", "AWS_ENDPOINT_URL_S3"):
        assert urlsplit(found[name]).hostname == "127.0.0.1"
    assert found["HF_TOKEN"] != found["AWS_SECRET_ACCESS_KEY"]
    assert min(len(found["HF_TOKEN"]), len(found["AWS_SECRET_ACCESS_KEY"])) >= 43, "256 bits"


def test_secrets_are_of_one_start_only(ana: User) -> None:
    first, second = (ana.cli("exec", *python(SHOW)).json() for _ in range(2))
    assert first["HF_TOKEN"] != second["HF_TOKEN"]
    assert first["AWS_SECRET_ACCESS_KEY"] != second["AWS_SECRET_ACCESS_KEY"]


def test_tools_of_both_kinds_read_past_a_proxy(stack: Stack, ana: User, tmp_path: Path) -> None:
    code = (
        "import boto3, hashlib, json\n"
        "from huggingface_hub import hf_hub_download\n"
        "one = open(hf_hub_download('acme/exec', 'weights.bin'), 'rb').read()\n"
        "two = boto3.client('s3').get_object(Bucket='acme', Key='exec@v1/weights.bin')['Body'].read()\n"
        "print(json.dumps([hashlib.sha256(data).hexdigest() for data in (one, two)]))\n"
    )
    before = stack.size()
    with socket.create_server(("127.0.0.1", 0)) as dead:
        proxy = f"http://127.0.0.1:{dead.getsockname()[1]}"
        nowhere = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"), proxy)
        words = ("--purpose", "both kinds", "--", tool_env("torch"), "-c", code)
        found = ana.cli("exec", *words, HF_HOME=str(tmp_path), **nowhere)
    assert found.json() == [hashlib.sha256(FILES["weights.bin"]).hexdigest()] * 2
    grants = [entry for entry in stack.entries()[before:] if entry["type"] == "grant"]
    assert {(entry["artifact"], entry["purpose"]) for entry in grants} == {("acme/exec", "both kinds")}


# -- signals and ends -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda n: n.name)
def test_signals_are_the_commands(ana: User, number: signal.Signals) -> None:
    code = (
        "import json, signal\n"
        "wanted = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, wanted)\n"
        "print(json.dumps({}), flush=True)\n"
        "raise SystemExit(40 + signal.sigwait(wanted))\n"
    )
    with running(ana, *python(code)) as (process, _):
        process.send_signal(number)
        assert process.wait(30) == 40 + number


def test_a_command_does_not_outlive_a_killed_agent(ana: User) -> None:
    with running(ana, *python(STUBBORN)) as (process, said):
        assert said["agent"] == process.pid
        process.kill()
        await_gone(said["pid"])


def test_the_endpoints_end_with_the_command(ana: User) -> None:
    found = ana.cli("exec", *python(SHOW)).json()
    for name in ("HF_ENDPOINT", "AWS_ENDPOINT_URL_S3"):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", urlsplit(found[name]).port), timeout=10)


def test_an_agent_ends_within_seconds_in_the_middle_of_a_transfer(ana: User) -> None:
    with agent(ana) as served:
        connection = http.client.HTTPConnection(urlsplit(served.urls["hf"]).netloc, timeout=30)
        secret = {"Authorization": f"Bearer {served.export['HF_TOKEN']}"}
        connection.request("GET", "/acme/exec/resolve/v1/weights.bin", headers=secret)
        answer = connection.getresponse()
        assert (answer.status, answer.read(1)) == (200, FILES["weights.bin"][:1])
        os.kill(served.pid, signal.SIGTERM)
        await_gone(served.pid)
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        answer.read()
    connection.close()


# -- what is kept in --------------------------------------------------------------------------------------


def test_the_agent_leaves_no_core_and_its_command_has_the_users_limit(ana: User) -> None:
    soft = ("sh", "-c", 'ulimit -S -c 16; exec "$@"', "sh")
    with subprocess.Popen(
        [*soft, *PROGRAM, "exec", *python(STUBBORN)],
        env=ana.env(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            said = json.loads(process.stdout.readline())
            assert core_limit(said["agent"]) == "0"
            assert core_limit(said["pid"]) == str(16 * 512)
        finally:
            process.kill()


def core_limit(pid: int) -> str:
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return next(line.split()[4] for line in lines if line.startswith("Max core file size"))


def test_no_secret_on_a_command_line_or_in_the_agents_own_environment(ana: User) -> None:
    with running(ana, *python(STUBBORN)) as (process, said):
        secrets = [said["env"][name].encode() for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY")]
        for name in ("cmdline", "environ"):
            found = Path(f"/proc/{process.pid}/{name}").read_bytes()
            assert found
            assert not [secret for secret in secrets if secret in found]
        assert not [
            secret for secret in secrets if secret in Path(f"/proc/{said['pid']}/cmdline").read_bytes()
        ]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user of the machine")
def test_another_user_of_the_machine_gets_nothing(ana: User) -> None:
    with running(ana, *python(STUBBORN)) as (_, said):
        hub = said["env"]["HF_ENDPOINT"], "/acme/exec/resolve/v1/config.json"
        s3 = said["env"]["AWS_ENDPOINT_URL_S3"], "/acme/exec@v1/config.json"

        def look() -> list[Any]:
            found: list[Any] = []
            for url, path in (hub, s3):
                connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
                for method in ("GET", "HEAD"):
                    connection.request(method, path)
                    answer = connection.getresponse()
                    found.append([answer.status, answer.read() == b"{}"])
            for pid in (said["agent"], said["pid"]):
                for name in ("environ", "mem"):
                    try:
                        Path(f"/proc/{pid}/{name}").open("rb").close()
                    except PermissionError:
                        found.append("refused")
            return found

        *answers, a, b, c, d = as_nobody(look)
    assert (a, b, c, d) == ("refused",) * 4
    assert [status for status, _ in answers] == [401, 401, 403, 403]
    assert not [told for _, told in answers if told]


def as_nobody(function: Callable[[], Any]) -> Any:
    """What a function returns in a process of the user ``nobody``."""
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        status = 1
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            os.write(writing, json.dumps(function()).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        data = file.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return json.loads(data)
