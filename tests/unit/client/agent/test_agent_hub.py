"""The Hub endpoint: what Hub clients ask for, and the form in which they are answered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import pytest

from broker.client.agent import hub
from broker.client.agent.http import Answer, Request
from broker.client.agent.hub import HubApp
from broker.client.agent.hub_refusals import MAX_MESSAGE, message_of, refuse
from broker.client.sdk import Client
from broker.errors import (
    ERROR_CLASS,
    HTTP_STATUS,
    BrokerError,
    Denied,
    NotFound,
    RateLimited,
)
from tests.unit.client.conftest import MIB, Stack, make_tree, restored

SECRET = "the-secret-of-this-start"
HOST = "127.0.0.1:4242"
BIG = hashlib.shake_128(b"big").digest(2 * MIB + 77)
FILES = {"a-b": b"0", "a/b/c.txt": b"one", "a/b é.txt": b"two", "a.b": b"3", "big.bin": BIG, "empty": b""}
REPO = "/api/models/acme/hub"


@pytest.fixture
def stack(shared_stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    yield from restored(shared_stack, monkeypatch)


@pytest.fixture(scope="module", autouse=True)
def _published(shared_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> None:
    first = shared_stack.add("first", roles=("publisher", "engineer"), groups=("acme",))
    first.publish(make_tree(tmp_path_factory.mktemp("old"), {"old.txt": b"old"}), "acme/hub@v1")
    source = make_tree(tmp_path_factory.mktemp("new"), FILES)
    first.publish(source, "acme/hub@v2", labels={"tier": "standard", "step": "2"})
    first.publish(source, "acme/rows@2026", kind="dataset")
    first.publish(source, "acme/critical@v1", labels={"tier": "critical"})


class Asked:
    """An endpoint, asked without a socket between."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.library = client.library()
        self.app = HubApp(self.library, secret=SECRET, principal="user:ana")

    def request(
        self, path: str, method: str = "GET", body: bytes = b"", **headers: str
    ) -> tuple[Answer, dict[str, str], bytes]:
        parts = urlsplit(path)
        found = {"host": HOST, "authorization": f"Bearer {SECRET}"}
        found |= {name.replace("_", "-"): value for name, value in headers.items()}
        asked = Request(method=method, raw_path=parts.path, query=parts.query, headers=found, body=body)
        try:
            answer = self.app.answer(asked)
            body = answer.body if isinstance(answer.body, bytes) else b"".join(map(bytes, answer.body))
        except BrokerError as exc:
            answer = self.app.refusal(exc)
            assert isinstance(answer.body, bytes)
            body = answer.body
        return answer, dict(answer.headers), body

    def json(self, path: str) -> Any:
        answer, _, body = self.request(path)
        assert answer.status == 200, body
        return json.loads(body)

    def refused(self, path: str, method: str = "GET", body: bytes = b"", **headers: str) -> dict[str, str]:
        """The headers of a refusal, with its status among them."""
        answer, found, data = self.request(path, method, body, **headers)
        assert json.loads(data) == {"error": found["X-Error-Message"]}
        return {**found, "status": str(answer.status)}


@pytest.fixture
def asked(stack: Stack, reader: Client) -> Iterator[Asked]:
    made = Asked(reader)
    yield made
    made.library.close()


def commit(asked: Asked, revision: str = "main") -> str:
    return str(asked.json(f"{REPO}/revision/{revision}")["sha"])


# -- repositories -------------------------------------------------------------------------------------------


def test_a_repository_is_an_artifact_and_its_commit_is_the_digest(asked: Asked) -> None:
    found = asked.json(REPO)
    version = asked.client.info("acme/hub@v2")
    assert found["id"] == "acme/hub"
    assert found["sha"] == version.digest.removeprefix("sha256:")[:40]
    assert found["author"] == "acme"
    assert found["tags"] == ["step:2", "tier:standard"]
    assert [item["rfilename"] for item in found["siblings"]] == sorted(FILES, key=str.encode)
    assert (found["private"], found["gated"]) == (True, False)
    assert found["usedStorage"] == sum(map(len, FILES.values()))


@pytest.mark.parametrize("revision", ["main", "v2", "commit", "digest"])
def test_a_revision_is_main_a_name_a_commit_or_a_digest(asked: Asked, revision: str) -> None:
    digest = asked.client.info("acme/hub@v2").digest
    named = {"commit": digest.removeprefix("sha256:")[:40], "digest": digest}.get(revision, revision)
    assert (
        asked.json(f"{REPO}/revision/{quote(named, safe='')}")["sha"] == digest.removeprefix("sha256:")[:40]
    )


