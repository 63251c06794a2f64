"""The Slurm recipe, on a real cluster of two nodes: each rank reads its own shards, and no others."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from broker.jose import PrivateKey
from tests import slurm
from tests.e2e.running import MIB, ROOT, Stack, User, noise, read_tree, write_tree

RECIPE = ROOT / "examples" / "slurm"
RANKS = 4
REF = "acme/slurm-corpus@v1"

TOKEN_SECONDS = 12
"""So short that the job outlives its ranks' first tokens."""

RANK = """#!/bin/bash
# What a rank does here: fetch its shard with the command, try its neighbour's, and when its first token has
# been replaced read its shard again, through fsspec.
set -uo pipefail
out=$RESULTS/$SLURM_PROCID
mine=$(printf 'shard-%05d-*' "$SLURM_PROCID")
other=$(printf 'shard-%05d-*' $(((SLURM_PROCID + 1) % SLURM_NTASKS)))
cp "$BROKER_TOKEN_FILE" "$out.first"
broker get "$REF" "$out/files" --include "$mine" -q || exit 1
broker get "$REF" "$out/refused" --include "$other" -q 2>"$out.denial"
echo $? >"$out.refused"
broker get "$REF" "$out/refused" -q 2>"$out.denial"
echo $? >"$out.whole"
broker token key --out "$BROKER_PROFILE_DIR/key.jwk" >"$out.jkt" || exit 1
while cmp -s "$out.first" "$BROKER_TOKEN_FILE"; do sleep 0.1; done
python3 - >"$out.json" <<'END'
import hashlib, json, os
from broker.client.fs import BrokerFileSystem

rank, node = (os.environ[name] for name in ("SLURM_PROCID", "SLURMD_NODENAME"))
read = BrokerFileSystem().cat(f"{os.environ['REF']}/shard-{int(rank):05d}-of-4.bin")
print(json.dumps({
    "node": node, "sha256": hashlib.sha256(read).hexdigest(),
    "profile": os.environ["BROKER_PROFILE_DIR"], "token": os.environ["BROKER_TOKEN_FILE"],
}))
END
"""


def shard(rank: int) -> str:
    return f"shard-{rank:05d}-of-4.bin"


FILES = {shard(rank): noise(MIB // 2 + rank, f"slurm {rank}") for rank in range(RANKS)}


@dataclass(frozen=True, kw_only=True)
class Done:
    """A job that has ended."""

    results: Path
    jobs: Path
    work: Path
    output: str
    entries: list[dict[str, Any]]

    def of(self, rank: int, suffix: str) -> str:
        return (self.results / f"{rank}{suffix}").read_text()

    def told(self, rank: int) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.of(rank, ".json"))
        return found


def write_script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def launcher(stack: Stack) -> User:
    """Whoever submits the job: a workload with a key of its own."""
    return stack.add("workload:slurm", "--role", "workload", "--group", "acme")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm.Slurm]:
    home = tmp_path_factory.mktemp("slurm")
    jobs = f"RANK_KEYS={shlex.quote(str(home / 'jobs'))}"
    scripts = {
        name: write_script(home / f"{name}.sh", f"#!/bin/sh\n{jobs} exec {RECIPE / name}.sh\n")
        for name in ("prolog", "epilog")
    }
    settings = {"Prolog": str(scripts["prolog"]), "Epilog": str(scripts["epilog"]), "PrologFlags": "Alloc"}
    with slurm.running(home / "cluster", **settings) as found:
        yield found


@pytest.fixture(scope="module")
def done(
    cluster: slurm.Slurm, stack: Stack, pub: User, launcher: User, tmp_path_factory: pytest.TempPathFactory
) -> Done:
    home = tmp_path_factory.mktemp("submitted")
    pub.cli("put", write_tree(home / "corpus", FILES), REF, "--kind", "dataset", "--extent-size", "1MiB")
    # A site has these on its path.
    programs = home / "bin"
    programs.mkdir()
    write_script(programs / "broker", f'#!/bin/sh\nexec {sys.executable} -P -m broker "$@"\n')
    write_script(programs / "python3", f'#!/bin/sh\nexec {sys.executable} -P "$@"\n')
    work = home / "work"
    shutil.copytree(RECIPE, work)
    write_script(work / "rank.sh", RANK)
    results = home / "results"
    results.mkdir()
    before = stack.size()
    job = ("job.sbatch", REF, "shard-{rank:05d}-*", "./rank.sh")
    ended = cluster.run(
        *("sbatch", "--wait", "--nodes=2", f"--ntasks={RANKS}", "--output=job.out", *job),
        cwd=work,
        PATH=f"{programs}:{slurm.search_path()}",
        PYTHONPATH=str(ROOT),
        BROKER_PROFILE_DIR=str(launcher.profile),
        RANK_KEYS=str(cluster.home.parent / "jobs"),
        RESULTS=str(results),
        RANK_TOKEN_SECONDS=str(TOKEN_SECONDS),
        REF=REF,
    )
    output = (work / "job.out").read_text() if (work / "job.out").exists() else ""
    assert ended.returncode == 0, f"{ended.stderr}\n{output}\n{cluster.logs()}"
    return Done(
        results=results,
        jobs=cluster.home.parent / "jobs",
        work=work,
        output=output,
        entries=stack.entries()[before:],
    )


