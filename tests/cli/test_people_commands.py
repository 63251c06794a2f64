"""``login``, ``whoami``, ``token`` and ``admin``, against a real server."""

from __future__ import annotations

import csv
import io
import json
import shlex
import stat
from pathlib import Path

import pytest

from broker.identity import enrolment
from tests.cli.served import Served, run

WORDS = iter(range(1000))


def fresh(prefix: str = "p") -> str:
    return f"{prefix}{next(WORDS)}"


def test_a_new_principal_logs_in_with_the_printed_command(served: Served, tmp_path: Path) -> None:
    name = fresh()
    made = served.json(served.world.admin, "admin", "principal", "add", name, "--group", "nlp")
    assert list(made) == ["id", "roles", "groups", "enrolment_code", "expires_at", "login"]
    assert (made["id"], made["roles"], made["groups"]) == (f"user:{name}", ["engineer"], ["nlp"])
    assert made["login"] == f"broker login --server {served.url} --code {made['enrolment_code']}"

    folder = tmp_path / "profile"
    env = {"BROKER_PROFILE_DIR": str(folder)}
    done = run(*shlex.split(made["login"])[1:], "--json", env=env)
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["principal"], found["profile"]) == (f"user:{name}", str(folder))
    assert stat.S_IMODE((folder / "key.jwk").stat().st_mode) == 0o600
    assert done.stderr == "enrolled; next: broker whoami\n"

    who = json.loads(run("whoami", "--json", env=env).stdout)
    assert who["principal"]["groups"] == ["nlp"]
    assert who["jkt"] == found["jkt"]

    again = run(*shlex.split(made["login"])[1:], env={"BROKER_PROFILE_DIR": str(tmp_path / "second")})
    assert again.exit_code == 4, "a code works once"
    assert made["enrolment_code"] not in again.stdout + again.stderr
    taken = run(*shlex.split(made["login"])[1:], env=env)
    assert taken.exit_code == 2, "a profile is never replaced"


def test_the_text_of_a_new_principal_has_the_code_and_the_command(served: Served) -> None:
    done = served.run(served.world.admin, "admin", "principal", "add", fresh(), "--role", "auditor")
    code = next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("code"))
    assert f"  broker login --server {served.url} --code {code}" in done.stdout.splitlines()


def test_login_by_name_and_with_the_code_on_stdin(served: Served, tmp_path: Path) -> None:
    made = served.json(served.world.admin, "admin", "principal", "add", fresh())
    env = {"XDG_CONFIG_HOME": str(tmp_path)}
    words = ("login", "--server", served.url, "--code", "-", "--profile", "work")
    assert run(*words, env=env, input=made["enrolment_code"] + "\n").exit_code == 0
    assert (tmp_path / "broker" / "profiles" / "work" / "config.toml").exists()
    assert run("whoami", "--profile", "work", env=env).exit_code == 0
    assert run("whoami", env=env).exit_code == 2, "there is no profile named default"


def test_login_keeps_the_witness_policy(served: Served, tmp_path: Path) -> None:
    code = served.json(served.world.admin, "admin", "principal", "add", fresh())["enrolment_code"]
    policy = tmp_path / "witnesses.txt"
    env = {"BROKER_PROFILE_DIR": str(tmp_path / "p")}
    words = ("login", "--server", served.url, "--code", code, "--witness-policy", str(policy))
    assert run(*words, env=env).exit_code == 2, "there is no such file"
    policy.write_text("quorum none\n")
    done = run(*words, env=env)
    assert (done.exit_code, "does not name the log" in done.stderr) == (2, True)
    policy.write_text(f"log {served.world.house.log.vkey}\nquorum none\n")
    assert run(*words, env=env).exit_code == 0, "the code was not used up"
    assert (tmp_path / "p" / "witness-policy").read_text() == policy.read_text()
    assert run("whoami", env=env).exit_code == 0
    policy.unlink()
    (tmp_path / "p" / "witness-policy").write_text("log\n")
    assert run("whoami", env=env).exit_code == 2