def test_an_older_version_has_its_own_commit(asked: Asked) -> None:
    old = asked.json(f"{REPO}/revision/v1")
    assert old["sha"] != commit(asked)
    assert asked.json(f"{REPO}/revision/{old['sha']}")["siblings"] == [{"rfilename": "old.txt"}]
    assert Asked(asked.client).json(f"{REPO}/revision/{old['sha']}")["sha"] == old["sha"], "looked up afresh"


def test_the_newest_version_is_main_at_once_for_a_new_agent(
    asked: Asked, publisher: Client, tmp_path: Any
) -> None:
    publisher.publish(make_tree(tmp_path / "1", {"x": b"1"}), "acme/moves@v1")
    first = Asked(asked.client).json("/api/models/acme/moves")["sha"]
    publisher.publish(make_tree(tmp_path / "2", {"x": b"2"}), "acme/moves@v2")
    assert Asked(asked.client).json("/api/models/acme/moves")["sha"] != first
    assert Asked(asked.client).json("/api/models/acme/moves/revision/v1")["sha"] == first


def test_sizes_and_digests_are_those_of_large_files(asked: Asked) -> None:
    found = {item["rfilename"]: item for item in asked.json(f"{REPO}?blobs=true")["siblings"]}
    for path, data in FILES.items():
        digest = hashlib.sha256(data).hexdigest()
        pointer = (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(data)}\n".encode()
        )
        oid = hashlib.sha1(b"blob %d\0%s" % (len(pointer), pointer)).hexdigest()
        lfs = {"sha256": digest, "size": len(data), "pointerSize": len(pointer)}
        assert found[path] == {"rfilename": path, "size": len(data), "blobId": oid, "lfs": lfs}


def test_a_client_may_ask_for_some_members(asked: Asked) -> None:
    found = asked.json(f"{REPO}?expand=sha&expand=tags")
    assert set(found) == {"_id", "id", "modelId", "sha", "tags"}


def test_a_dataset_is_a_dataset_and_not_a_model(asked: Asked) -> None:
    assert asked.json("/api/datasets/acme/rows")["id"] == "acme/rows"
    refused = asked.refused("/api/models/acme/rows")
    assert (refused["status"], refused["X-Error-Code"]) == ("404", "RepoNotFound")
    assert "is a dataset, not a model" in refused["X-Error-Message"]
    refused = asked.refused("/api/datasets/acme/hub")
    assert "is a model, not a dataset" in refused["X-Error-Message"]


def test_lists_of_repositories_are_by_type_author_and_text(asked: Asked) -> None:
    assert {item["id"] for item in asked.json("/api/models")} >= {"acme/hub", "acme/critical"}
    assert [item["id"] for item in asked.json("/api/datasets?author=acme")] == ["acme/rows"]
    assert [item["id"] for item in asked.json("/api/models?search=HUB")] == ["acme/hub"]
    assert len(asked.json("/api/models?limit=1")) == 1
    assert asked.json("/api/models?author=other") == []


def test_refs_are_main_and_a_tag_for_each_version(asked: Asked) -> None:
    found = asked.json(f"{REPO}/refs")
    assert [(item["name"], item["ref"]) for item in found["tags"]] == [
        ("v1", "refs/tags/v1"),
        ("v2", "refs/tags/v2"),
    ]
    assert found["branches"] == [{"name": "main", "ref": "refs/heads/main", "targetCommit": commit(asked)}]
    assert found["tags"][1]["targetCommit"] == commit(asked)
    assert (found["converts"], found["pullRequests"]) == ([], [])


def test_who_one_is(asked: Asked) -> None:
    found = asked.json("/api/whoami-v2")
    assert (found["name"], found["orgs"], found["auth"]["accessToken"]["role"]) == ("user:ana", [], "read")
    assert SECRET not in json.dumps(found)


# -- trees --------------------------------------------------------------------------------------------------


def shown(entries: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(entry["type"], entry["path"]) for entry in entries]


