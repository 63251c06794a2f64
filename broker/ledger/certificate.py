"""Certificates of exports: what was asked of which log, and what came of it.

The population is the whole log up to a signed tree head, so "nothing was left out" is arithmetic: the
entries hash into the signed root, and the rows are what the query gives over all of them.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from broker import limits
from broker.canonical import Json, b64url, canonical_bytes, parse_digest, parse_json_object
from broker.errors import BrokerError, IntegrityFailure, InvalidRequest
from broker.model import Query

SCHEMA: Final = "broker/export/v1"
MAX_SAMPLE: Final = 10_000
MAX_SEED: Final = 256
MAX_CERTIFICATE: Final = 64 * limits.KIB
_SAMPLE_CONTEXT: Final = b"broker/sample/v1\n"
FORMATS: Final = ("jsonl", "csv", "ocsf", "parquet")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A sample of the matching rows.

    Attributes:
        size: Rows wanted: 1 to 10,000; fewer when fewer match.
        seed: 1 to 256 bytes that the auditor chose.
    """

    size: int
    seed: str

    def __post_init__(self) -> None:
        if type(self.size) is not int or not 1 <= self.size <= MAX_SAMPLE:
            raise InvalidRequest(f"a sample has 1 to {MAX_SAMPLE} rows")
        if not isinstance(self.seed, str) or not 1 <= len(self.seed.encode()) <= MAX_SEED:
            raise InvalidRequest(f"the seed of a sample has 1 to {MAX_SEED} bytes")


class Sampler:
    """Chooses the rows of a sample, uniformly over all that are offered.

    Row ``index`` has the rank SHA-256(context || root || SHA-256(seed) || index as u64), and the lowest
    ranks are the sample. The root depends on every entry, so nobody can tell before the log was signed
    which entries a seed will choose, and the seed is the auditor's, so who writes the log cannot choose
    either. Anybody can draw the same sample again.

    Args:
        sample: Size and seed.
        root: Root of the tree that the rows are from, 32 bytes.
    """

    def __init__(self, sample: Sample, root: bytes) -> None:
        self._size = sample.size
        self._prefix = _SAMPLE_CONTEXT + root + hashlib.sha256(sample.seed.encode()).digest()
        # The heap's top is the worst row that is still in: ranks are negated.
        self._held: list[tuple[int, int]] = []

    def offer(self, index: int) -> None:
        """One matching row."""
        rank = int.from_bytes(hashlib.sha256(self._prefix + index.to_bytes(8, "big")).digest(), "big")
        if len(self._held) < self._size:
            heapq.heappush(self._held, (-rank, index))
        elif -rank > self._held[0][0]:
            heapq.heapreplace(self._held, (-rank, index))

    def chosen(self) -> frozenset[int]:
        """Indices of the sample."""
        return frozenset(index for _, index in self._held)


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What an export says of itself; a verifier believes none of it and computes it again.

    Attributes:
        origin: Name of the log.
        size: Entries of the population: all from 0 to ``size`` - 1.
        root: Root over them, 32 bytes; the checkpoint beside the certificate signs it.
        query: What was asked, with absolute times.
        format: One of :data:`FORMATS`.
        matching: Entries that match the query.
        rows: Rows in the file; ``matching``, or the size of the sample.
        digest: ``sha256:`` digest of the file of rows; for Parquet over the digests of its files.
        sample: Size and seed, when only a sample was taken.
    """

    origin: str
    size: int
    root: bytes
    query: Query
    format: str
    matching: int
    rows: int
    digest: str
    sample: Sample | None = None

    def to_bytes(self) -> bytes:
        """The certificate as RFC 8785 JSON."""
        found: Json = {
            "schema": SCHEMA,
            "origin": self.origin,
            "size": self.size,
            "root": b64url(self.root),
            "query": _query_json(self.query),
            "format": self.format,
            "matching": self.matching,
            "rows": self.rows,
            "digest": self.digest,
        }
        if self.sample is not None:
            found["sample"] = {"size": self.sample.size, "seed": self.sample.seed}
        return canonical_bytes(found)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The part of a certificate that a verifier needs to make the rest of it again."""

    query: Query
    format: str
    sample: Sample | None


def parse_certificate(data: bytes) -> Asked:
    """What was asked, from a certificate. The rest is for comparison, byte by byte, with one made anew.

    Raises:
        IntegrityFailure: It is not a certificate.
    """
    try:
        found = parse_json_object(data)
        if found.get("schema") != SCHEMA or found.get("format") not in FORMATS:
            raise InvalidRequest(f"schema is {SCHEMA}, format one of {', '.join(FORMATS)}")
        parse_digest(str(found.get("digest")))
        sample = found.get("sample")
        return Asked(
            query=_parse_query(found.get("query")),
            format=found["format"],
            sample=None if sample is None else Sample(**_members(sample, Sample)),
        )
    except BrokerError as exc:
        raise IntegrityFailure("the certificate of an export is not valid", why=exc.why or exc.what) from exc


def _query_json(query: Query) -> Json:
    found = {name: value for name, value in vars(query).items() if value not in (None, ())}
    return {**found, "text": list(query.text)} if query.text else found


def _parse_query(value: Any) -> Query:
    found = _members(value, Query)
    text = found.pop("text", [])
    fits = isinstance(text, list) and all(isinstance(term, str) for term in text)
    for name, member in found.items():
        fits = fits and type(member) is (int if name in ("since", "until") else str)
    if not fits:
        raise InvalidRequest("the query of an export is not valid")
    return replace(Query(**found), text=tuple(text))


def _members(value: Any, of: type[Any]) -> dict[str, Any]:
    known = {each.name for each in fields(of)}
    if not isinstance(value, Mapping) or not set(value) <= known:
        raise InvalidRequest("an export's certificate has members that it does not know")
    if of is Sample and set(value) != known:
        raise InvalidRequest("a sample has a size and a seed")
    return dict(value)
