"""Unmodified Hub clients through ``broker agent``: the same bytes, their own exceptions, our reasons.

Two generations of huggingface_hub are used as they are (2.x, and 0.36 with another HTTP library below it),
transformers and safetensors on top. Variables lead them to the agent, and nothing else does.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.e2e.agents import Served, agent
from tests.e2e.running import MIB, Done, Stack, User, noise, read_tree, write_tree
from tests.outside import tool_env

PURPOSE = "the hub's own tools"
FILES = {
    "config.json": b'{"model_type": "none"}',
    "weights.bin": noise(9 * MIB + 77, "hub"),
    "sub dir/naïve.txt": "ünïcode".encode(),
    "empty": b"",
}
BIG = noise(25 * MIB + 3, "hub big")
"""More than clients take at once (10 MiB), so that something is left when the line breaks."""
ENVIRONMENTS = ("torch", "hub0")


@pytest.fixture(scope="module")
def published(pub: User, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("hub")
    tree = write_tree(folder / "model", FILES)
    old = write_tree(folder / "old", {"config.json": b"{}"})
    pub.cli("put", old, "acme/hub-model@v0")
    pub.cli("put", tree, "acme/hub-model@v1", "--extent-size", "4MiB")
    pub.cli("put", tree, "acme/hub-rows@2026", "--kind", "dataset")
    pub.cli("put", write_tree(folder / "big", {"weights.bin": BIG}), "acme/hub-big@v1")
    pub.cli("put", old, "acme/hub-critical@v1", "--label", "tier=critical")


@pytest.fixture(scope="module")
def served(published: None, ana: User) -> Iterator[Served]:
    with agent(ana, "--purpose", PURPOSE) as found:
        yield found


@pytest.fixture
def fresh(published: None, ana: User) -> Iterator[Served]:
    """An agent that has read nothing yet."""
    with agent(ana, "--purpose", PURPOSE) as found:
        yield found


def python(served: Served, home: Path, code: str, *words: object, tool: str = "torch") -> Any:
    """What a program in an environment of outside tools prints as JSON on its last line."""
    done = served.tool(home, tool_env(tool), "-c", code, *words)
    return json.loads(done.out.splitlines()[-1])


def digests(files: dict[str, bytes]) -> dict[str, str]:
    return {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}


def downloaded(folder: Path) -> dict[str, bytes]:
    return {path: data for path, data in read_tree(folder).items() if not path.startswith(".cache/")}


def read_grants(stack: Stack, since: int, artifact: str) -> list[dict[str, Any]]:
    """The entries of allowed reads of an artifact since a size of the ledger."""
    return [
        entry
        for entry in stack.entries()[since:]
        if entry["type"] == "grant" and entry["artifact"] == artifact
    ]


# -- the same bytes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tool", ENVIRONMENTS)
def test_hf_download(stack: Stack, fresh: Served, tmp_path: Path, tool: str) -> None:
    hf = tool_env(tool).parent / "hf"
    before = stack.size()
    fresh.tool(tmp_path, hf, "download", "acme/hub-model", "--local-dir", "out")
    assert downloaded(tmp_path / "out") == FILES
    found = read_grants(stack, before, "acme/hub-model")
    # Each file is asked for by itself; for an empty one some clients do not ask at all.
    assert len(found) in (len(FILES) - 1, len(FILES))
    assert {entry["purpose"] for entry in found} == {PURPOSE}
    assert {(entry["version"], entry["selection"]["files"]) for entry in found} == {("v1", 1)}
    fresh.tool(tmp_path, hf, "download", "acme/hub-rows", "--repo-type", "dataset", "--local-dir", "rows")
    assert downloaded(tmp_path / "rows") == FILES
    fresh.tool(tmp_path, hf, "download", "acme/hub-model", "--revision", "v0", "--local-dir", "old")
    assert downloaded(tmp_path / "old") == {"config.json": b"{}"}


@pytest.mark.parametrize("tool", ENVIRONMENTS)
def test_snapshots_are_kept_by_commit_and_not_read_twice(
    stack: Stack, served: Served, ana: User, tmp_path: Path, tool: str
) -> None:
    code = (
        "import hashlib, json, pathlib, sys\n"
        "from huggingface_hub import snapshot_download\n"
        "at = pathlib.Path(snapshot_download('acme/hub-model', revision=sys.argv[1]))\n"
        "files = [path for path in at.rglob('*') if path.is_file()]\n"
        "found = {str(p.relative_to(at)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}\n"
        "print(json.dumps([at.name, found]))\n"
    )
    commit, found = python(served, tmp_path, code, "main", tool=tool)
    digest = ana.cli("info", "acme/hub-model@v1", "-o", "json").json()["manifest"]
    assert commit == digest.removeprefix("sha256:")[:40]
    assert found == digests(FILES)
    before = stack.size()
    for revision in ("v1", commit):
        assert python(served, tmp_path, code, revision, tool=tool) == [commit, found]
    assert read_grants(stack, before, "acme/hub-model") == []


def test_what_was_downloaded_verifies(served: Served, tmp_path: Path) -> None:
    hf = tool_env("torch").parent / "hf"
    served.tool(tmp_path, hf, "download", "acme/hub-model")
    served.tool(tmp_path, hf, "cache", "verify", "acme/hub-model")
    blob = next(
        path
        for path in (tmp_path / "hf").rglob("blobs/*")
        if path.stat().st_size == len(FILES["weights.bin"])
    )
    blob.write_bytes(bytes(blob.stat().st_size))
    served.tool(tmp_path, hf, "cache", "verify", "acme/hub-model", expect=1)


@pytest.mark.parametrize("tool", ENVIRONMENTS)
def test_a_broken_download_is_resumed_by_range(served: Served, tmp_path: Path, tool: str) -> None:
    code = (
        "import hashlib, json\n"
        "from huggingface_hub import hf_hub_download\n"
        "path = hf_hub_download('acme/hub-big', 'weights.bin')\n"
        "print(json.dumps(hashlib.sha256(open(path, 'rb').read()).hexdigest()))\n"
    )
    words = (tool_env(tool), "-c", code)
    with breaking(served.urls["hf"], after=15 * MIB) as (url, asked):
        done = served.tool(tmp_path, *words, HF_ENDPOINT=url, expect=None)
        if done.code:
            # The older generation gives up, keeps what it has, and resumes when it is called again.
            assert tool == "hub0"
            done = served.tool(tmp_path, *words, HF_ENDPOINT=url)
    assert json.loads(done.out.splitlines()[-1]) == hashlib.sha256(BIG).hexdigest()
    first, *rest = [head for head in asked if head.startswith("GET")]
    assert "\r\nrange:" not in first.lower()
    ranges = [line for head in rest for line in head.lower().splitlines() if line.startswith("range:")]
    assert len(ranges) == 1
    start = int(ranges[0].removeprefix("range: bytes=").removesuffix("-"))
    assert MIB < start <= 15 * MIB


@contextmanager
def breaking(endpoint: str, *, after: int) -> Iterator[tuple[str, list[str]]]:
    """A line to an endpoint that breaks the first file after so many bytes; and the heads that went over it.

    The endpoint answers to its own address only, so the address in ``Host`` is made its own on the way.
    """
    target = urlsplit(endpoint)
    heads: list[str] = []
    broken = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]

    def relay(client: socket.socket) -> None:
        with client, socket.create_connection((target.hostname, target.port)) as agent_:
            head = b""
            while b"\r\n\r\n" not in head:
                head += client.recv(65536)
            text = head.decode("latin-1").replace(f"127.0.0.1:{port}", target.netloc)
            heads.append(text)
            # One request a connection: the next one comes on a line of its own.
            agent_.sendall(
                re.sub("(?i)\r\nconnection: [^\r]*", "\r\nConnection: close", text).encode("latin-1")
            )
            is_file = text.startswith("GET") and "/resolve/" in text
            left = after if is_file and not broken.is_set() else 2**62
            while left > 0 and (piece := agent_.recv(min(left, 65536))):
                left -= len(piece)
                client.sendall(piece)
            if left == 0:
                broken.set()

    def serve() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=guarded, args=(listener.accept()[0],), daemon=True).start()

    def guarded(client: socket.socket) -> None:
        with suppress(OSError):
            relay(client)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{port}", heads
    finally:
        listener.close()
    assert broken.is_set(), "nothing was broken"


# -- transformers and safetensors ---------------------------------------------------------------------------

MAKE_TINY = """
import sys, torch
from transformers import GPT2Config, GPT2LMHeadModel
torch.manual_seed(7)
config = GPT2Config(n_layer=2, n_embd=64, n_head=2, vocab_size=5000, n_positions=64)
GPT2LMHeadModel(config).save_pretrained(sys.argv[1])
"""
SHOW_TINY = """
import hashlib, json, sys
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
state = model.state_dict().items()
print(json.dumps({name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in state}))
"""


@pytest.fixture(scope="module")
def tiny(pub: User, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small causal language model, made here: ``config.json`` and ``model.safetensors``."""
    home = tmp_path_factory.mktemp("tiny")
    served = Served(pid=0, urls={}, export={})
    served.tool(home, tool_env("torch"), "-c", MAKE_TINY, "model", HF_HUB_OFFLINE="1")
    pub.cli("put", home / "model", "acme/hub-tiny@v1", "--extent-size", "1MiB")
    return home / "model"