def test_a_tree_is_listed_by_folder_or_whole(asked: Asked) -> None:
    root = [("file", "a-b"), ("file", "a.b"), ("directory", "a")]
    tail = [("file", "big.bin"), ("file", "empty")]
    inner = [("file", "a/b é.txt"), ("directory", "a/b"), ("file", "a/b/c.txt")]
    assert shown(asked.json(f"{REPO}/tree/main")) == root + tail
    assert shown(asked.json(f"{REPO}/tree/main?recursive=True")) == root + inner + tail
    assert shown(asked.json(f"{REPO}/tree/main/a")) == inner[:2]
    assert shown(asked.json(f"{REPO}/tree/main/a%2Fb")) == inner[2:]
    assert shown(asked.json(f"{REPO}/tree/main/a/b?recursive=1")) == inner[2:]


def test_a_file_of_a_tree_has_its_digest(asked: Asked) -> None:
    found = {entry["path"]: entry for entry in asked.json(f"{REPO}/tree/main?recursive=true")}
    entry = found["big.bin"]
    assert entry["lfs"]["oid"] == hashlib.sha256(BIG).hexdigest()
    assert (entry["size"], entry["lfs"]["size"]) == (len(BIG), len(BIG))
    assert len(found["a"]["oid"]) == 40
    assert found["a"]["oid"] != found["a/b"]["oid"]
    assert "lastCommit" not in entry


def test_expanded_entries_say_when_they_came(asked: Asked) -> None:
    for entry in asked.json(f"{REPO}/tree/main?expand=true"):
        assert entry["lastCommit"]["id"] == commit(asked)
        assert entry["lastCommit"]["title"] == "v2"
        assert entry["lastCommit"]["date"].endswith("Z")


def test_long_trees_come_in_pages_that_are_linked(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "TREE_PAGE", 3)
    whole = asked.json(f"{REPO}/tree/main?recursive=true&limit=3")
    path, pages = f"{REPO}/tree/main?recursive=true", []
    while path:
        _, headers, body = asked.request(path)
        pages.append(json.loads(body))
        assert headers["X-Repo-Commit"] == commit(asked)
        link = headers.get("Link", "")
        path = link.partition(">")[0].lstrip("<").removeprefix(f"http://{HOST}")
        assert bool(path) == (link.endswith('>; rel="next"'))
    assert list(map(len, pages)) == [3, 3, 2]
    assert pages[0] == whole
    monkeypatch.undo()
    assert [*pages[0], *pages[1], *pages[2]] == asked.json(f"{REPO}/tree/main?recursive=true")


def test_a_folder_that_is_not_there(asked: Asked) -> None:
    for path in ("nope", "a-", "big.bin", "a/b/c.txt", "%20", "a%00b"):
        refused = asked.refused(f"{REPO}/tree/main/{path}")
        assert (refused["status"], refused["X-Error-Code"]) == ("404", "EntryNotFound")


@pytest.mark.parametrize("form", [True, False], ids=["form", "json"])
def test_some_paths(asked: Asked, form: bool) -> None:
    paths = ["a/b é.txt", "a/b", "nope", "../x", ""]
    if form:
        body, kind = (
            urlencode({"paths": paths, "expand": False}, doseq=True),
            "application/x-www-form-urlencoded",
        )
    else:
        body, kind = json.dumps({"paths": paths, "expand": False}), "application/json"
    answer, _, data = asked.request(f"{REPO}/paths-info/v2", "POST", body.encode(), content_type=kind)
    assert answer.status == 200
    assert shown(json.loads(data)) == [("file", "a/b é.txt"), ("directory", "a/b")]


@pytest.mark.parametrize(
    "body", ["[]", '{"paths": "a"}', '{"paths": [1]}', "{", '{"paths": ["a"], "paths": []}']
)
def test_paths_that_are_not_a_list_of_paths(asked: Asked, body: str) -> None:
    refused = asked.refused(f"{REPO}/paths-info/main", "POST", body.encode(), content_type="application/json")
    assert refused["status"] == "400"


def test_the_number_of_paths_is_bounded(asked: Asked) -> None:
    for count, expected in ((hub.MAX_PATHS, 200), (hub.MAX_PATHS + 1, 400)):
        body = json.dumps({"paths": ["big.bin"] * count}).encode()
        answer, _, _ = asked.request(f"{REPO}/paths-info/main", "POST", body, content_type="application/json")
        assert answer.status == expected
    form = "&".join(["paths=a"] * (hub.MAX_PATHS + 100)).encode()
    assert asked.refused(f"{REPO}/paths-info/main", "POST", form)["status"] == "400"


