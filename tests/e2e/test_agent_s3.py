"""Unmodified S3 clients through ``broker agent``: the same bytes, our reasons, and every read in the ledger.

The tools are other people's programs as they are: boto3, the AWS command line, s5cmd, s3fs, and the Run:ai
model streamer (on AWS's C++ SDK and its own HTTP runtime). Variables lead them to the agent, and nothing
else does.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker import limits
from tests.e2e.agents import Served, agent, tool_environment
from tests.e2e.running import COMMAND_SECONDS, MIB, Stack, User, noise, read_tree, write_tree
from tests.outside import tool_env

PURPOSE = "tools that speak S3"
EXTENT = 4 * MIB
FILES = {
    "config.json": b'{"model_type": "none"}',
    "weights.bin": noise(21 * MIB + 77, "s3"),
    "a b/naïve +&<%41>.txt": "ünïcode".encode(),
    "deep/er/x.bin": noise(5 * MIB, "s3 x"),
    "empty": b"",
}
"""The largest needs several leases, and clients fetch it in parallel ranges."""
OBJECT = "s3://acme/s3-model@v1"


@pytest.fixture(scope="module")
def published(pub: User, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("s3")
    pub.cli("put", write_tree(folder / "old", {"old.txt": b"old"}), "acme/s3-model@v0")
    pub.cli("put", write_tree(folder / "new", FILES), "acme/s3-model@v1", "--extent-size", "4MiB")
    pub.cli("put", folder / "old", "acme/s3-critical@v1", "--label", "tier=critical")


@pytest.fixture
def served(published: None, ana: User) -> Iterator[Served]:
    """An agent that has read nothing yet."""
    with agent(ana, "--purpose", PURPOSE, "--hf", "off") as found:
        yield found


def tool(name: str) -> Path:
    """A program of the environment ``aws``."""
    return tool_env("aws").parent / name


def python(served: Served, home: Path, code: str, *words: object, env: str = "aws") -> Any:
    """What a program in an environment of outside tools prints as JSON on its last line."""
    done = served.tool(home, tool_env(env), "-c", code, *words)
    return json.loads(done.out.splitlines()[-1])


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def released(entry: dict[str, Any]) -> int:
    """Plaintext bytes that the URLs of a grant's or lease's entry reach."""
    return int(entry.get("served", entry["bytes"]))


def reads(stack: Stack, since: int, artifact: str = "acme/s3-model") -> list[dict[str, Any]]:
    """The entries of released reads of an artifact since a size of the ledger."""
    entries = stack.entries()[since:]
    return [one for one in entries if one["type"] in ("grant", "lease") and one["artifact"] == artifact]


def check_recorded(stack: Stack, since: int, ana: User, *, files: int, size: int) -> None:
    """Each file has its grant, and every byte was leased to the caller, for the purpose, before it came."""
    found = reads(stack, since)
    grants = [entry["grant"] for entry in found if entry["type"] == "grant"]
    assert len(grants) == len(set(grants)) == files
    assert {entry["grant"] for entry in found} == set(grants)
    said = {
        (each["principal"], each["purpose"], each["version"], each["selection"]["files"]) for each in found
    }
    assert said == {(ana.id, PURPOSE, "v1", 1)}
    assert sum(map(released, found)) >= size


TOTAL = sum(map(len, FILES.values()))

# -- boto3 ------------------------------------------------------------------------------------------------

BOTO3 = """
import hashlib, json, sys, boto3
s3 = boto3.client("s3")
files = {}
for page in s3.get_paginator("list_objects_v2").paginate(Bucket="acme", Prefix="s3-model@v1/"):
    for item in page["Contents"]:
        data = s3.get_object(Bucket="acme", Key=item["Key"])["Body"].read()
        assert len(data) == item["Size"] == s3.head_object(Bucket="acme", Key=item["Key"])["ContentLength"]
        assert item["ETag"].strip('"') == hashlib.sha256(data).hexdigest()
        files[item["Key"]] = hashlib.sha256(data).hexdigest()