def test_a_server_with_another_log_is_refused(served: Served, tmp_path: Path) -> None:
    code = enrolment.build_code(id=bytes(8), secret=bytes(16), vkey="other.example/log+00000000+AAAA")
    env = {"BROKER_PROFILE_DIR": str(tmp_path / "p")}
    done = run("login", "--server", served.url, "--code", code, env=env)
    assert done.exit_code == 6
    assert code not in done.stderr
    assert not (tmp_path / "p" / "key.jwk").exists()


@pytest.mark.parametrize("code", ["", "bke1.", "secret-that-is-no-code"])
def test_what_is_no_code_is_not_repeated(served: Served, tmp_path: Path, code: str) -> None:
    env = {"BROKER_PROFILE_DIR": str(tmp_path / "p")}
    done = run("login", "--server", served.url, "--code", code, env=env)
    assert done.exit_code == 2
    assert "secret-that" not in done.stderr


def test_login_without_a_code_and_without_a_terminal(served: Served) -> None:
    done = run("login", "--server", served.url)
    assert done.exit_code == 2
    assert "--code" in done.stderr


def test_http_beyond_this_machine_is_refused(tmp_path: Path) -> None:
    env = {"BROKER_PROFILE_DIR": str(tmp_path / "p")}
    done = run("login", "--server", "http://broker.example", "--code", "x", env=env)
    assert done.exit_code == 2


def test_whoami_in_words(served: Served) -> None:
    done = served.run(served.world.admin, "whoami")
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if not line.startswith("bound"))
    assert lines["principal"] == "user:admin"
    assert lines["roles"] == "admin"
    assert lines["key"] == served.world.admin.key.jkt
    assert "(active, entry" in done.stdout
    assert served.world.admin.token not in done.stdout


def test_a_token_is_inspected_and_revoked(served: Served) -> None:
    ana = served.world.add(fresh())
    found = served.json(ana, "token", "inspect")
    assert found["active"] is True
    assert found["sub"] == ana.id
    assert served.json(ana, "token", "inspect", ana.token)["active"] is True
    assert served.json(ana, "token", "inspect", "a.b.c") == {"active": False}

    done = served.run(ana, "token", "revoke", found["jti"])
    assert (done.exit_code, done.stdout) == (0, f"revoked {found['jti']}\n")
    assert served.json(ana, "whoami")["token"]["id"] != found["jti"], "the next request has a new one"

    done = served.run(ana, "token", "revoke", "-", input=ana.token + "\n")
    assert done.exit_code == 0
    assert ana.token not in done.stdout + done.stderr
    assert served.json(ana, "token", "inspect", ana.token) == {"active": False}


def test_tokens_of_others_need_an_administrator(served: Served) -> None:
    ana, eve = served.world.add(fresh()), served.world.add(fresh())
    token = served.json(ana, "whoami")["token"]["id"]
    assert served.run(eve, "token", "revoke", token).exit_code == 3
    assert served.json(served.world.admin, "token", "revoke", token) == {
        "revoked": {"kind": "token", "id": token}
    }
    assert served.json(ana, "whoami")["token"]["id"] != token


def test_principals_are_changed(served: Served) -> None:
    admin, ana = served.world.admin, served.world.add(fresh(), groups=["nlp"])
    name = ana.id.removeprefix("user:")
    change = ("admin", "principal", "set", name)
    assert served.json(admin, *change, "--group", "a,b", "--group", "c")["groups"] == ["a", "b", "c"]
    assert served.json(admin, *change, "--role", "auditor")["groups"] == ["a", "b", "c"]
    found = served.json(admin, *change, "--group", "")
    assert (found["roles"], found["groups"]) == (["auditor"], [])
    assert served.run(admin, *change).exit_code == 2

    assert served.json(admin, "admin", "principal", "disable", name)["disabled"] is True
    assert served.run(ana, "whoami").exit_code in (0, 3, 4)
    assert served.run(ana, "ledger", "search").exit_code in (3, 4)
    assert served.json(admin, "admin", "principal", "enable", name)["disabled"] is False
    assert served.run(ana, "ledger", "search").exit_code == 0


