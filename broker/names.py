"""The grammar of names: references, paths, principals, labels and globs (I04, I05).

A name that does not fit its grammar exactly is refused, never repaired: what reaches policy, SQL,
object names and the file system is only what passed here.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from broker import limits
from broker.errors import InvalidRequest, TooLarge

_PART: Final = r"[a-z0-9][a-z0-9._-]{0,62}"
_PART_RE: Final = re.compile(_PART)
_VERSION_RE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_DIGEST_RE: Final = re.compile(r"sha256:[0-9a-f]{64}")
_PRINCIPAL_RE: Final = re.compile(r"(user|workload):[A-Za-z0-9][A-Za-z0-9._@+/-]{0,199}")
_LABEL_KEY_RE: Final = re.compile(r"[a-z][a-z0-9_.-]{0,62}")
_LABEL_VALUE_RE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}")
_GROUP_RE: Final = _PART_RE
SCHEME: Final = "broker://"
RESERVED_SEGMENT: Final = ".broker"


@dataclass(frozen=True, kw_only=True)
class Ref:
    """A parsed reference: ``[broker://]collection/name[@version][/path]``.

    ``version`` is the publisher's name of it, or ``sha256:<64 hex>`` (the manifest digest), or None
    for the newest committed one.
    """

    collection: str
    name: str
    version: str | None = None
    path: str | None = None

    @property
    def artifact(self) -> str:
        """``collection/name``."""
        return f"{self.collection}/{self.name}"

    def __str__(self) -> str:
        version = f"@{self.version}" if self.version else ""
        path = f"/{self.path}" if self.path else ""
        return f"{self.artifact}{version}{path}"


def _refuse(what: str, text: str, grammar: str) -> InvalidRequest:
    shown = ascii(text[:80])
    return InvalidRequest(f"{what} {shown} is not valid", why=grammar)


def parse_part(text: str, what: str) -> str:
    """A collection or artifact name: ``[a-z0-9][a-z0-9._-]{0,62}`` without ``..``.

    Raises:
        InvalidRequest: It is something else.
    """
    if not isinstance(text, str) or not _PART_RE.fullmatch(text) or ".." in text:
        raise _refuse(what, str(text), "lower-case letters, digits, '.', '_', '-'; at most 63; no '..'")
    return text


def parse_version(text: str) -> str:
    """A version name or ``sha256:<64 hex>``; the word ``latest`` is refused.

    Raises:
        InvalidRequest: It is something else.
    """
    if isinstance(text, str) and _DIGEST_RE.fullmatch(text):
        return text
    if not isinstance(text, str) or not _VERSION_RE.fullmatch(text) or ".." in text:
        raise _refuse("version", str(text), "letters, digits, '.', '_', '-'; at most 128; or sha256:<64 hex>")
    if text == "latest":
        raise _refuse("version", text, "'latest' is not a version: leave the version out for the newest")
    return text


def parse_version_name(text: str) -> str:
    """A version as a publisher may name it: like :func:`parse_version`, but not a digest."""
    if isinstance(text, str) and text.startswith("sha256:"):
        raise _refuse("version", text, "a publisher names a version; its digest is computed")
    return parse_version(text)


def parse_path(text: str) -> str:
    """A file's path inside a version: NFC UTF-8, relative, at most 1,024 bytes.

    Refused: empty, ``.`` and ``..`` segments, backslash, control and unassigned-format characters,
    drive or stream colons at the front of a segment's name, a first segment ``.broker``.

    Raises:
        InvalidRequest: It is not such a path.
    """
    grammar = "relative, NFC, no empty/./.. segment, no backslash or control character, at most 1,024 bytes"
    if not isinstance(text, str) or not text:
        raise _refuse("path", str(text), grammar)
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError as exc:
        raise _refuse("path", text, grammar) from exc
    if size > limits.MAX_PATH or unicodedata.normalize("NFC", text) != text or "\\" in text:
        raise _refuse("path", text, grammar)
    if any(unicodedata.category(ch) in ("Cc", "Cf", "Cs", "Zl", "Zp") for ch in text):
        raise _refuse("path", text, grammar)
    segments = text.split("/")
    if any(segment in ("", ".", "..") for segment in segments):
        raise _refuse("path", text, grammar)
    if segments[0].casefold() == RESERVED_SEGMENT:
        raise _refuse("path", text, "the first segment '.broker' is reserved for the client's own state")
    return text


def fold_path(path: str) -> str:
    """The form under which two paths would fall on one file of a case- or form-blind file system."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFKC", path).casefold())


