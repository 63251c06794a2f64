"""The README and the pages beside it: what they tell a reader to run, runs."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from broker import Client
from broker.config import Settings

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
DEPLOY = (ROOT / "docs" / "operations" / "deploy.md").read_text()


def blocks(text: str, kind: str) -> list[str]:
    """Fenced blocks whose first line is ``kind``."""
    return re.findall(rf"^```{re.escape(kind)}\n(.*?)^```$", text, flags=re.S | re.M)


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_blocks_marked_as_running_run() -> None:
    found = blocks(README, "python runs")
    assert found
    for code in found:
        done = run(code)
        assert done.returncode == 0, done.stderr


def test_the_receipt_of_the_example_is_really_checked() -> None:
    (code,) = blocks(README, "python runs")
    forged = code.replace('["text"]', '["text"].replace("index 0", "index 1")')
    assert forged != code
    done = run(forged)
    assert done.returncode != 0
    assert "IntegrityFailure" in done.stderr


def test_calls_of_the_example_fit_the_sdk() -> None:
    """Every ``client.NAME(...)`` of the README binds to a method of that name."""
    calls = [
        node
        for code in blocks(README, "python")
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id in ("client", "Client")
    ]
    assert {node.func.attr for node in calls if isinstance(node.func, ast.Attribute)} >= {
        "from_profile",
        "fetch",
        "open",
    }
    for node in calls:
        assert isinstance(node.func, ast.Attribute)
        method = inspect.getattr_static(Client, node.func.attr)
        plain = method.__func__ if isinstance(method, classmethod) else method
        named = {keyword.arg: None for keyword in node.keywords if keyword.arg}
        inspect.signature(plain).bind(None, *node.args, **named)


def test_the_targets_of_make_exist() -> None:
    made = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    named = set(
        re.findall(r"\bmake ([a-z-]+)", "".join(re.findall(r"^```\n.*?^```$", README, flags=re.S | re.M)))
    )
    assert {"setup", "demo"} <= named <= made


def test_the_extras_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = re.findall(r"pip install '?model-access-broker(?:\[(\w+)\])?", README)
    assert "" in named
    assert {name for name in named if name} <= set(project["optional-dependencies"])
    assert project["scripts"] == {"broker": "broker.cli:main"}


def test_the_place_of_the_demo_is_marked() -> None:
    assert README.count("<!-- demo-output -->") == README.count("<!-- /demo-output -->") == 1


# -- deploying --------------------------------------------------------------------------------------------


def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    from broker.config import load_settings

    (toml,) = blocks(DEPLOY, "toml")
    path = tmp_path / "broker.toml"
    path.write_text(toml)
    path.chmod(0o600)
    for name in list(os.environ):
        if name.startswith("BROKER_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("BROKER_CONFIG", str(path))
    return load_settings()


def test_the_settings_of_the_deployment_are_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = deployment(tmp_path, monkeypatch)
    assert settings.mode == "production"
    assert settings.keys.folder == Path("/etc/broker/keys")
    assert settings.keys.custody == "vault"


def test_the_settings_of_the_deployment_are_not_refused_for_what_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Production would start on them, given the facts that it asks for."""
    from broker.config import Facts, find_refusals

    settings = deployment(tmp_path, monkeypatch)
    facts = Facts(
        home=Path("/nonexistent"), dev_keys=False, equal_keys=False, can_change_ledger=False, admins=1
    )
    assert {refusal.code for refusal in find_refusals(settings, facts)} == {
        "store-credentials"
    }  # the page has dots there


def test_the_port_of_the_image_is_the_default_one() -> None:
    from broker.config import Settings

    image = (ROOT / "Dockerfile").read_text()
    default = Settings.model_fields["port"].default
    assert f"EXPOSE {default}\n" in image
    assert f"'BROKER_PORT', '{default}'" in image