s3.download_file("acme", "s3-model/weights.bin", "parts.bin")
print(json.dumps([files, hashlib.sha256(open("parts.bin", "rb").read()).hexdigest()]))
"""


def test_boto3(stack: Stack, served: Served, ana: User, tmp_path: Path) -> None:
    before = stack.size()
    files, parts = python(served, tmp_path, BOTO3)
    assert files == {f"s3-model@v1/{path}": digest_of(data) for path, data in FILES.items()}
    assert parts == digest_of(FILES["weights.bin"])
    check_recorded(stack, before, ana, files=len(FILES), size=TOTAL)


RANGE = """
import hashlib, json, sys, boto3
s3 = boto3.client("s3")
answer = s3.get_object(Bucket="acme", Key="s3-model@v1/weights.bin", Range=sys.argv[1])
data = answer["Body"].read()
print(json.dumps([answer["ContentRange"], hashlib.sha256(data).hexdigest(), len(data)]))
"""


@pytest.mark.parametrize(
    ("start", "stop", "most"),
    [
        (100, 200, limits.MIB),
        (MIB - 100, MIB + 100, 2 * limits.MIB),
        (2 * EXTENT - 10, 2 * EXTENT + 10, 2 * limits.MIB),
        (21 * MIB + 70, 21 * MIB + 77, 2 * limits.MIB),
    ],
)
def test_a_range_is_leased_and_recorded_as_what_it_is(
    stack: Stack, served: Served, ana: User, tmp_path: Path, start: int, stop: int, most: int
) -> None:
    """A small read of a large file opens what it needs, and the ledger says so."""
    before = stack.size()
    found = python(served, tmp_path, RANGE, f"bytes={start}-{stop - 1}")
    data = FILES["weights.bin"]
    assert found == [f"bytes {start}-{stop - 1}/{len(data)}", digest_of(data[start:stop]), stop - start]
    check_recorded(stack, before, ana, files=1, size=stop - start)
    entries = reads(stack, before)
    assert sum(map(released, entries)) <= most
    assert all(entry["selection"]["segments"] <= 2 for entry in entries)


def test_looking_is_not_reading(stack: Stack, served: Served, tmp_path: Path) -> None:
    code = (
        "import boto3, json\n"
        "s3 = boto3.client('s3')\n"
        "s3.head_object(Bucket='acme', Key='s3-model@v1/weights.bin')\n"
        "s3.list_objects_v2(Bucket='acme', Prefix='s3-model@v1/')\n"
        "print(json.dumps(s3.head_bucket(Bucket='acme')['ResponseMetadata']['HTTPStatusCode']))\n"
    )
    before = stack.size()
    assert python(served, tmp_path, code) == 200
    assert reads(stack, before) == []


# -- the AWS command line -----------------------------------------------------------------------------------


def test_aws_ls(served: Served, tmp_path: Path) -> None:
    def ls(*words: str) -> list[list[str]]:
        lines = served.tool(tmp_path, tool("aws"), "s3", "ls", *words).out.splitlines()
        return [line.split(maxsplit=3) for line in lines]

    assert [line[2] for line in ls()] == ["acme"]
    assert ["PRE", "s3-model/"] in ls("s3://acme/")
    assert ls("s3://acme/s3-model@") == [["PRE", "s3-model@v0/"], ["PRE", "s3-model@v1/"]]
    found = {line[3]: int(line[2]) for line in ls("--recursive", f"{OBJECT}/")}
    assert found == {f"s3-model@v1/{path}": len(data) for path, data in FILES.items()}


def test_aws_cp(stack: Stack, served: Served, ana: User, tmp_path: Path) -> None:
    before = stack.size()
    served.tool(tmp_path, tool("aws"), "s3", "cp", "--no-progress", f"{OBJECT}/weights.bin", "w.bin")
    assert (tmp_path / "w.bin").read_bytes() == FILES["weights.bin"]
    check_recorded(stack, before, ana, files=1, size=len(FILES["weights.bin"]))
    done = served.tool(tmp_path, tool("aws"), "s3", "cp", "s3://acme/s3-model/deep/er/x.bin", "-")
    assert done.data == FILES["deep/er/x.bin"]


def test_aws_sync(stack: Stack, served: Served, ana: User, tmp_path: Path) -> None:
    before = stack.size()
    words = (tool("aws"), "s3", "sync", "--no-progress", OBJECT, "out")
    served.tool(tmp_path, *words)
    assert read_tree(tmp_path / "out") == FILES
    check_recorded(stack, before, ana, files=len(FILES), size=TOTAL)
    again = stack.size()
    assert served.tool(tmp_path, *words).out == ""
    assert reads(stack, again) == []


def test_a_presigned_url_and_a_plain_http_client(served: Served, tmp_path: Path) -> None:
    code = (
        "import boto3, json, urllib.request\n"
        "from botocore.config import Config\n"
        "s3 = boto3.client('s3', config=Config(signature_version='s3v4'))\n"
        "url = s3.generate_presigned_url('get_object', {'Bucket': 'acme', 'Key': 's3-model/config.json'})\n"
        "print(json.dumps(urllib.request.urlopen(url).read().decode()))\n"
    )
    assert python(served, tmp_path, code).encode() == FILES["config.json"]


# -- s5cmd --------------------------------------------------------------------------------------------------


def test_s5cmd(stack: Stack, served: Served, ana: User, tmp_path: Path) -> None:
    before = stack.size()
    served.tool(
        tmp_path, tool("s5cmd"), "cp", "--concurrency", "8", "--part-size", "5", f"{OBJECT}/*", "out/"
    )
    assert read_tree(tmp_path / "out") == FILES
    check_recorded(stack, before, ana, files=len(FILES) - 1, size=TOTAL)  # it makes an empty file by itself
    done = served.tool(tmp_path, tool("s5cmd"), "cat", f"{OBJECT}/weights.bin")
    assert done.data == FILES["weights.bin"]
    listed = served.tool(tmp_path, tool("s5cmd"), "ls", "--show-fullpath", f"{OBJECT}/*").out.splitlines()
    assert sorted(listed) == sorted(f"{OBJECT}/{path}" for path in FILES)


# -- s3fs ---------------------------------------------------------------------------------------------------

S3FS = """
import hashlib, json, s3fs
fs = s3fs.S3FileSystem()
found = {path: hashlib.sha256(fs.cat_file(path)).hexdigest() for path in fs.find("acme/s3-model@v1")}
with fs.open("acme/s3-model@v1/weights.bin", "rb", block_size=2 * 2**20) as file:
    file.seek(-1000, 2)
    tail = file.read()
    file.seek(5 * 2**20 + 7)
    middle = file.read(100)