def test_each_rank_reads_its_shards(done: Done) -> None:
    for rank in range(RANKS):
        assert read_tree(done.results / str(rank) / "files") == {shard(rank): FILES[shard(rank)]}
        assert done.told(rank)["sha256"] == hashlib.sha256(FILES[shard(rank)]).hexdigest()
    assert {done.told(rank)["node"] for rank in range(RANKS)} == set(slurm.NODES)


def test_no_rank_reads_another_ranks_shards(done: Done) -> None:
    for rank in range(RANKS):
        assert done.of(rank, ".refused").strip() == "3", done.of(rank, ".denial")
        assert done.of(rank, ".whole").strip() == "3"
        assert not list((done.results / str(rank)).glob("refused/shard-*"))


def test_the_ledger_names_launcher_and_rank(done: Done, launcher: User) -> None:
    ranks = {done.of(rank, ".jkt").strip(): rank for rank in range(RANKS)}
    assert len(ranks) == RANKS
    minted = {entry["token"]: entry for entry in done.entries if entry.get("action") == "mint"}
    assert {entry["jkt"] for entry in minted.values()} == set(ranks)
    [minter] = {entry["minter"]["jkt"] for entry in minted.values()}
    assert minter not in ranks
    assert {entry["minter"]["principal"] for entry in minted.values()} == {"workload:slurm"}
    reads = [entry for entry in done.entries if entry["type"] == "grant" and entry.get("lease") == 0]
    for entry in reads:
        rank = ranks[entry["jkt"]]
        assert minted[entry["token"]]["jkt"] == entry["jkt"]
        # Every shard has a size of its own, so the size says which one it was.
        assert (entry["selection"]["files"], entry["bytes"]) == (1, len(FILES[shard(rank)]))
    assert len(reads) == 2 * RANKS


def test_tokens_are_renewed_while_the_job_runs(done: Done) -> None:
    tokens: dict[str, set[str]] = {}
    for entry in done.entries:
        if entry["type"] == "grant":
            tokens.setdefault(entry["jkt"], set()).add(entry["token"])
    # The command read with the first, fsspec with one that came later.
    assert [len(found) for found in tokens.values()] == [2] * RANKS


def test_a_revoked_rank_gets_no_other_token(stack: Stack, done: Done, launcher: User, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("mint_ranks", RECIPE / "mint_ranks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mint_ranks"] = module
    spec.loader.exec_module(module)
    for rank in range(2):
        (tmp_path / f"0.{rank}.jkt").write_text(PrivateKey.generate().jkt + "\n")
    # Neither a rank of this job nor a rank at all.
    (tmp_path / "0.2.jkt").write_text(PrivateKey.generate().jkt)
    (tmp_path / "0.x.jkt").write_text("x")
    with launcher.client() as client:
        serving = module.Launcher(
            client=client, folder=tmp_path, ranks=2, ref=REF, pattern="shard-{rank:05d}-*"
        )
        serving.serve()
        first = dict(serving.minted)
        assert set(first) == {"0.0", "0.1"}
        stack.admin.cli("admin", "revoke", "--token", first["0.0"].id)
        serving.due.clear()
        serving.serve()
    assert serving.minted["0.0"] == first["0.0"]
    assert serving.minted["0.1"] != first["0.1"]
    assert (tmp_path / "0.1" / "token").read_text().strip() == serving.minted["0.1"].text


def test_keys_stay_on_their_nodes_and_go_with_the_job(done: Done) -> None:
    for rank in range(RANKS):
        told = done.told(rank)
        assert Path(told["profile"]).is_relative_to(done.jobs)
        assert not Path(told["token"]).is_relative_to(done.jobs)
    assert list(done.jobs.iterdir()) == []
    assert not list(done.work.glob(".rank-tokens-*"))
