"""The Python SDK: one object for everything that a profile can do."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING

from broker import limits
from broker.canonical import Json
from broker.client import settings
from broker.client.catalogue import Catalogue, as_ref
from broker.client.log_key import trusted_keys
from broker.client.memory import open_memory
from broker.client.metadata import complete_profile
from broker.client.session import Session
from broker.errors import ConfigurationError, InvalidRequest
from broker.ledger import receipt as receipts
from broker.ledger.note import Verifier
from broker.names import Ref

if TYPE_CHECKING:
    from broker.client.administration import Administration
    from broker.client.asking import Bounds
    from broker.client.fetch import Receipt
    from broker.client.grants import Ask
    from broker.client.ledger import LedgerClient
    from broker.client.library import Library
    from broker.client.minting import Minted
    from broker.client.progress import OnProgress
    from broker.client.publish import Published
    from broker.client.querying import Counted, Queried
    from broker.client.verify import Comparison
    from broker.client.versions import TrustedVersion

READ_BUFFER = limits.SEGMENT_SIZE


class Client:
    """A profile's access to its broker. Safe to share between threads; usable as a context manager.

    Every method raises :class:`~broker.errors.BrokerError` subclasses with a stable ``code``.
    """

    def __init__(self, profile: settings.Profile, *, session: Session | None = None) -> None:
        self.profile = profile
        self._session = session or Session.of(profile)
        self._log = open_memory(self._session, profile)

    @classmethod
    def from_profile(
        cls, name: str | None = None, *, url: str | None = None, token_file: Path | str | None = None
    ) -> Client:
        """The client of a profile, or of the job that the environment says this is.

        Args:
            name: Of the profile; without it ``BROKER_PROFILE_DIR``, else ``default``.
            url: The server's URL instead of the profile's; without it ``BROKER_URL``.
            token_file: A job's token; without it ``BROKER_TOKEN_FILE``, unless a profile is named.

        Raises:
            ConfigurationError: There is no such profile, or it is not valid.
            IntegrityFailure: The server keeps another log than the one that is pinned.
        """
        file = None if token_file is None else Path(token_file)
        return cls(complete_profile(settings.find_profile(name, url=url, token_file=file)))

    @classmethod
    def login(
        cls,
        server: str,
        code: str,
        *,
        folder: Path | str | None = None,
        name: str | None = None,
        witness_policy: bytes | None = None,
    ) -> Client:
        """Enrol this machine with a one-time code, and the client of the new profile.

        Args:
            server: The broker's base URL.
            code: The one-time code.
            folder: The new profile's folder; that of ``name`` without it.
            name: Of the profile.
            witness_policy: A ``tlog-policy``: which witnesses must vouch for what the log records.

        Raises:
            EnrolmentRefused: The code is not accepted.
            IntegrityFailure: The server's log is not the one that the code was made for.
            ConfigurationError: There is a profile already, or the policy is not one for the server's log.
        """
        from broker.client.enrol import enrol

        target = Path(folder) if folder is not None else settings.profile_folder(name)
        return cls(enrol(target, server=server, code=code, witness_policy=witness_policy))

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    # -- reading ----------------------------------------------------------------------------------------

    def fetch(
        self,
        ref: str | Ref,
        dest: Path | str | None = None,
        *,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        purpose: str | None = None,
        force: bool = False,
        jobs: int | None = None,
        durable: bool = False,
        on_progress: OnProgress | None = None,
    ) -> Receipt:
        """Read a version, or a part of it, into a folder; a second call resumes and verifies.

        Args:
            ref: ``collection/name[@version][/path]``; without a version the newest.
            dest: The folder; ``./name`` without it.
            include: Glob patterns, anchored at the version's root; None for everything.
            exclude: Glob patterns that are left out.
            purpose: Recorded, and a matter of policy; ``BROKER_PURPOSE`` without it.
            force: Replace files that differ.
            jobs: Worker threads; ``BROKER_JOBS`` without it.
            durable: Force each file to the disk before it gets its name.
            on_progress: Told how far it is.

        Returns:
            The receipt of the grant, and what was read.

        Raises:
            Denied, ApprovalNeeded, NotFound, OverBudget, IntegrityFailure, DiskFull, Interrupted,
            Unreachable: See :meth:`broker.client.fetch.Fetcher.fetch`.
        """
        from broker.client.fetch import Fetcher, FetchOptions

        ask = self.ask_of(ref, include=include, exclude=exclude, purpose=purpose)
        target = Path(ask.ref.name) if dest is None else Path(dest)
        options = FetchOptions(force=force, jobs=_jobs(jobs), durable=durable, on_progress=on_progress)
        return Fetcher(self._session, self._log, self.profile).fetch(ask, target, options)

    def ask_of(
        self,
        ref: str | Ref,
        *,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        purpose: str | None = None,
    ) -> Ask:
        """What a read with these arguments asks for.

        Raises:
            InvalidRequest: A pattern is not valid, or there are patterns beside a path.
        """
        from broker.client.grants import Ask

        parsed = as_ref(ref)
        if parsed.path is not None and include:
            raise InvalidRequest("a reference with a path and include patterns say two different things")
        chosen = purpose if purpose is not None else settings.read_environment().purpose
        return Ask(ref=parsed, include=tuple(include or ()), exclude=tuple(exclude or ()), purpose=chosen)

    def open(self, ref: str | Ref, *, purpose: str | None = None) -> IO[bytes]:
        """One file of a version as a seekable, read-only binary file; bytes are verified before use.

        Args:
            ref: With a path: ``collection/name[@version]/path``.
            purpose: As for :meth:`fetch`.

        Raises:
            InvalidRequest: The reference has no path.
            NotFound: No such file.
        """
        from broker.client.ranges import open_file

        chosen = purpose if purpose is not None else settings.read_environment().purpose
        raw = open_file(self._session, self._log, self.profile, as_ref(ref), purpose=chosen)
        return io.BufferedReader(raw, READ_BUFFER)

    def library(self, *, purpose: str | None = None, jobs: int | None = None) -> Library:
        """Artifacts, versions and random access, for filesystems and the like; closed by the caller.

        Args:
            purpose: As for :meth:`fetch`.
            jobs: Connections that one long read uses; ``BROKER_JOBS`` without it.
        """
        from broker.client.library import Library

        chosen = purpose if purpose is not None else settings.read_environment().purpose
        return Library(self._session, self._log, self.profile, purpose=chosen, jobs=_jobs(jobs))

    def verify(self, path: Path | str, ref: str | Ref) -> Comparison:
        """Compare local files with a version. The caller looks at ``same``.

        Raises:
            NotFound: No such version.
            IntegrityFailure: Its manifest's trust path does not hold.
        """
        from broker.client.verify import compare

        return compare(self._session, self._log, Path(path), as_ref(ref))

    # -- publishing -------------------------------------------------------------------------------------

    def publish(
        self,
        path: Path | str,
        ref: str | Ref,
        *,
        labels: Mapping[str, str] | None = None,
        kind: str = "checkpoint",
        extent_size: int = limits.DEFAULT_EXTENT_SIZE,
        jobs: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> Published:
        """Publish a file or folder as a new version; the same content again is fine.

        Args:
            path: File or folder; dotfiles are included, symlinks refused.
            ref: ``collection/name@version``.
            labels: ``tier`` is ``standard`` unless it is given.
            kind: ``checkpoint`` or ``dataset``.
            extent_size: Plaintext bytes of an extent, a whole number of MiB.
            jobs: Worker threads; ``BROKER_JOBS`` without it.
            on_progress: Told how far it is.

        Raises:
            Conflict: The version exists with other content, or a file changed meanwhile.
            Denied, ApprovalNeeded, Interrupted, Unreachable: See
                :meth:`broker.client.publish.Publisher.publish`.
        """
        from broker.client.publish import Publisher, PublishOptions

        options = PublishOptions(
            kind=kind, labels=labels, extent_size=extent_size, jobs=_jobs(jobs), on_progress=on_progress
        )
        return Publisher(self._session, self._log, self.profile).publish(Path(path), as_ref(ref), options)

    # -- looking ----------------------------------------------------------------------------------------

    @cached_property
    def catalogue(self) -> Catalogue:
        """The catalogue in detail."""
        return Catalogue(self._session, self._log)

    def whoami(self) -> Json:
        """The caller: principal, every key that is bound to it, and the current token."""
        return self.catalogue.whoami()

    def ls(self, ref: str | None = None) -> list[Json]:
        """Artifacts (all, or of a collection), or the versions of one artifact."""
        if ref is None or "/" not in ref.removeprefix("broker://").rstrip("/"):
            collection = None if ref is None else ref.removeprefix("broker://").rstrip("/")
            return list(self.catalogue.iter_artifacts(_collection(collection)))
        return list(self.catalogue.artifact(as_ref(ref))["versions"])

    def info(self, ref: str | Ref) -> TrustedVersion:
        """A version with its manifest, the whole trust path verified."""
        from broker.client.versions import fetch_version

        return fetch_version(self._session, self._log, as_ref(ref))

    def can(self, ref: str | Ref, *, action: str = "read", principal: str | None = None) -> Json:
        """Would it be allowed, and by which policies? A recorded dry run."""
        return self.catalogue.decide(as_ref(ref), action=action, principal=principal)

    # -- tokens -----------------------------------------------------------------------------------------

    def mint(
        self,
        *scope: str,
        paths: Sequence[str] | None = None,
        max_bytes: int | None = None,
        purpose: str | None = None,
        actions: Sequence[str] = ("describe", "read"),
        ttl: int | None = None,
        for_key: str | None = None,
    ) -> Minted:
        """A narrower token, for another key or for one's own.

        Args:
            scope: What it is for: ``collection/name[@version]``, ``collection/*`` or ``*``.
            paths: Patterns anchored at the version's root; None for every file.
            max_bytes: Bytes that may be opened with it and with everything minted from it.
            purpose: The one purpose that reads must state.
            actions: Some of ``describe``, ``read``, ``publish``.
            ttl: Seconds that it lives, at most 900; never longer than the caller's own token.
            for_key: Thumbprint of the key that may use it; None for the caller's own.

        Raises:
            InvalidRequest: The scope is not one.
            Denied: Policy does not let the caller mint this, or the key is somebody else's.
            InvalidGrant, InvalidSubjectToken: The caller's own token is not good for it.
        """
        from broker.client import minting

        details = minting.scope_details(
            scope, paths=paths, max_bytes=max_bytes, purpose=purpose, actions=actions
        )
        return minting.mint(self._session, details, ttl=ttl, for_key=for_key)

    def exchange(self, *scope: str) -> Json:
        """A token for this workload's identity: the token endpoint's whole answer.

        A client gets such tokens by itself; this is for programs that speak to the broker on their own,
        with the job's key.

        Args:
            scope: As for :meth:`mint`; everything that policy lets the workload do, without any.

        Raises:
            UsageError: The profile is not that of a workload.
            InvalidSubjectToken: The workload's own token has expired, or is not accepted.
        """
        from broker.client import minting

        return minting.exchange(self._session, self.profile, scope)

    # -- more -------------------------------------------------------------------------------------------

    @cached_property
    def ledger(self) -> LedgerClient:
        """The ledger, for auditors."""
        from broker.client.ledger import LedgerClient

        return LedgerClient(self._session, self._log, self.profile)

    def query_ledger(
        self, sql: str, *, bounds: Bounds | None = None, on_progress: Counted | None = None
    ) -> Queried:
        """One SELECT over the view ``entries``, for auditors: see :mod:`broker.client.querying`."""
        from broker.client.querying import query_log

        place = self.profile.state
        return query_log(self.ledger, self._log, sql, folder=place, bounds=bounds, on_progress=on_progress)

    @cached_property
    def admin(self) -> Administration:
        """Principals, collections, policies, revocations."""
        from broker.client.administration import Administration

        return Administration(self._session, self._log)


def _jobs(jobs: int | None) -> int:
    if jobs is not None:
        return settings.check_jobs(jobs)
    return settings.read_environment().jobs or settings.DEFAULT_JOBS


def _collection(text: str | None) -> str | None:
    from broker.names import parse_part

    return None if text is None else parse_part(text, "collection")


def verify_receipt(receipt: Receipt | str | Path, trust: settings.Profile | Verifier | str) -> None:
    """A receipt proves its entry under a trusted log key, offline.

    Args:
        receipt: What :meth:`Client.fetch` returned, a ``tlog-proof`` text, or the path of such a file.
        trust: The log's verifier key, or the profile that pins it.

    Raises:
        IntegrityFailure: The form, the signature, the proof or the entry does not hold.
        ConfigurationError: ``trust`` is not a verifier key, or the file cannot be read.
    """
    keys = trusted_keys(trust) if isinstance(trust, settings.Profile) else trust
    receipts.verify_receipt(_receipt_text(receipt), keys)


def _receipt_text(receipt: Receipt | str | Path) -> str:
    if isinstance(receipt, Path):
        try:
            return receipt.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigurationError(f"cannot read {receipt}") from exc
    return receipt if isinstance(receipt, str) else receipt.text