def check_distinct_paths(paths: Iterable[str]) -> None:
    """No two paths differ by case or Unicode form only, and none is a folder of another.

    Raises:
        InvalidRequest: Two of them collide; the message names them.
    """
    seen: dict[str, str] = {}
    for path in paths:
        folded = fold_path(path)
        if folded in seen:
            raise InvalidRequest(f"paths {seen[folded]!r} and {path!r} differ by case or Unicode form only")
        seen[folded] = path
    # With the separator before every other character, what is inside a folder follows it directly. So
    # neighbours tell, and nothing is remembered of the folders of a deep path (I17).
    for before, after in pairwise(sorted(seen, key=lambda folded: folded.replace("/", "\0"))):
        if after.startswith(f"{before}/"):
            raise InvalidRequest(f"path {seen[before]!r} is both a file and the folder of {seen[after]!r}")


def parse_ref(text: str) -> Ref:
    """A reference in the project's grammar.

    Raises:
        InvalidRequest: The text, or one part of it, is not valid.
    """
    if not isinstance(text, str) or len(text) > 4 * limits.MAX_PATH:
        raise _refuse("reference", str(text), "collection/name[@version][/path]")
    body = text.removeprefix(SCHEME)
    collection, slash, rest = body.partition("/")
    if not slash:
        raise _refuse("reference", text, "collection/name[@version][/path]")
    head, slash, path = rest.partition("/")
    name, at, version = head.partition("@")
    return Ref(
        collection=parse_part(collection, "collection"),
        name=parse_part(name, "name"),
        version=parse_version(version) if at else None,
        path=parse_path(path) if slash else None,
    )


def parse_artifact(text: str) -> tuple[str, str]:
    """``collection/name`` as its two parts.

    Raises:
        InvalidRequest: It is something else.
    """
    ref = parse_ref(text)
    if ref.version or ref.path or text.startswith(SCHEME):
        raise _refuse("artifact", text, "collection/name")
    return ref.collection, ref.name


def parse_principal(text: str) -> str:
    """A principal's id: ``user:...`` or ``workload:...``; a bare id means ``user:``.

    Raises:
        InvalidRequest: It is something else.
    """
    full = text if isinstance(text, str) and ":" in text else f"user:{text}"
    if not _PRINCIPAL_RE.fullmatch(full) or ".." in full or "//" in full or len(full) > limits.MAX_PRINCIPAL:
        raise _refuse("principal", str(text), "user:NAME or workload:NAME of letters, digits and ._@+/-")
    return full


def parse_group(text: str) -> str:
    """A group's name, of the grammar of collections.

    Raises:
        InvalidRequest: It is something else.
    """
    return parse_part(text, "group")


def parse_label(text: str) -> tuple[str, str]:
    """``key=value`` as its two parts.

    Raises:
        InvalidRequest: It is something else.
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise _refuse("label", text, "KEY=VALUE")
    check_label(key, value)
    return key, value


def check_label(key: str, value: str) -> None:
    """Both parts of a label fit their grammar.

    Raises:
        InvalidRequest: One of them does not.
    """
    if not isinstance(key, str) or not _LABEL_KEY_RE.fullmatch(key):
        raise _refuse("label name", str(key), "[a-z][a-z0-9_.-]{0,62}")
    if not isinstance(value, str) or not _LABEL_VALUE_RE.fullmatch(value):
        raise _refuse("label value", str(value), "[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}")


# -- globs ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Glob:
    """A parsed pattern; :meth:`matches` takes time O(pattern x path), whatever the pattern says."""

    text: str
    segments: tuple[re.Pattern[str] | None, ...]
    """One pattern for each segment; None stands for ``**``."""

    def matches(self, path: str) -> bool:
        """Whether the whole path matches, anchored at the version's root."""
        parts = path.split("/")
        at = segment = 0
        star = resume = -1
        while at < len(parts):
            pattern = self.segments[segment] if segment < len(self.segments) else _NOTHING
            if pattern is None:
                star, resume = segment, at
                segment += 1
            elif pattern.fullmatch(parts[at]):
                at, segment = at + 1, segment + 1
            elif star >= 0:
                # Only the last ** needs to be widened: what an earlier one took can stay.
                resume += 1
                at, segment = resume, star + 1
            else:
                return False
        return segment == len(self.segments)