fs.get("acme/s3-model@v1", "out", recursive=True)
print(json.dumps([
    sorted(fs.ls("acme/s3-model@v1")), found, tail.hex(), middle.hex(),
    [fs.exists(path) for path in ("acme/s3-model/nope", "acme/nope", "acme/s3-model/config.json")],
]))
"""


def test_s3fs(stack: Stack, served: Served, ana: User, tmp_path: Path) -> None:
    before = stack.size()
    listed, found, tail, middle, there = python(served, tmp_path, S3FS)
    root, data = "acme/s3-model@v1", FILES["weights.bin"]
    assert listed == sorted({f"{root}/{path.split('/')[0]}" for path in FILES})
    assert found == {f"{root}/{path}": digest_of(data) for path, data in FILES.items()}
    assert (bytes.fromhex(tail), bytes.fromhex(middle)) == (data[-1000:], data[5 * MIB + 7 : 5 * MIB + 107])
    assert there == [False, False, True]
    assert read_tree(tmp_path / "out") == FILES
    check_recorded(stack, before, ana, files=len(FILES), size=TOTAL)


# -- the Run:ai model streamer ------------------------------------------------------------------------------

RUNAI_FILES = """
import hashlib, json, sys
from runai_model_streamer import FileStreamer
from runai_model_streamer.file_streamer import FileChunks
size = int(sys.argv[1])
cuts = [0, 7, 5 * 2**20, 5 * 2**20 + 1, size]
with FileStreamer() as streamer:
    listed = sorted(streamer.list_files("s3://acme/s3-model@v1/deep"))
    lengths = [stop - start for start, stop in zip(cuts, cuts[1:])]
    chunks = FileChunks(0, "s3://acme/s3-model@v1/weights.bin", cuts[:-1], lengths)
    streamer.stream_files([chunks], None, "cpu")
    found = {index: tensor.numpy().tobytes() for _, index, tensor in streamer.get_chunks()}
