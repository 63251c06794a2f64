"""Commands of administrators, launchers and jobs: issuers, minting, exchanging, looking."""

from __future__ import annotations

import csv
import io
import itertools
import json
from pathlib import Path
from typing import Any

import click
import pytest

from broker.cli.issuer import issuer as issuer_group
from broker.cli.options import read_duration, read_size
from broker.cli.token import effective_lines
from broker.client.settings import config_text, load_profile
from broker.runtime import SystemClock
from tests.cli.served import Served, run
from tests.foreign import FakeIssuer
from tests.world import Person

CTX = click.Context(click.Command("x"))
PARAM = click.Option(["--x"])
NUMBER = itertools.count()
MAP = '[[rules]]\nname = "jobs"\nmatch = { project = "llm" }\nprincipal = "{job}"\ngroups = ["acme"]\n'


def fresh() -> FakeIssuer:
    name = f"ci{next(NUMBER)}"
    return FakeIssuer(name, f"https://{name}.example")


def add(served: Served, issuer: FakeIssuer, tmp_path: Path, text: str = MAP) -> Any:
    (tmp_path / "map").write_text(text)
    (tmp_path / "jwks.json").write_text(json.dumps(issuer.jwks()))
    return served.run(
        served.world.admin,
        *("admin", "issuer", "add", issuer.name, "--issuer", issuer.url),
        *("--map", str(tmp_path / "map"), "--jwks", str(tmp_path / "jwks.json")),
    )


def job(served: Served, issuer: FakeIssuer, tmp_path: Path) -> dict[str, str | None]:
    """The environment of a job of this issuer."""
    profile = load_profile(served.profile(served.world.admin))
    (tmp_path / "etc").mkdir()
    text = config_text(profile).replace(f'principal = "{profile.principal}"\n', "")
    (tmp_path / "etc" / "config.toml").write_text(text)
    (tmp_path / "workload").write_text(issuer.token(SystemClock().now()))
    return {
        "BROKER_PROFILE_DIR": str(tmp_path / "etc"),
        "BROKER_TOKEN_FILE": str(tmp_path / "workload"),
        "XDG_RUNTIME_DIR": str(tmp_path),
    }


# -- values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1h", 3600), ("2d", 172_800), (None, None)]
)
def test_durations(text: str | None, seconds: int | None) -> None:
    assert read_duration(CTX, PARAM, text) == seconds


