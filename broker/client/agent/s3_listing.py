"""Listings of a bucket: the files of versions as keys, in order, in pages.

``name/path`` is a file of the newest version of an artifact, ``name@version/path`` one of a named version.
Both are keys, but a listing shows the latter only when its prefix has the ``@``: otherwise every file would
be listed once for each version. Only versions that a page really shows are fetched.

**Source**: Amazon S3 API Reference, *ListObjectsV2* and *ListObjects*: keys ascend by their UTF-8 bytes;
keys with the delimiter after the prefix are rolled up.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Final

from broker.canonical import b64url, parse_b64url
from broker.client.agent.s3_errors import refuse_bucket, refuse_key
from broker.client.library import Library, Listed
from broker.client.versions import TrustedVersion
from broker.envelope.manifest import ManifestFile
from broker.errors import InvalidRequest, MalformedRequest, NotFound

MAX_KEYS: Final = 1000
"""Keys and common prefixes of one page, at most."""
_LAST: Final = b"\xff"
"""Sorts after whatever follows: no UTF-8 text has this byte."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a listing is asked for.

    Attributes:
        after: Only keys above these bytes; a key, or a common prefix and :data:`_LAST`.
        most: Keys and common prefixes, at most.
    """

    prefix: str
    delimiter: str
    after: bytes
    most: int


@dataclass(frozen=True, kw_only=True)
class Item:
    """A key with its file, or (without one) a common prefix."""

    key: str
    file: ManifestFile | None = None
    version: TrustedVersion | None = None

    @property
    def place(self) -> bytes:
        """Where a listing goes on behind it."""
        return self.key.encode() + (b"" if self.file else _LAST)


@dataclass(frozen=True, kw_only=True)
class Page:
    """Part of a listing; ``truncated`` when there is more behind it."""

    items: tuple[Item, ...]
    truncated: bool


@dataclass(frozen=True, kw_only=True)
class _Root:
    """A version's place among the keys: ``key`` ends with the slash."""

    key: str
    load: Callable[[], TrustedVersion]


def list_page(library: Library, collection: str, question: Question) -> Page:
    """One page of a bucket.

    Raises:
        S3Refusal: There is no such bucket, or it is not visible.
        BrokerError: As the broker answers.
    """
    found = _items(_roots(library, collection, question.prefix), question)
    items = tuple(islice(found, question.most))
    if not items:
        # A version that is not there has no keys; but a listing, even an empty one, needs its bucket.
        find_artifacts(library, collection)
    return Page(items=items, truncated=bool(items) and next(found, None) is not None)


def find_artifacts(library: Library, collection: str) -> list[Listed]:
    """What a bucket holds that the caller may see: at least one artifact.

    Raises:
        S3Refusal: There is none, so there is no bucket.
    """
    try:
        found = library.artifacts(collection)
    except (NotFound, InvalidRequest) as exc:
        raise refuse_bucket(collection) from exc
    if not found:
        raise refuse_bucket(collection)
    return found


def open_version(library: Library, collection: str, named: str) -> TrustedVersion:
    """The version that ``name`` (the newest) or ``name@version`` means.

    Raises:
        NotFound: There is none, or it is not visible, or that is not a name.
        IntegrityFailure: Its trust path does not hold.
    """
    name, at, version = named.partition("@")
    try:
        return library.version(collection, name, version if at else None)
    except InvalidRequest as exc:
        raise refuse_key() from exc


def token_of(place: bytes) -> str:
    """A continuation token: opaque to clients."""
    return b64url(place)


def parse_token(text: str) -> bytes:
    """Where a listing goes on.

    Raises:
        InvalidRequest: It is no token of :func:`token_of`.
    """
    try:
        return parse_b64url(text)
    except MalformedRequest as exc:
        raise InvalidRequest("the continuation token is not one of this endpoint's") from exc


def place_of_marker(marker: str, *, prefix: str, delimiter: str) -> bytes:
    """Where a listing goes on behind a marker: a key, or a common prefix of the page before."""
    inner = marker[len(prefix) :] if marker.startswith(prefix) else ""
    rolled = bool(delimiter) and inner.endswith(delimiter)
    return marker.encode() + (_LAST if rolled else b"")


# -- keys -------------------------------------------------------------------------------------------------


def _roots(library: Library, collection: str, prefix: str) -> list[_Root]:
    """The versions below which there may be keys with this prefix, in the order of their keys."""
    first, slash, _ = prefix.partition("/")
    if slash:
        names = [first]
    elif "@" in first:
        names = [named for named in _versions(library, collection, first) if named.startswith(first)]
    else:
        listed = find_artifacts(library, collection)
        names = [each.name for each in listed if each.newest and each.name.startswith(first)]
    roots = [_Root(key=f"{each}/", load=partial(open_version, library, collection, each)) for each in names]
    return sorted(roots, key=lambda root: root.key.encode())


def _versions(library: Library, collection: str, first: str) -> list[str]:
    name = first.partition("@")[0]
    try:
        return [f"{name}@{each.name}" for each in library.versions(collection, name)]
    except (NotFound, InvalidRequest):
        return []


def _items(roots: Sequence[_Root], question: Question) -> Iterator[Item]:
    after = question.after
    for root in roots:
        if root.key.encode() + _LAST <= after:
            continue
        rolled = _roll(root.key, question)
        if rolled is not None:
            # The whole version is behind one prefix: there is no need to look into it.
            item = Item(key=rolled)
            yield item
            after = item.place
            continue
        for item in _items_below(root, question, after):
            yield item
            after = item.place


def _items_below(root: _Root, question: Question, after: bytes) -> Iterator[Item]:
    try:
        version = root.load()
    except NotFound:
        return
    files = version.manifest.files

    def key_of(file: ManifestFile) -> bytes:
        return (root.key + file.path).encode()

    at = max(bisect_left(files, question.prefix.encode(), key=key_of), bisect_right(files, after, key=key_of))
    while at < len(files) and (key := root.key + files[at].path).startswith(question.prefix):
        rolled = _roll(key, question)
        if rolled is None:
            yield Item(key=key, file=files[at], version=version)
            at += 1
        else:
            item = Item(key=rolled)
            yield item
            at = bisect_left(files, item.place, lo=at, key=key_of)


def _roll(key: str, question: Question) -> str | None:
    """The common prefix that stands for a key, if it is rolled up."""
    if not question.delimiter or not key.startswith(question.prefix):
        return None
    found = key.find(question.delimiter, len(question.prefix))
    return None if found < 0 else key[: found + len(question.delimiter)]