whole = b"".join(found[index] for index in sorted(found))
print(json.dumps([listed, hashlib.sha256(whole).hexdigest()]))
"""
MAKE_TENSORS = """
import sys, torch
from safetensors.torch import save_file
torch.manual_seed(5)
shapes = {"a": (1024, 1024), "b": (3,), "c": (257, 4099), "d": (2, 2)}
save_file({name: torch.randn(shape) for name, shape in shapes.items()}, sys.argv[1])
"""
RUNAI_TENSORS = """
import hashlib, json, sys
from runai_model_streamer import SafetensorsStreamer
with SafetensorsStreamer() as streamer:
    streamer.stream_file(sys.argv[1])
    found = {name: hashlib.sha256(t.numpy().tobytes()).hexdigest() for name, t in streamer.get_tensors()}
print(json.dumps(found))
"""
SHOW_TENSORS = """
import hashlib, json, sys
from safetensors.torch import load_file
state = load_file(sys.argv[1])
print(json.dumps({name: hashlib.sha256(t.numpy().tobytes()).hexdigest() for name, t in state.items()}))
"""


def test_runai_file_streamer(stack: Stack, served: Served, ana: User, tmp_path: Path) -> None:
    data = FILES["weights.bin"]
    before = stack.size()
    listed, digest = python(served, tmp_path, RUNAI_FILES, len(data), env="torch")
    assert listed == [[f"{OBJECT}/deep/er/x.bin", len(FILES["deep/er/x.bin"])]]
    assert digest == digest_of(data)
    check_recorded(stack, before, ana, files=1, size=len(data))


def test_runai_safetensors_streamer(
    stack: Stack, served: Served, ana: User, pub: User, tmp_path: Path
) -> None:
    served.tool(tmp_path, tool_env("torch"), "-c", MAKE_TENSORS, "model.safetensors")
    (tmp_path / "tree").mkdir()
    made = (tmp_path / "model.safetensors").rename(tmp_path / "tree" / "model.safetensors")
    pub.cli("put", tmp_path / "tree", "acme/s3-tensors@v1", "--extent-size", "1MiB")
    local = python(served, tmp_path, SHOW_TENSORS, made, env="torch")
    before = stack.size()
    path = "s3://acme/s3-tensors/model.safetensors"
    assert python(served, tmp_path, RUNAI_TENSORS, path, env="torch") == local
    found = reads(stack, before, "acme/s3-tensors")
    assert [entry["type"] for entry in found].count("grant") == 1
    assert sum(map(released, found)) >= made.stat().st_size


# -- refusals -----------------------------------------------------------------------------------------------

BOTO3_ERROR = """
import json, sys, boto3
from botocore.exceptions import ClientError
try:
    boto3.client("s3").get_object(Bucket="acme", Key=sys.argv[1])
except ClientError as exc:
    print(json.dumps([exc.response["Error"], exc.response["ResponseMetadata"]["RetryAttempts"]]))
"""


def test_a_denied_read_tells_its_user_the_policy_and_the_next_step(
    stack: Stack, served: Served, tmp_path: Path
) -> None:
    before = stack.size()
    error, attempts = python(served, tmp_path, BOTO3_ERROR, "s3-critical/old.txt")
    assert (error["Code"], attempts) == ("AccessDenied", 0)
    told = error["Message"]
    assert "read of acme/s3-critical@v1 is denied" in told
    assert 'policy "critical-needs-approval"' in told
    target = "s3://acme/s3-critical/old.txt"
    done = served.tool(tmp_path, tool("s5cmd"), "cp", target, "x", expect=1)
    assert told in done.err
    # This one asks for the size first (HEAD), which is describe and allowed, and then for the bytes.
    done = served.tool(tmp_path, tool("aws"), "s3", "cp", target, "-", expect=1)
    assert done.data == b""
    assert told in done.err
    denials = [entry for entry in stack.entries()[before:] if entry["type"] == "denial"]
    assert {entry["artifact"] for entry in denials} == {"acme/s3-critical"}
    assert len(denials) == 3


def test_nothing_is_written(stack: Stack, served: Served, tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"x")
    (tmp_path / "large").write_bytes(bytes(20 * MIB))
    before = stack.objects()
    for words in (
        ("aws", "s3", "cp", "small", f"{OBJECT}/new"),
        ("aws", "s3", "cp", "--no-progress", "large", f"{OBJECT}/new"),
        ("aws", "s3", "rm", f"{OBJECT}/config.json"),
        ("s5cmd", "cp", "small", f"{OBJECT}/new"),
        ("s5cmd", "rm", f"{OBJECT}/config.json"),
    ):
        done = served.tool(tmp_path, tool(words[0]), *words[1:], expect=1)
        assert "this endpoint is read-only; broker put PATH COLLECTION/NAME@VERSION" in done.err, words
    assert stack.objects() == before


def test_without_the_secret_there_is_nothing(served: Served, tmp_path: Path) -> None:
    for more in ({"AWS_SECRET_ACCESS_KEY": "guessed"}, {"AWS_SESSION_TOKEN": "a session"}):
        done = served.tool(tmp_path, tool("s5cmd"), "ls", "s3://acme/", expect=1, **more)
        assert "SignatureDoesNotMatch" in done.err or "InvalidToken" in done.err
    done = served.tool(tmp_path, tool("aws"), "--no-sign-request", "s3", "ls", "s3://acme/", expect=None)
    assert done.code != 0
    assert done.out == ""


# -- in the middle of a body --------------------------------------------------------------------------------

SLOW = """
import json, sys, time, boto3
from botocore.config import Config
s3 = boto3.client("s3", config=Config(retries={"total_max_attempts": 1}))
body = s3.get_object(Bucket="acme", Key=sys.argv[1])["Body"]
got = len(body.read(2**20))
print("begun", flush=True)
sys.stdin.readline()
try:
    while data := body.read(2**20):
        got += len(data)
    failure = "none"