# -- files --------------------------------------------------------------------------------------------------


def test_a_head_has_the_true_length_and_names(asked: Asked) -> None:
    answer, headers, body = asked.request("/acme/hub/resolve/main/big.bin", "HEAD")
    digest = hashlib.sha256(BIG).hexdigest()
    assert (answer.status, answer.length, body) == (200, len(BIG), b"")
    assert headers["ETag"] == headers["X-Linked-Etag"] == f'"{digest}"'
    assert headers["X-Linked-Size"] == str(len(BIG))
    assert headers["X-Repo-Commit"] == commit(asked)
    assert headers["Accept-Ranges"] == "bytes"
    assert not [name for name in headers if "xet" in name.lower() or name.lower() in ("location", "link")]


def test_looking_is_not_reading_and_reading_is_recorded(stack: Stack, asked: Asked) -> None:
    asked.request("/acme/hub/resolve/main/big.bin", "HEAD")
    size = stack.world.size()
    asked.request("/acme/hub/resolve/main/big.bin", "HEAD")
    asked.json(f"{REPO}/tree/main?recursive=true")
    assert stack.world.size() == size
    asked.request("/acme/hub/resolve/main/empty")
    assert stack.world.size() > size, "an empty file, too"


@pytest.mark.parametrize("path", sorted(FILES))
@pytest.mark.parametrize("prefix", ["/acme/hub", "/datasets/acme/rows"])
def test_a_file_comes_byte_by_byte(asked: Asked, prefix: str, path: str) -> None:
    answer, _, body = asked.request(f"{prefix}/resolve/main/{quote(path)}")
    assert (answer.status, answer.length, body) == (200, len(FILES[path]), FILES[path])


@pytest.mark.parametrize(
    ("text", "start", "stop"),
    [("bytes=0-99", 0, 100), ("bytes=1048570-", 1048570, len(BIG)), ("bytes=-5", -5, None)],
)
def test_a_range_comes_alone(asked: Asked, text: str, start: int, stop: int | None) -> None:
    answer, headers, body = asked.request("/acme/hub/resolve/main/big.bin", range=text)
    assert (answer.status, body, answer.length) == (206, BIG[start:stop], len(BIG[start:stop]))
    first = start % len(BIG)
    assert headers["Content-Range"] == f"bytes {first}-{first + len(body) - 1}/{len(BIG)}"


def test_a_range_past_the_end_is_refused_as_a_range(asked: Asked) -> None:
    answer, headers, body = asked.request("/acme/hub/resolve/main/big.bin", range=f"bytes={len(BIG)}-")
    assert (answer.status, headers["Content-Range"], body) == (416, f"bytes */{len(BIG)}", b"")


def test_resuming_is_for_the_same_content_only(asked: Asked) -> None:
    _, headers, _ = asked.request("/acme/hub/resolve/main/big.bin", "HEAD")
    same = asked.request("/acme/hub/resolve/main/big.bin", range="bytes=9-", if_range=headers["ETag"])
    other = asked.request("/acme/hub/resolve/main/big.bin", range="bytes=9-", if_range='"of another"')
    assert (same[0].status, same[2]) == (206, BIG[9:])
    assert (other[0].status, other[2]) == (200, BIG)


# -- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/api/models/acme/nope", "RepoNotFound"),
        ("/api/models/acme", "RepoNotFound"),
        ("/api/models/ACME/hub", "RepoNotFound"),
        ("/api/models/acme/nope/refs", "RepoNotFound"),
        ("/api/models/acme/hub/revision/v9", "RevisionNotFound"),
        ("/api/models/acme/hub/revision/latest", "RevisionNotFound"),
        ("/api/models/acme/hub/revision/refs%2Fpr%2F1", "RevisionNotFound"),
        ("/api/models/acme/hub/revision/" + "0" * 40, "RevisionNotFound"),
        ("/acme/nope/resolve/main/x", "RepoNotFound"),
        ("/acme/hub/resolve/v9/x", "RevisionNotFound"),
        ("/acme/hub/resolve/main/x", "EntryNotFound"),
        ("/acme/hub/resolve/main/a", "EntryNotFound"),
        ("/acme/hub/resolve/main/", "EntryNotFound"),
        ("/acme/rows/resolve/main/empty", "RepoNotFound"),
    ],
)
def test_what_is_not_there_is_told_apart(asked: Asked, path: str, code: str) -> None:
    refused = asked.refused(path)
    assert (refused["status"], refused["X-Error-Code"]) == ("404", code)
    assert "next: broker ls" in refused["X-Error-Message"] or "is a dataset" in refused["X-Error-Message"]
    assert ("X-HF-Warning" in refused) == (code != "EntryNotFound")


