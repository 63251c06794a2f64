"""The Hub endpoint: the read side of the Hugging Face Hub API over a library, for unmodified clients.

``collection/name`` is a repository (a checkpoint is a model, a dataset a dataset), a version is a tag, and
``main`` is the newest one. What the endpoint does not serve does not exist on it: nothing is written, no
storage is offered but this one (no Xet, no redirects), nothing is compressed, nothing is kept on disk.

Looking at a repository is ``describe`` to policy. Bytes are leased when they are asked for, file by file,
and recorded; what policy says no to is answered before the first byte.

**Source**: huggingface_hub 0.36, 1.x and 2.x: ``hf_api.py``, ``file_download.py``, ``hf_file_system.py``.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from urllib.parse import parse_qs, quote, unquote

from broker import limits
from broker.canonical import parse_json_object
from broker.client.agent import repos
from broker.client.agent.byterange import read_range
from broker.client.agent.http import Answer, Request
from broker.client.agent.hub_refusals import refuse, refuse_secret
from broker.client.agent.revisions import MAIN, REPO_TYPES, Missing, Repo, Revisions, commit_of
from broker.client.library import Library
from broker.client.versions import TrustedVersion
from broker.envelope.manifest import ManifestFile
from broker.errors import BrokerError, MalformedRequest, MethodNotAllowed, NotFound

TREE_PAGE: Final = 5000
"""Entries of a tree in one answer; the next page is linked."""
LIST_PAGE: Final = 1000
MAX_PATHS: Final = 1000
"""Paths that one question may be about."""
MOST_ENTRIES: Final = limits.MAX_FILES * limits.MAX_PATH
"""More files and folders than a version can have."""
_SCHEME: Final = "bearer "
_FORM: Final = "application/x-www-form-urlencoded"
_YES: Final = frozenset({"true", "1"})

Query = Mapping[str, Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class _Call:
    """A request, taken apart."""

    request: Request
    query: Query
    parts: tuple[str, ...]
    """Segments of the path, decoded; a segment may hold a slash that was encoded."""

    def flag(self, name: str) -> bool:
        return self.query.get(name, ("",))[-1].lower() in _YES

    def number(self, name: str, default: int, *, most: int) -> int:
        text = self.query.get(name, ("",))[-1]
        return min(int(text), most) if text.isascii() and text.isdigit() and len(text) < 16 else default


class HubApp:
    """Answers Hub clients out of a library. Safe to share between threads.

    Args:
        library: What the caller may see and read.
        secret: The bearer token without which nothing is answered.
        principal: The caller's id, told to clients that ask who they are.
    """

    def __init__(self, library: Library, *, secret: str, principal: str) -> None:
        self._library = library
        self._secret = secret.encode()
        self._principal = principal
        self._revisions = Revisions(library)

    # -- the app ----------------------------------------------------------------------------------------

    def answer(self, request: Request) -> Answer:
        """The answer to one request.

        Raises:
            BrokerError: It is refused; :meth:`refusal` says so to the client.
        """
        if not self._knows_secret(request):
            return refuse_secret()
        call = _parse_call(request)
        route = self._route(call.parts, reads=request.method in ("GET", "HEAD"))
        if route is None and request.method not in ("GET", "HEAD"):
            raise MethodNotAllowed(
                "this endpoint is read-only", next="broker put PATH COLLECTION/NAME@VERSION"
            )
        if route is None:
            raise NotFound("this endpoint has no such page", why="it serves models and datasets, read-only")
        return route(call)

    def refusal(self, error: BrokerError) -> Answer:
        """An error in the words of the Hub."""
        return refuse(error)

    def _knows_secret(self, request: Request) -> bool:
        given = request.headers.get("authorization", "")
        token = given[len(_SCHEME) :] if given[: len(_SCHEME)].lower() == _SCHEME else ""
        return hmac.compare_digest(token.encode("utf-8", "surrogateescape"), self._secret)

    def _route(self, parts: tuple[str, ...], *, reads: bool) -> Callable[[_Call], Answer] | None:
        """The view of a path; ``reads`` is whether the method is GET or HEAD."""
        if parts[:1] == ("api",):
            return self._api_route(parts[1:], reads=reads)
        # A dataset's path is that of a model with one more segment before it.
        for kind, rest in (("dataset", parts[1:] if parts[:1] == ("datasets",) else ()), ("model", parts)):
            if len(rest) >= 5 and rest[2] == "resolve" and reads:
                repo = Repo(kind=kind, collection=rest[0], name=rest[1])
                return partial(self._file, repo=repo, revision=rest[3], path="/".join(rest[4:]))
        return None

    def _api_route(self, parts: tuple[str, ...], *, reads: bool) -> Callable[[_Call], Answer] | None:
        if parts == ("whoami-v2",) and reads:
            return self._whoami
        kind = next((kind for kind in REPO_TYPES if parts[:1] == (f"{kind}s",)), None)
        if kind is None:
            return None
        if len(parts) == 1:
            return partial(self._list, kind=kind) if reads else None
        if len(parts) == 2:
            parts = (*parts, "")
        repo, rest = Repo(kind=kind, collection=parts[1], name=parts[2]), parts[3:]
        verb, revision = rest[0] if rest else "revision", rest[1] if len(rest) > 1 else MAIN
        if verb == "paths-info" and len(rest) == 2 and not reads:
            return partial(self._paths, repo=repo, revision=revision)
        if not reads:
            return None
        if verb == "revision" and len(rest) in (0, 2):
            return partial(self._info, repo=repo, revision=revision)
        if verb == "tree" and len(rest) >= 2:
            return partial(self._tree, repo=repo, revision=revision, folder="/".join(rest[2:]))
        return partial(self._refs, repo=repo) if rest == ("refs",) else None

    # -- views ------------------------------------------------------------------------------------------

    def _whoami(self, _: _Call) -> Answer:
        who = self._principal
        token = {"displayName": "broker agent", "role": "read"}
        auth = {"type": "access_token", "accessToken": token}
        return _json({"type": "user", "id": who, "name": who, "fullname": who, "orgs": [], "auth": auth})

    def _list(self, call: _Call, *, kind: str) -> Answer:
        author, wanted = call.query.get("author", (None,))[-1], call.query.get("search", ("",))[-1].lower()
        found = [listed for listed in self._library.artifacts(author) if listed.kind == REPO_TYPES[kind]]
        shown = [info for listed in found if wanted in (info := repos.listed_info(listed))["id"]]
        return _json(shown[: call.number("limit", LIST_PAGE, most=LIST_PAGE)])

    def _info(self, call: _Call, *, repo: Repo, revision: str) -> Answer:
        version = self._revisions.find(repo, revision)
        wanted = set(call.query.get("expand", ()))
        found = repos.repo_info(repo, version, sizes=call.flag("blobs"))
        if wanted:
            found = {
                name: value for name, value in found.items() if name in wanted | {"_id", "id", "modelId"}
            }
        return _json(found, [("X-Repo-Commit", commit_of(version.digest))])

    def _refs(self, _: _Call, *, repo: Repo) -> Answer:
        self._revisions.find(repo)
        return _json(repos.refs_info(self._revisions.versions(repo)))

    def _tree(self, call: _Call, *, repo: Repo, revision: str, folder: str) -> Answer:
        version = self._revisions.find(repo, revision)
        if not repos.has_folder(version, folder):
            raise _no_entry(version, folder)
        start = call.number("cursor", 0, most=MOST_ENTRIES)
        page, more = repos.tree_page(
            version,
            folder,
            recursive=call.flag("recursive"),
            expand=call.flag("expand"),
            start=start,
            most=max(1, call.number("limit", TREE_PAGE, most=TREE_PAGE)),
        )
        headers = [("X-Repo-Commit", commit_of(version.digest))]
        if more:
            headers.append(("Link", f'<{_next_page(call, start + len(page))}>; rel="next"'))
        return _json(page, headers)

    def _paths(self, call: _Call, *, repo: Repo, revision: str) -> Answer:
        paths, expand = _asked_paths(call.request)
        version = self._revisions.find(repo, revision)
        found = (repos.path_entry(version, path, expand=expand) for path in paths)
        return _json([entry for entry in found if entry is not None])

    def _file(self, call: _Call, *, repo: Repo, revision: str, path: str) -> Answer:
        version = self._revisions.find(repo, revision)
        file = repos.find_file(version, path)
        if file is None:
            raise _no_entry(version, path)
        headers = _file_headers(version, file)
        if call.request.method == "HEAD":
            return Answer(status=200, headers=headers, length=file.size)
        wanted = read_range(call.request.headers, size=file.size, etag=repos.etag_of(file))
        if wanted is None:
            return Answer(status=416, headers=[*headers, ("Content-Range", f"bytes */{file.size}")])
        if wanted.partial:
            headers.append(("Content-Range", wanted.content_range))
        # Recorded before a byte leaves: the grant is asked for at the first piece, before the status is sent.
        body = self._library.reader(version).iterate(file.path, wanted.start, wanted.stop)
        return Answer(status=206 if wanted.partial else 200, headers=headers, body=body, length=wanted.length)


# -- requests -----------------------------------------------------------------------------------------------


def _parse_call(request: Request) -> _Call:
    try:
        parts = tuple(unquote(part, errors="strict") for part in request.raw_path.split("/")[1:])
        query = parse_qs(request.query, errors="strict", max_num_fields=limits.MAX_PAIRS)
    except (ValueError, UnicodeDecodeError) as exc:
        raise MalformedRequest("the request's path or query is not readable") from exc
    return _Call(request=request, query=query, parts=parts)


def _asked_paths(request: Request) -> tuple[list[str], bool]:
    """The paths, and whether more is asked for, of a form (huggingface_hub) or of JSON (other clients)."""
    kind = request.headers.get("content-type", _FORM).partition(";")[0].strip().lower()
    if kind == _FORM:
        try:
            found = parse_qs(
                request.body.decode(), errors="strict", max_num_fields=MAX_PATHS + limits.MAX_PAIRS
            )
        except (ValueError, UnicodeDecodeError) as exc:
            raise MalformedRequest("the form is not readable") from exc
        return found.get("paths", []), found.get("expand", [""])[-1].lower() in _YES
    body = parse_json_object(request.body)
    paths = body.get("paths", [])
    if not isinstance(paths, list) or len(paths) > MAX_PATHS or not all(isinstance(p, str) for p in paths):
        raise MalformedRequest(f"paths is a list of at most {MAX_PATHS} paths")
    return paths, body.get("expand") is True


def _next_page(call: _Call, cursor: int) -> str:
    """The absolute URL of the next page. The Host was checked: it is this very endpoint's address."""
    kept = [(name, value) for name, values in call.query.items() for value in values if name != "cursor"]
    query = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in kept)
    path = call.request.raw_path
    return f"http://{call.request.headers['host']}{path}?{query}{'&' if query else ''}cursor={cursor}"


# -- answers ------------------------------------------------------------------------------------------------


def _no_entry(version: TrustedVersion, path: str) -> Missing:
    return Missing(
        f"{version.ref} has no file {path[: limits.MAX_PATH]!a}",
        part="Entry",
        commit=commit_of(version.digest),
        next=f"broker ls {version.ref}",
    )


def _file_headers(version: TrustedVersion, file: ManifestFile) -> list[tuple[str, str]]:
    etag = repos.etag_of(file)
    return [
        ("Content-Type", "application/octet-stream"),
        ("Accept-Ranges", "bytes"),
        ("Cache-Control", "no-store"),
        ("ETag", etag),
        ("X-Linked-Etag", etag),
        ("X-Linked-Size", str(file.size)),
        ("X-Repo-Commit", commit_of(version.digest)),
    ]


def _json(value: Any, more: Sequence[tuple[str, str]] = ()) -> Answer:
    headers = [("Content-Type", "application/json; charset=utf-8"), ("Cache-Control", "no-store"), *more]
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    return Answer(status=200, headers=headers, body=body, length=len(body))