def test_from_pretrained(stack: Stack, fresh: Served, tiny: Path, tmp_path: Path) -> None:
    local = python(fresh, tmp_path, SHOW_TINY, tiny)
    before = stack.size()
    assert python(fresh, tmp_path, SHOW_TINY, "acme/hub-tiny") == local
    assert len(local) > 20
    assert read_grants(stack, before, "acme/hub-tiny")


def test_safetensors_headers_and_slices_by_range(
    stack: Stack, fresh: Served, tiny: Path, tmp_path: Path
) -> None:
    code = (
        "import json\n"
        "from huggingface_hub import HfFileSystem, get_safetensors_metadata\n"
        "found = get_safetensors_metadata('acme/hub-tiny').files_metadata['model.safetensors'].tensors\n"
        "shapes = {name: list(info.shape) for name, info in found.items()}\n"
        "fs = HfFileSystem()\n"
        "path = 'acme/hub-tiny@v1/model.safetensors'\n"
        "size = fs.info(path)['size']\n"
        "with fs.open(path, 'rb', block_size=4096) as file:\n"
        "    file.seek(size - 1000)\n"
        "    tail = file.read(100)\n"
        "middle = fs.cat_file(path, start=5000, end=5100)\n"
        "listed = sorted(fs.ls('acme/hub-tiny', detail=False))\n"
        "print(json.dumps([shapes, size, tail.hex(), middle.hex(), listed]))\n"
    )
    data = (tiny / "model.safetensors").read_bytes()
    before = stack.size()
    shapes, size, tail, middle, listed = python(fresh, tmp_path, code)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert shapes == {name: info["shape"] for name, info in header.items() if name != "__metadata__"}
    assert (size, bytes.fromhex(tail)) == (len(data), data[-1000:-900])
    assert bytes.fromhex(middle) == data[5000:5100]
    assert listed == sorted(f"acme/hub-tiny/{path.name}" for path in tiny.iterdir())
    found = read_grants(stack, before, "acme/hub-tiny")
    assert {entry["selection"]["files"] for entry in found} == {1}


