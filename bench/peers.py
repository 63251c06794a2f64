"""The tools beside us: each in a virtual environment of its own, because several pin what we need newer."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

VENVS = Path(__file__).resolve().parent / ".venvs"
BUCKET = "bench"
KEY = "plain.bin"
INSTALL_SECONDS = 600
_BOTO3 = (
    "import boto3, sys\n"
    "from botocore.config import Config\n"
    "s3 = boto3.client('s3', endpoint_url=sys.argv[1],"
    " config=Config(signature_version='s3v4', s3={'addressing_style': 'path'}))\n"
    "s3.download_file(sys.argv[2], sys.argv[3], sys.argv[4])\n"
)


@dataclass(frozen=True, kw_only=True)
class Store:
    """An S3 server, and the object that is read from it."""

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    bucket: str = BUCKET
    key: str = KEY

    @property
    def env(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@dataclass(frozen=True, kw_only=True)
class Tool:
    """Something that downloads one object to one file.

    Attributes:
        name: In the table.
        version: What it says of itself.
        command: Program and arguments for a destination.
        stdin: What it reads, for a destination.
        into_folder: Its destination is a folder that it makes, not a file.
    """

    name: str
    version: str
    command: Callable[[Path], Sequence[str]]
    stdin: Callable[[Path], str] = field(default=lambda _: "")
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    into_folder: bool = False


class NotInstalled(Exception):
    """A peer is not here and cannot be installed; the message says why."""


def find_peers(store: Store) -> tuple[list[Tool], dict[str, str]]:
    """The peers that run here, and why the others do not."""
    found, missing = [], {}
    for name, make in {"curl": _curl, "s5cmd": _s5cmd, "boto3": _boto3, "aws s3 cp": _aws}.items():
        try:
            found.append(make(store))
        except NotInstalled as exc:
            missing[name] = str(exc)
    return found, missing


def _venv(name: str, *packages: str) -> Path:
    """``bin`` of a virtual environment with these packages; made at first use."""
    folder = VENVS / name
    done = folder / ".installed"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        for command in ([sys.executable, "-m", "venv", str(folder)], [*pip, *packages]):
            _output(command, f"pip install {' '.join(packages)}")
        done.touch()
    return folder / "bin"


def _output(command: Sequence[str], what: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=True)
    except subprocess.CalledProcessError as exc:
        said = (exc.stderr or exc.stdout or "").strip().splitlines()
        raise NotInstalled(f"{what} fails: {said[-1] if said else exc.returncode}") from exc
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise NotInstalled(f"{what} fails: {type(exc).__name__}") from exc
    return (done.stdout + done.stderr).strip()


def _curl(store: Store) -> Tool:
    program = shutil.which("curl")
    if program is None:
        raise NotInstalled("there is no curl on the path")
    version = _output([program, "--version"], "curl --version").split()[1]

    def config(dest: Path) -> str:
        # Credentials by stdin: a command line is for everybody to read.
        return (
            f'url = "{store.endpoint}/{store.bucket}/{store.key}"\n'
            f'output = "{dest}"\n'
            f'user = "{store.access_key}:{store.secret_key}"\n'
            'aws-sigv4 = "aws:amz:us-east-1:s3"\n'
            'header = "x-amz-content-sha256: UNSIGNED-PAYLOAD"\n'
            "fail\nsilent\nshow-error\n"
        )

    return Tool(name="curl", version=version, command=lambda _: [program, "-K", "-"], stdin=config)


def _s5cmd(store: Store) -> Tool:
    program = str(_venv("s5cmd", "s5cmd") / "s5cmd")
    version = _output([program, "version"], "s5cmd version").splitlines()[-1]
    return Tool(
        name="s5cmd",
        version=version,
        command=lambda dest: [
            program,
            "--endpoint-url",
            store.endpoint,
            "cp",
            f"s3://{store.bucket}/{store.key}",
            str(dest),
        ],
        env=store.env,
    )


def _boto3(store: Store) -> Tool:
    python = str(_venv("boto3", "boto3") / "python")
    version = _output([python, "-c", "import boto3; print(boto3.__version__)"], "import boto3")
    return Tool(
        name="boto3",
        version=version,
        command=lambda dest: [python, "-c", _BOTO3, store.endpoint, store.bucket, store.key, str(dest)],
        env=store.env,
    )


def _aws(store: Store) -> Tool:
    program = str(_venv("awscli", "awscli") / "aws")
    version = _output([program, "--version"], "aws --version").split()[0].partition("/")[2]
    options = ["--endpoint-url", store.endpoint, "s3", "cp", "--only-show-errors"]
    return Tool(
        name="aws s3 cp",
        version=version,
        command=lambda dest: [program, *options, f"s3://{store.bucket}/{store.key}", str(dest)],
        env=store.env,
    )


def curl_hub(endpoint: str, secret: str, repo: str, path: str) -> Tool:
    """curl against a Hugging Face Hub endpoint."""
    plain = _curl(Store(endpoint=endpoint, access_key="", secret_key=""))

    def config(dest: Path) -> str:
        return (
            f'url = "{endpoint}/{repo}/resolve/main/{path}"\n'
            f'output = "{dest}"\n'
            f'header = "Authorization: Bearer {secret}"\n'
            "fail\nsilent\nshow-error\n"
        )

    return replace(plain, name="curl by Hub", stdin=config)


def find_hub(endpoint: str, secret: str, repo: str, path: str) -> Tool:
    """``hf download`` against a Hugging Face Hub endpoint."""
    folder = _venv("hub", "huggingface_hub")
    program = str(folder / "hf")
    asked = "import huggingface_hub; print(huggingface_hub.__version__)"
    version = _output([str(folder / "python"), "-c", asked], "import huggingface_hub")
    return Tool(
        name="hf by Hub",
        version=version,
        command=lambda dest: [program, "download", repo, path, "--local-dir", str(dest), "--quiet"],
        env={"HF_ENDPOINT": endpoint, "HF_TOKEN": secret, "HF_HUB_DISABLE_TELEMETRY": "1"},
        into_folder=True,
    )
