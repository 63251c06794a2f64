"""I04 for the agent: a publisher's names mean nothing but themselves, nor do those of variables."""

from __future__ import annotations

import pytest

from broker.client.agent.environment import find_removed
from broker.client.agent.revisions import Missing, Repo, Revisions, commit_of
from broker.client.sdk import Client
from tests.unit.client.conftest import Stack, make_tree, publisher, reader, stack

__all__ = ["publisher", "reader", "stack"]


def test_I04_a_version_cannot_be_named_as_somebody_elses_commit(
    stack: Stack, publisher: Client, reader: Client
) -> None:
    """Who pinned a commit that is gone by now gets nothing, not what a publisher named after it."""
    gone = "0123456789abcdef0123456789abcdef01234567"
    publisher.publish(make_tree(stack.folder / "src", {"a": b"another"}), f"acme/pinned@{gone}")
    found = Revisions(reader.library())
    repo = Repo(kind="model", collection="acme", name="pinned")
    with pytest.raises(Missing) as refused:
        found.find(repo, gone)
    assert refused.value.part == "Revision"
    version = found.find(repo)
    assert version.manifest.version == gone
    assert found.find(repo, commit_of(version.digest)).digest == version.digest
    assert found.find(repo, version.digest).digest == version.digest


@pytest.mark.parametrize(
    "tail",
    ["; touch x", "\ntouch x", "$(touch x)", " -f", "`touch x`"],
    ids=["semicolon", "newline", "dollar", "space", "backtick"],
)
def test_I04_a_variables_name_is_no_shell_command(tail: str) -> None:
    environ = {f"FSSPEC_S3{tail}": "x", f"FSSPEC_HF{tail}": "x", "FSSPEC_S3_KEY": "x", "AWS_PROFILE": "x"}
    assert sorted(find_removed(environ, ["s3", "hf"])) == ["AWS_PROFILE", "FSSPEC_S3_KEY"]