def test_principals_are_listed(served: Served) -> None:
    ana = served.world.add(fresh(), groups=["nlp"])
    rows = served.json(served.world.admin, "admin", "principal", "ls")["principals"]
    [row] = [row for row in rows if row["id"] == ana.id]
    assert row["keys"] == [{"jkt": ana.key.jkt, "status": "active"}]
    table = served.run(served.world.admin, "admin", "principal", "ls").stdout
    assert table.startswith("PRINCIPAL")
    assert f"{ana.id}" in table
    found = list(
        csv.DictReader(
            io.StringIO(served.run(served.world.admin, "admin", "principal", "ls", "-o", "csv").stdout)
        )
    )
    assert {row["id"] for row in found} == {row["id"] for row in rows}


def test_another_code_ends_the_earlier_one(served: Served, tmp_path: Path) -> None:
    admin, name = served.world.admin, fresh()
    first = served.json(admin, "admin", "principal", "add", name)["enrolment_code"]
    second = served.json(admin, "admin", "principal", "code", name)["enrolment_code"]
    for code, status in ((first, 4), (second, 0)):
        env = {"BROKER_PROFILE_DIR": str(tmp_path / code[5:9])}
        assert run("login", "--server", served.url, "--code", code, env=env).exit_code == status


def test_collections_are_set(served: Served) -> None:
    admin = served.world.admin
    change = ("admin", "collection", "set", "weights")
    assert served.json(admin, *change, "--readers", "nlp,vision", "--publishers", "rel") == {
        "name": "weights",
        "readers": ["nlp", "vision"],
        "publishers": ["rel"],
    }
    assert served.json(admin, *change, "--readers", "")["publishers"] == ["rel"]
    rows = served.json(admin, "admin", "collection", "ls")["collections"]
    assert {"name": "weights", "readers": [], "publishers": ["rel"]} in rows
    assert served.run(admin, *change).exit_code == 2


def test_who_may_not_administer_is_told_why(served: Served) -> None:
    ana = served.world.add(fresh())
    for words in (
        ("principal", "ls"),
        ("principal", "add", "x"),
        ("collection", "ls"),
        ("revoke", "--key", "k"),
    ):
        done = served.run(ana, "admin", *words)
        assert done.exit_code == 3
        assert done.stdout == ""
        assert "  why:  " in done.stderr


def test_revocations_name_exactly_one_thing(served: Served) -> None:
    admin = served.world.admin
    assert served.run(admin, "admin", "revoke").exit_code == 2
    assert served.run(admin, "admin", "revoke", "--grant", "g_a", "--key", "k").exit_code == 2
    assert served.run(admin, "admin", "revoke", "--grant", "g_nothing").exit_code == 5


def test_a_revoked_key_is_out(served: Served) -> None:
    ana = served.world.add(fresh())
    assert served.run(ana, "whoami").exit_code == 0
    assert served.run(served.world.admin, "admin", "revoke", "--key", ana.key.jkt).exit_code == 0
    assert served.run(ana, "whoami").exit_code == 4


def test_policies_are_shown_and_applied(served: Served, tmp_path: Path) -> None:
    admin = served.world.admin
    found = served.json(admin, "policy", "show")
    for name, text in found["files"].items():
        (tmp_path / name).write_text(text)
    (tmp_path / "notes.txt").write_text("not a policy")
    (tmp_path / "extra.cedar").write_text(
        '@id("extra")\nforbid (principal, action, resource)\nunless { true };\n'
    )
    applied = served.json(admin, "policy", "apply", str(tmp_path))
    assert applied["previous"] == found["bundle"]
    assert served.json(admin, "policy", "show")["bundle"] == applied["bundle"]
    (tmp_path / "extra.cedar").unlink()
    assert served.json(admin, "policy", "apply", str(tmp_path))["bundle"] == found["bundle"]
    (tmp_path / "extra.cedar").write_text("permit(")
    assert served.run(admin, "policy", "apply", str(tmp_path)).exit_code == 2
    text = served.run(admin, "policy", "show").stdout
    assert text.startswith(f"// bundle {found['bundle']}\n")
    assert "\n// file tiers.cedar\n" in text


def test_an_unreachable_server_is_9(served: Served, tmp_path: Path) -> None:
    folder = served.profile(served.world.admin)
    env = {"BROKER_PROFILE_DIR": str(folder), "BROKER_URL": "http://127.0.0.1:1"}
    done = run("ledger", "checkpoint", env=env)
    assert done.exit_code == 9
    assert "does not answer" in done.stderr