except Exception as exc:
    failure = type(exc).__name__
print(json.dumps([got, failure]))
"""
LONG = 160 * MIB
"""More than is read ahead, and than sockets hold."""


@pytest.fixture(scope="module")
def long_object(stack: Stack, pub: User, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A long file, ``s3-long/long.bin``, and the name of its object in the store."""
    tree = write_tree(tmp_path_factory.mktemp("long") / "t", {"long.bin": noise(LONG, "long")})
    before = set(stack.objects())
    pub.cli("put", tree, "acme/s3-long@v1", "--extent-size", "4MiB")
    return max(set(stack.objects()) - before, key=lambda name: stack.objects()[name][0])


def begin(served: Served, home: Path) -> subprocess.Popen[str]:
    """A boto3 that has read the first MiB of the long file and waits for a line."""
    process = subprocess.Popen(
        [tool_env("aws"), "-c", SLOW, "s3-long/long.bin"],
        env={**tool_environment(home), **served.export},
        cwd=home,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """How many bytes it got, and the exception that it met."""
    out, _ = process.communicate("go on\n", timeout=COMMAND_SECONDS)
    got, failure = json.loads(out)
    return got, failure


def test_a_body_is_whole_when_nothing_happens(served: Served, long_object: str, tmp_path: Path) -> None:
    assert finish(begin(served, tmp_path)) == (LONG, "none")


def test_a_revoked_grant_breaks_off_a_body(
    stack: Stack, served: Served, long_object: str, tmp_path: Path
) -> None:
    before = stack.size()
    process = begin(served, tmp_path)
    grant = reads(stack, before, "acme/s3-long")[0]["grant"]
    stack.admin.cli("admin", "revoke", "--grant", grant)
    got, failure = finish(process)
    assert got < LONG
    assert failure != "none"


def test_a_store_that_lies_breaks_off_a_body(
    stack: Stack, served: Served, long_object: str, tmp_path: Path
) -> None:
    """The bytes before the damage are right, those behind it never come, and the end is no end (I09)."""
    was = stack.flip(long_object, LONG // 2)
    try:
        code = (
            "import hashlib, json, boto3\n"
            "from botocore.config import Config\n"
            "s3 = boto3.client('s3', config=Config(retries={'total_max_attempts': 1}))\n"
            "body, got = s3.get_object(Bucket='acme', Key='s3-long/long.bin')['Body'], b''\n"
            "try:\n"
            "    while data := body.read(2**20):\n"
            "        got += data\n"
            "    failure = 'none'\n"
            "except Exception as exc:\n"
            "    failure = type(exc).__name__\n"
            "print(json.dumps([len(got), hashlib.sha256(got).hexdigest(), failure]))\n"
        )
        size, digest, failure = python(served, tmp_path, code)
        assert failure != "none"
        assert size <= LONG // 2
        assert digest == digest_of(noise(LONG, "long")[:size])
        done = served.tool(
            tmp_path, tool("s5cmd"), "--retry-count", "0", "cp", "s3://acme/s3-long/long.bin", "x", expect=1
        )
        assert done.code == 1
    finally:
        stack.replace(long_object, was)