@pytest.mark.parametrize("text", ["", "10", "10 m", "-1m", "0m", "1.5h", "10min", "m"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="10m"):
        read_duration(CTX, PARAM, text)


def test_no_size_is_none() -> None:
    assert read_size(CTX, PARAM, None) is None


# -- issuers ------------------------------------------------------------------------------------------------


def test_an_issuer_is_registered_shown_changed_and_removed(served: Served, tmp_path: Path) -> None:
    issuer, admin = fresh(), served.world.admin
    done = add(served, issuer, tmp_path)
    assert done.exit_code == 0, done.stderr
    assert f"issuer     {issuer.name}" in done.stdout
    assert "broker admin issuer test" in done.stderr
    shown = served.json(admin, "admin", "issuer", "show", issuer.name)
    assert shown["mapping"]["schema"] == "broker/issuer-map/v1"
    assert [key["kid"] for key in shown["keys"]] == [issuer.key.kid]
    lines = served.run(admin, "admin", "issuer", "show", issuer.name).stdout
    assert f"key        {issuer.key.kid} (P-256, ES256)" in lines
    assert 'rule       jobs: {"project": "llm"} -> {job} (workload, group acme)' in lines

    words = ("admin", "issuer", "add", issuer.name, "--issuer", issuer.url, "--audience", "https://other")
    again = served.json(admin, *words, "--jwks", str(tmp_path / "jwks.json"))
    assert again["audience"] == "https://other"
    assert again["mapping"] == shown["mapping"], "without --map the mapping stays"

    assert served.json(admin, "admin", "issuer", "rm", issuer.name)["disabled"] is True
    assert served.run(admin, "admin", "issuer", "show", issuer.name).exit_code == 5
    rows = list(csv.DictReader(io.StringIO(served.run(admin, "admin", "issuer", "ls", "-o", "csv").stdout)))
    assert [row["disabled"] for row in rows if row["name"] == issuer.name] == ["true"]
    assert served.run(admin, "admin", "issuer", "ls").stdout.startswith("ISSUER")


def test_a_mapping_is_toml_or_json(served: Served, tmp_path: Path) -> None:
    rule = {"name": "jobs", "match": {"project": "llm"}, "principal": "{job}"}
    for text in (
        json.dumps({"schema": "broker/issuer-map/v1", "rules": [rule]}),
        json.dumps({"rules": [rule]}),
        'schema = "broker/issuer-map/v1"\n' + MAP,
    ):
        assert add(served, fresh(), tmp_path, text).exit_code == 0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[[rules", "neither TOML nor JSON"),
        ("{", "neither TOML nor JSON"),
        ("", "exactly the members"),
        ('schema = "v2"\n' + MAP, "exactly the members"),
        (MAP.replace('{ project = "llm" }', "{}"), "rule jobs"),
        (MAP.replace('"llm"', "2025-01-01"), ""),
        ("\xff", "neither TOML nor JSON"),
    ],
    ids=range(7),
)
def test_a_mapping_that_is_none_is_refused_before_it_is_sent(
    served: Served, tmp_path: Path, text: str, why: str
) -> None:
    before = served.world.size()
    (tmp_path / "map").write_bytes(text.encode("latin-1"))
    words = ("admin", "issuer", "add", "x", "--issuer", "https://x.example", "--map", str(tmp_path / "map"))
    done = served.run(served.world.admin, *words)
    assert done.exit_code == 2, done.stderr
    assert why in done.stderr
    assert served.world.size() == before


def test_files_that_are_not_there(served: Served, tmp_path: Path) -> None:
    words = ("admin", "issuer", "add", "x", "--issuer", "https://x.example")
    assert served.run(served.world.admin, *words).exit_code == 2
    assert served.run(served.world.admin, *words, "--map", str(tmp_path / "no")).exit_code == 2
    (tmp_path / "map").write_text(MAP)
    (tmp_path / "jwks").write_text("[]")
    done = served.run(
        served.world.admin, *words, "--map", str(tmp_path / "map"), "--jwks", str(tmp_path / "jwks")
    )
    assert "not a JSON object" in done.stderr


def test_a_token_is_tried_from_stdin_and_stays_here(served: Served, tmp_path: Path) -> None:
    issuer, admin = fresh(), served.world.admin
    add(served, issuer, tmp_path)
    text = issuer.token(SystemClock().now())
    words = ("admin", "issuer", "test", issuer.name, "--token-file", "-")
    before = served.world.size()
    done = served.run(admin, *words, input=text + "\n")
    assert done.exit_code == 0, done.stderr
    assert f"principal   workload:{issuer.name}/train" in done.stdout
    issuer.rotate()
    done = served.run(admin, *words, input=issuer.token(SystemClock().now()))
    assert done.exit_code == 4
    assert "no key of that name" in done.stderr
    assert served.world.size() == before
    assert text not in done.stdout + done.stderr
    help_of_file = next(param for param in issuer_group.commands["test"].params if param.name == "token_file")
    assert "stdin" in str(getattr(help_of_file, "help", ""))


# -- jobs and ranks -----------------------------------------------------------------------------------------


def test_whoami_in_a_job(served: Served, tmp_path: Path) -> None:
    issuer = fresh()
    add(served, issuer, tmp_path, MAP + 'attributes = { project = "{project}" }\n')
    env = job(served, issuer, tmp_path)
    done = run("whoami", env=env)
    assert done.exit_code == 0, done.stderr
    assert f"principal  workload:{issuer.name}/train" in done.stdout
    assert f"identity   issuer {issuer.name}, rule jobs; vouched for until " in done.stdout
    assert "attributes project=llm" in done.stdout
    assert (
        f"job with the token in {tmp_path / 'workload'}; kept in {tmp_path / 'etc' / 'jobs'}" in done.stdout
    )
    found = json.loads(run("token", "inspect", "-o", "json", env=env).stdout)
    assert found["identity"]["rule"] == "jobs"
    assert "identity   issuer" in run("token", "inspect", env=env).stdout


def test_an_exchange_by_flag_without_touching_the_profile(served: Served, tmp_path: Path) -> None:
    issuer = fresh()
    add(served, issuer, tmp_path)
    env = job(served, issuer, tmp_path)
    words = ("token", "exchange", "--token-file", str(tmp_path / "workload"), "--scope", "acme/x")
    done = run(*words, "-o", "json", env={**env, "BROKER_TOKEN_FILE": None})
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["principal"] == f"workload:{issuer.name}/train"
    assert found["authorization_details"][0]["identifier"] == "acme/x"
    assert run("token", "exchange", "--scope", "nope", env=env).exit_code == 2
    ana = served.world.add(f"ana{next(NUMBER)}")
    done = served.run(ana, "token", "exchange")
    assert (done.exit_code, "not a workload" in done.stderr) == (2, True)


def test_minting_prints_the_token_and_talks_on_stderr(served: Served, tmp_path: Path) -> None:
    ana: Person = served.world.add(f"ana{next(NUMBER)}")
    words = ("token", "mint", "--scope", "acme/x", "--scope", "broker://acme/y@v1", "--paths", "a*")
    done = served.run(ana, *words, "--max-bytes", "1GiB", "--purpose", "training")
    assert done.exit_code == 0, done.stderr
    found = served.json(ana, "token", "inspect", done.stdout.strip())
    assert [detail["identifier"] for detail in found["limits"][-1]] == ["acme/x", "acme/y@v1"]
    for detail in found["limits"][-1]:
        assert (detail["paths"], detail["max_bytes"], detail["purpose"]) == (["**/a*"], 2**30, "training")
    assert done.stdout.strip() not in done.stderr
    text = served.run(ana, "token", "inspect", "-", input=done.stdout).stdout
    assert "effective  artifact_access: describe, read on acme/x (paths **/a*; purpose training; " in text
    assert "1.00 GiB of 1.00 GiB left of t_" in text
    assert served.run(ana, "token", "mint", "--scope", "x/y", "--out", str(tmp_path / "r"), "-q").stderr == ""


def test_a_key_that_is_there_is_kept(tmp_path: Path) -> None:
    first = run("token", "key", "--out", str(tmp_path / "k.jwk"))
    assert (first.exit_code, len(first.stdout)) == (0, 44)
    assert run("token", "key", "--out", str(tmp_path / "k.jwk")).stdout == first.stdout
    (tmp_path / "k.jwk").chmod(0o640)
    assert run("token", "key", "--out", str(tmp_path / "k.jwk")).exit_code == 2
    assert run("token", "key", "--out", str(tmp_path / "no" / "k.jwk")).exit_code == 2


def test_a_plain_token_has_no_effective_scope_beside_its_own() -> None:
    detail = {"type": "artifact_access", "actions": ["read"], "identifiers": ["*"]}
    assert list(effective_lines({"effective": [detail], "chain": []})) == []
    assert list(effective_lines({"effective": [detail], "chain": ["t_x"]})) == ["artifact_access: read on *"]
    assert list(effective_lines({"effective_complete": False})) == ["and more"]