# -- refusals -----------------------------------------------------------------------------------------------


def tell(served: Served, home: Path, *words: str, tool: str) -> Done:
    hf = tool_env(tool).parent / "hf"
    return served.tool(home, hf, "download", *words, expect=1)


@pytest.mark.parametrize("tool", ENVIRONMENTS)
def test_a_denied_read_tells_its_user_the_policy_and_the_next_step(
    stack: Stack, served: Served, tmp_path: Path, tool: str
) -> None:
    before = stack.size()
    done = tell(served, tmp_path, "acme/hub-critical", "config.json", tool=tool)
    assert "read of acme/hub-critical@v1 is denied" in done.err
    assert 'why: policy "critical-needs-approval"' in done.err
    assert "next: " in done.err
    denials = [entry for entry in stack.entries()[before:] if entry["type"] == "denial"]
    assert [entry["artifact"] for entry in denials] == ["acme/hub-critical"]


@pytest.mark.parametrize("tool", ENVIRONMENTS)
def test_what_is_missing_tells_its_user_where_to_look(served: Served, tmp_path: Path, tool: str) -> None:
    told = tell(served, tmp_path, "acme/hub-nope", tool=tool).err
    assert "there is no model 'acme/hub-nope', or it is not visible to you | next: broker ls" in told
    told = tell(served, tmp_path, "acme/hub-model", "--revision", "v9", tool=tool).err
    assert "acme/hub-model has no version 'v9' | next: broker ls acme/hub-model" in told
    told = tell(served, tmp_path, "acme/hub-rows", tool=tool).err
    assert "acme/hub-rows is a dataset, not a model" in told


EXCEPTIONS = """
import json
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
def tried(call):
    try:
        call()
    except Exception as exc:
        return [type(exc).__name__, getattr(exc, "server_message", None) or str(exc)]
api = HfApi()
print(json.dumps([
    tried(lambda: hf_hub_download("acme/hub-critical", "config.json")),
    tried(lambda: snapshot_download("acme/hub-critical")),
    tried(lambda: api.model_info("acme/hub-nope")),
    tried(lambda: api.model_info("acme/hub-model", revision="v9")),
    tried(lambda: hf_hub_download("acme/hub-model", "nope.bin")),
    tried(lambda: api.create_repo("acme/new")),
    tried(lambda: api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="acme/hub-model")),
    api.whoami()["name"],
    [ref.name for ref in api.list_repo_refs("acme/hub-model").tags],
    [info.path for info in api.get_paths_info("acme/hub-model", ["config.json", "sub dir", "nope"])],
    sorted(info.id for info in api.list_models(author="acme", search="hub-model")),
]))
"""


