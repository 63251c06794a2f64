"""``broker forward`` as operators run it: two processes, one killed while it sends, and nothing skipped."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from broker.config import CONFIG_VARIABLE, load_settings
from broker.drafts import Draft
from broker.services.record import new_entry
from broker.wiring import Wired, create_keys, migrate_and_found, open_house
from tests.cli.served import run
from tests.e2e.running import PROGRAM, environment
from tests.receivers import SECRET, SyslogServer, WebhookServer, make_authority, wait_for, webhook

SETTINGS = """
mode = "dev"
log_origin = "test.example/log"
public_urls = ["http://127.0.0.1:9"]
database_url = "sqlite:///{folder}/broker.db"

[store]
endpoint = "http://127.0.0.1:9"
bucket = "b"
access_key = "a"
secret_key = "s"

[keys]
folder = "{folder}/keys"

[[forward]]
name = "soc"
kind = "webhook"
url = "{url}"
secret_file = "{folder}/webhook.secret"
format = "jsonl"
batch = 9
timeout = 0.5

[[forward]]
name = "siem"
kind = "syslog"
url = "tls://127.0.0.1:{port}"
ca_file = "{folder}/ca/ca.pem"
format = "jsonl"
batch = 9
timeout = 0.5

[[forward]]
name = "lake"
kind = "file"
path = "{folder}/out.jsonl"
batch = 9
timeout = 0.5
"""


class Site:
    """A broker's server with three destinations, and the processes that forward to them."""

    def __init__(self, folder: Path, hook: WebhookServer, syslog: SyslogServer) -> None:
        self.folder, self.hook, self.syslog = folder, hook, syslog
        self.config = folder / "broker.toml"
        self.config.write_text(SETTINGS.format(folder=folder, url=hook.url, port=syslog.port))
        self.config.chmod(0o600)
        (folder / "webhook.secret").write_text(f"{SECRET}\n")
        (folder / "webhook.secret").chmod(0o600)
        create_keys(folder / "keys")
        self.house: Wired

    def grow(self, count: int) -> int:
        house = self.house.house
        for at in range(count):
            entry = new_entry(house, time=house.clock.now(), type="abandon", upload=f"u_{at}")
            house.ledger.append(Draft(entries=(entry,)))
        with house.ledger.view() as view:
            return view.tail().size

    @contextlib.contextmanager
    def forwarding(self) -> Iterator[subprocess.Popen[str]]:
        process = subprocess.Popen(
            [*PROGRAM, "forward"],
            env=environment(BROKER_CONFIG=str(self.config)),
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            assert process.stderr is not None
            process.stderr.close()

    def run(self, *words: str) -> Result:
        return run("forward", *words, env={CONFIG_VARIABLE: str(self.config)})

    def status(self) -> dict[str, Any]:
        done = self.run("--status", "-o", "json")
        assert done.exit_code == 0, done.stderr
        return {row["name"]: row for row in json.loads(done.stdout)["destinations"]}

    def lines(self) -> list[int]:
        path = self.folder / "out.jsonl"
        data = path.read_bytes() if path.exists() else b""
        # The last line may be under way.
        whole = data[: data.rfind(b"\n") + 1].splitlines()
        return [json.loads(line)["metadata"]["sequence"] for line in whole]

    def arrived(self) -> dict[str, list[int]]:
        return {"soc": self.hook.indices, "siem": self.syslog.indices, "lake": self.lines()}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    for name in [name for name in os.environ if name.startswith("BROKER_")]:
        monkeypatch.delenv(name)
    certificate = make_authority(tmp_path / "ca").issue("127.0.0.1")
    syslog = SyslogServer(certificate=certificate)
    with webhook() as hook:
        made = Site(tmp_path, hook, syslog)
        monkeypatch.setenv(CONFIG_VARIABLE, str(made.config))
        settings = load_settings()
        migrate_and_found(settings)
        made.house = open_house(settings)
        yield made
        made.house.close()
    syslog.close()


def first_arrivals(indices: list[int]) -> list[int]:
    return list(dict.fromkeys(indices))


def test_a_forwarder_that_is_killed_skips_nothing(site: Site) -> None:
    size = site.grow(100)
    with site.forwarding() as first:
        # Killed in the worst moment: the receiver has a batch, and its answer was not heard.
        taken = threading.Event()

        def kill(handler: Any) -> None:
            first.send_signal(signal.SIGKILL)
            first.wait(20)
            taken.set()

        site.hook.answers = [204, 204, kill]
        with site.forwarding():
            assert taken.wait(30)
            size = site.grow(100)
            wait_for(lambda: all(set(found) == set(range(size)) for found in site.arrived().values()))
            shown = site.status()
    for name, found in site.arrived().items():
        assert first_arrivals(found) == list(range(size)), name
        assert (shown[name]["lag"], shown[name]["error"]) == (0, ""), name
        assert shown[name]["state"] == "sending", name


def test_the_commands_of_an_operator(site: Site) -> None:
    size = site.grow(20)
    shown = site.status()
    assert {row["state"] for row in shown.values()} == {"new"}
    site.hook.answers = [500]
    done = site.run("--once")
    assert done.exit_code == 9
    assert "answers 500" in done.stderr
    assert (site.lines(), site.syslog.indices) == (list(range(size)), list(range(size)))
    shown = site.status()
    assert [shown[name]["lag"] for name in ("soc", "siem", "lake")] == [size, 0, 0]
    assert shown["soc"]["failures"] == 1
    told = site.run("--status")
    assert told.stdout.split()[:5] == ["DESTINATION", "KIND", "STATE", "NEXT", "LAG"]
    assert "soc: the receiver answers 500; nothing delivered yet" in told.stderr
    assert site.run("--once", "--to", "soc").exit_code == 0
    assert site.hook.indices == list(range(size))
    assert site.run("--to", "lake", "--rewind", str(size - 2)).exit_code == 0
    assert site.run("--to", "lake", "--rewind", str(size - 1)).exit_code == 2
    assert site.run("--once").exit_code == 0
    assert site.lines() == [*range(size), size - 2, size - 1]
    assert site.run("--to", "nobody", "--status").exit_code == 5
    with site.forwarding() as process:
        assert process.stderr is not None
        assert "forwarding to soc, siem, lake" in process.stderr.readline()
        size = site.grow(5)
        wait_for(lambda: site.hook.indices[-1] == site.syslog.indices[-1] == size - 1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert {row["state"] for row in site.status().values()} == {"stopped"}
    assert SECRET not in site.config.read_text()