_NOTHING: Final = re.compile(r"(?!)")
_GLOB_GRAMMAR: Final = "segments of literals, *, ?, [a-b]; ** only as a whole segment"


def parse_glob(text: str) -> Glob:
    """Our small glob grammar, anchored at the version's root.

    ``*`` and ``?`` stay inside a segment, ``[a-b]`` is a class of one character inside a segment,
    ``**`` stands for any number of whole segments (at the end: for one or more) and must be a
    segment itself. Everything else is literal: ``a`` never matches ``ab`` or ``x/a`` (I05).

    Raises:
        InvalidRequest: Empty, too long, an empty or ``..`` segment, or an unclosed class.
    """
    if not isinstance(text, str) or not text or len(text.encode("utf-8", "replace")) > limits.MAX_GLOB:
        raise _refuse("pattern", str(text), _GLOB_GRAMMAR)
    segments = text.split("/")
    if any(s in ("", ".", "..") for s in segments) or any(ord(c) < 32 or c == "\\" for c in text):
        raise _refuse("pattern", text, _GLOB_GRAMMAR)
    kept = [s for i, s in enumerate(segments) if s != "**" or i == 0 or segments[i - 1] != "**"]
    if kept[-1] == "**":
        # `a/**` needs one segment below a: `**` and then anything.
        return Glob(text, tuple(_parse_segment(s, text) for s in [*kept, "*"]))
    return Glob(text, tuple(_parse_segment(s, text) for s in kept))


def _parse_segment(segment: str, text: str) -> re.Pattern[str] | None:
    if segment == "**":
        return None
    if "**" in segment:
        raise _refuse("pattern", text, _GLOB_GRAMMAR)
    chunks = [""]
    for piece in _glob_pieces(segment, text):
        if piece == "*":
            chunks.append("")
        else:
            chunks[-1] += piece
    first, *rest = chunks
    if not rest:
        return re.compile(first, re.DOTALL)
    # Each chunk commits to its first place (an atomic group): linear, where `.*a.*a` backtracks.
    middle = "".join(f"(?>.*?{chunk})" for chunk in rest[:-1])
    return re.compile(f"{first}{middle}.*{rest[-1]}", re.DOTALL)


def _glob_pieces(segment: str, text: str) -> Iterable[str]:
    i = 0
    while i < len(segment):
        ch = segment[i]
        if ch == "[":
            end = segment.find("]", i + 1)
            body = segment[i + 1 : end] if end > 0 else ""
            if not _CLASS_RE.fullmatch(body) or any(a > b for a, b in _RANGE_RE.findall(body)):
                raise _refuse("pattern", text, _GLOB_GRAMMAR)
            yield f"[{body}]"
            i = end
        else:
            yield "*" if ch == "*" else "." if ch == "?" else re.escape(ch)
        i += 1


_CLASS_RE: Final = re.compile(r"(?:[A-Za-z0-9._](?:-[A-Za-z0-9])?)+")
_RANGE_RE: Final = re.compile(r"(.)-(.)")


def check_match_effort(paths: Iterable[str], patterns: Iterable[str]) -> None:
    """Matching every path with every pattern takes seconds at most (I17).

    A match costs up to the segments of its path times those of its pattern, and a caller may choose both.

    Raises:
        TooLarge: All of them together exceed ``limits.MAX_MATCH_STEPS``.
    """
    width = sum(pattern.count("/") + 1 for pattern in patterns)
    if width and width * sum(path.count("/") + 1 for path in paths) > limits.MAX_MATCH_STEPS:
        raise TooLarge(
            "the patterns are too many, or too long, for so many paths",
            next="use fewer or shorter patterns, or select fewer files",
        )


def select_paths(
    paths: Iterable[str], *, include: Iterable[str] = (), exclude: Iterable[str] = ()
) -> list[int]:
    """Indices of the paths that some include pattern matches and no exclude pattern does.

    No include pattern means every path. Order is the order of ``paths``.

    Raises:
        InvalidRequest: A pattern is not valid.
    """
    wanted = [parse_glob(pattern) for pattern in include]
    refused = [parse_glob(pattern) for pattern in exclude]
    return [
        index
        for index, path in enumerate(paths)
        if (not wanted or any(g.matches(path) for g in wanted)) and not any(g.matches(path) for g in refused)
    ]