@pytest.mark.parametrize("tool", ENVIRONMENTS)
def test_clients_raise_their_own_exceptions_with_our_reason(
    served: Served, tmp_path: Path, tool: str
) -> None:
    *raised, who, tags, paths, listed = python(served, tmp_path, EXCEPTIONS, tool=tool)
    denied, snapshot, repo, revision, entry, created, uploaded = raised
    assert denied[0] == snapshot[0] == "GatedRepoError"
    assert 'policy "critical-needs-approval"' in denied[1]
    assert (repo[0], revision[0]) == ("RepositoryNotFoundError", "RevisionNotFoundError")
    assert entry[0] in ("RemoteEntryNotFoundError", "EntryNotFoundError")
    assert "has no file 'nope.bin'" in entry[1]
    for error in (created, uploaded):
        assert "this endpoint is read-only" in error[1]
    assert (who, tags, listed) == ("user:ana", ["v0", "v1"], ["acme/hub-model"])
    assert paths == ["config.json", "sub dir"]


def test_who_may_no_longer_read_is_stopped_at_the_next_read(
    stack: Stack, served: Served, tmp_path: Path
) -> None:
    rita = stack.add("rita", "--role", "engineer", "--group", "acme")
    code = (
        "import sys\n"
        "from huggingface_hub import hf_hub_download\n"
        "print(open(hf_hub_download('acme/hub-model', sys.argv[1])).read())\n"
    )
    with agent(rita) as hers:
        assert hers.tool(tmp_path, tool_env("hub0"), "-c", code, "config.json").out.strip().startswith("{")
        stack.admin.cli("admin", "principal", "disable", "rita")
        done = hers.tool(tmp_path, tool_env("hub0"), "-c", code, "sub dir/naïve.txt", expect=1)
    assert "you may not see it" in done.err
    assert "RepositoryNotFoundError" in done.err


# -- without the secret -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize(
    "given", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eDp5"}], ids=str
)
def test_who_does_not_know_the_secret_learns_nothing(
    served: Served, method: str, given: dict[str, str]
) -> None:
    answers = set()
    for path in (
        "/api/models/acme/hub-model",
        "/api/models/acme/hub-nope",
        "/acme/hub-model/resolve/main/empty",
    ):
        status, _, body = ask(served, method, path, given)
        answers.add((status, body))
    assert len(answers) == 1
    assert answers.pop()[0] == 401


def ask(served: Served, method: str, path: str, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(urlsplit(served.urls["hf"]).netloc, timeout=30)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def test_a_head_tells_the_true_length(served: Served) -> None:
    secret = {"Authorization": f"Bearer {served.export['HF_TOKEN']}", "Accept-Encoding": "gzip"}
    status, headers, body = ask(served, "HEAD", "/acme/hub-model/resolve/main/weights.bin", secret)
    assert (status, body) == (200, b"")
    assert headers["Content-Length"] == str(len(FILES["weights.bin"]))
    assert headers["ETag"] == f'"{digests(FILES)["weights.bin"]}"'
    assert "Content-Encoding" not in headers


@pytest.mark.parametrize(
    "more",
    [
        {"Origin": "http://127.0.0.1"},
        {"Sec-Fetch-Site": "none"},
        {"Host": "localhost:1"},
        {"Host": "evil.example"},
    ],
    ids=str,
)
def test_a_web_page_gets_nothing_even_with_the_secret(served: Served, more: dict[str, str]) -> None:
    secret = {"Authorization": f"Bearer {served.export['HF_TOKEN']}"}
    status, _, body = ask(served, "GET", "/api/models/acme/hub-model", {**secret, **more})
    assert status in (403, 421)
    assert b"acme" not in body


def test_an_agent_leaves_no_plaintext_on_disk(ana: User, published: None, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    with agent(ana, TMPDIR=str(state), XDG_STATE_HOME=str(state), XDG_CACHE_HOME=str(state)) as found:
        secret = {"Authorization": f"Bearer {found.export['HF_TOKEN']}"}
        status, _, body = ask(found, "GET", "/acme/hub-model/resolve/main/weights.bin", secret)
        assert (status, body) == (200, FILES["weights.bin"])
        assert list(state.rglob("*")) == []
        opened = [path.resolve() for path in Path(f"/proc/{found.pid}/fd").iterdir()]
        assert not [path for path in opened if path.is_file() and path.stat().st_size >= len(body)]