def test_a_missing_file_names_the_commit_that_it_is_missing_in(asked: Asked) -> None:
    assert asked.refused("/acme/hub/resolve/v2/nope")["X-Repo-Commit"] == commit(asked)


def test_what_is_not_visible_does_not_exist(stack: Stack, asked: Asked) -> None:
    stranger = Asked(stack.add("eve"))
    hidden = stranger.refused("/api/models/acme/hub")
    missing = stranger.refused("/api/models/acme/nope")
    assert hidden["X-Error-Message"].replace("hub", "nope") == missing["X-Error-Message"]
    assert hidden["status"] == missing["status"] == "404"
    assert stranger.refused("/acme/hub/resolve/main/big.bin")["X-Error-Code"] == "RepoNotFound"
    assert stranger.json("/api/models") == []


def test_a_denied_read_carries_policy_and_next_step(asked: Asked) -> None:
    assert asked.json("/api/models/acme/critical")["id"] == "acme/critical"
    refused = asked.refused("/acme/critical/resolve/main/big.bin")
    assert (refused["status"], refused["X-Error-Code"]) == ("403", "GatedRepo")
    assert 'policy "critical-needs-approval"' in refused["X-Error-Message"]
    assert "next: " in refused["X-Error-Message"]
    topic, _, told = refused["X-HF-Warning"].partition("; ")
    assert told == refused["X-Error-Message"]
    assert len(topic) == 16


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])
@pytest.mark.parametrize(
    "path", [REPO, "/api/repos/create", "/acme/hub/resolve/main/empty", "/api/models", "/"]
)
def test_nothing_is_written(asked: Asked, method: str, path: str) -> None:
    refused = asked.refused(path, method, b"{}")
    assert refused["status"] == "403"
    assert "read-only" in refused["X-Error-Message"]


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/api",
        "/api/spaces/acme/hub",
        "/acme/hub",
        "/acme/hub/raw/main/x",
        f"{REPO}/commits/main",
        "//",
        f"{REPO}/tree",
        f"{REPO}/xet-read-token/main",
        f"{REPO}/revision/v1/x",
        "/api/models/acme/hub/auth-check",
    ],
)
def test_what_is_not_served_does_not_exist(asked: Asked, path: str) -> None:
    assert asked.refused(path)["status"] == "404"


@pytest.mark.parametrize("path", [f"{REPO}/tree/%ff", f"{REPO}?a=%ff", f"{REPO}?{'&'.join(['a=1'] * 33)}"])
def test_what_is_not_readable_is_refused(asked: Asked, path: str) -> None:
    assert asked.refused(path)["status"] == "400"


@pytest.mark.parametrize("code", sorted(HTTP_STATUS))
def test_every_error_has_an_answer_that_clients_understand(code: str) -> None:
    answer = refuse(ERROR_CLASS[code]("what failed", why="a reason", next="a step"))
    headers = dict(answer.headers)
    assert headers["X-Error-Message"] == "what failed | why: a reason | next: a step"
    assert answer.status >= 400
    assert answer.status != 401, "a client takes 401 for a missing repository"
    assert (headers.get("X-Error-Code") == "GatedRepo") == (HTTP_STATUS[code] in (401, 403))


def test_a_limit_says_when_to_come_back() -> None:
    assert dict(refuse(RateLimited("slow down", retry_after=7)).headers)["Retry-After"] == "7"


@pytest.mark.parametrize(
    "text", ["a\r\nX-Evil: 1", "a\nb", "\x1b[31mred", "\u202eevil", "naïve", "x" * 5000, "\udcff", "\x7f"]
)
def test_a_message_is_one_bounded_line_of_printable_ascii(text: str) -> None:
    for error in (Denied(text, why=text, next=text), NotFound(text)):
        told = message_of(error)
        assert told.isascii()
        assert told.isprintable()
        assert len(told) <= MAX_MESSAGE
        for name, value in refuse(error).headers:
            assert name.isprintable()
            assert value.isascii()
            assert value.isprintable()
