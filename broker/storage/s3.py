"""The object store as the broker itself uses it: boto3, bounded in retries and in time.

The broker opens and closes multipart uploads, looks at what is there, and sweeps. It never moves an
artifact's bytes: clients do, with presigned URLs (:mod:`broker.storage.presign`).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NoReturn, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from broker.errors import Conflict, IntegrityFailure, NotFound, StoreUnavailable
from broker.ports import ObjectInfo
from broker.storage.presign import Credentials, CredentialSource, check_object_name, format_range

R = TypeVar("R")

CONNECT_SECONDS: Final = 3
READ_SECONDS: Final = 20
ATTEMPTS: Final = 3
_POOL: Final = 16
_PROBE: Final = ".broker-probe"
_GONE: Final = frozenset({"404", "NoSuchKey", "NotFound", "NoSuchUpload"})
_EXISTS: Final = frozenset({"412", "PreconditionFailed", "409", "ConditionalRequestConflict"})


class S3Store:
    """One bucket of an S3 server; safe to share between threads.

    Every method raises :class:`~broker.errors.StoreUnavailable` when the store does not answer in
    time, or refuses the broker; the message has the store's error code, never a URL or a credential.

    Args:
        endpoint: Base URL as the broker reaches the store, without a path.
        region: SigV4 region.
        bucket: The bucket.
        credentials: Gives the credentials of the moment.
        path_style: ``endpoint/bucket/name`` (True) or ``bucket.endpoint/name``.
        attempts: Tries of one call in all, with botocore's backoff between them.
        read_seconds: How long the store may be silent in one try.
    """

    def __init__(
        self,
        *,
        endpoint: str | None,
        region: str,
        bucket: str,
        credentials: CredentialSource,
        path_style: bool = True,
        attempts: int = ATTEMPTS,
        read_seconds: float = READ_SECONDS,
    ) -> None:
        self._endpoint = endpoint
        self._region = region
        self._bucket = bucket
        self._credentials = credentials
        self._path_style = path_style
        self._attempts = attempts
        self._read_seconds = read_seconds
        self._made: tuple[Credentials, Any] | None = None

    def create_upload(self, name: str) -> str:
        """Open a multipart upload; returns its id."""
        check_object_name(name)
        return str(self._call("create_multipart_upload", Key=name)["UploadId"])

    def complete_upload(self, name: str, upload_id: str, parts: Sequence[tuple[int, str]]) -> None:
        """Join the parts (number from 1, ETag) to the object; afterwards the upload is gone (I20).

        Only where no such object is yet. A retry after a lost answer is fine, also at the same time:
        when the object is there with the ETag that these parts make, nothing is left to do.

        Between two calls with *different* parts at the same moment the store is no referee
        (SeaweedFS lets both through now and then): the caller makes the list of parts durable before
        it completes, and never completes an upload with another list.

        Raises:
            Conflict: The object exists, or a part is missing or is not the one with that ETag.
            NotFound: There is no such upload, and no such object.
        """
        check_object_name(name)
        listed = [{"PartNumber": number, "ETag": f'"{etag}"'} for number, etag in sorted(parts)]
        try:
            self._raw(
                "complete_multipart_upload",
                Key=name,
                UploadId=upload_id,
                MultipartUpload={"Parts": listed},
                IfNoneMatch="*",
            )
        except ClientError as exc:
            code = _code(exc)
            if code not in _GONE | _EXISTS:
                if code in ("InvalidPart", "InvalidPartOrder", "EntityTooSmall", "MalformedXML"):
                    raise Conflict("the uploaded parts are not the ones that were named", why=code) from exc
                _refuse(exc)
            # A lost answer: the first try did it, and this one finds the upload gone or the object there.
            if self._is_made_of(name, parts):
                return
            if code in _EXISTS or self.head(name) is not None:
                raise Conflict("an object of that name exists") from exc
            raise NotFound("there is no such multipart upload") from exc

    def abort_upload(self, name: str, upload_id: str) -> None:
        """Drop a multipart upload and its parts. Dropping it twice is fine."""
        try:
            self._raw("abort_multipart_upload", Key=name, UploadId=upload_id)
        except ClientError as exc:
            if _code(exc) not in _GONE:
                _refuse(exc)

    def list_parts(self, name: str, upload_id: str) -> list[tuple[int, str, int]]:
        """(number, ETag without quotes, size) of the parts that the store holds, ascending.

        Each number comes once. Where a store keeps a part that was sent again (SeaweedFS does, until
        the upload is completed), the later one counts, as S3 has it.

        Raises:
            NotFound: There is no such upload.
        """
        newest: dict[int, Any] = {}
        marker = 0
        while True:
            try:
                page = self._raw("list_parts", Key=name, UploadId=upload_id, PartNumberMarker=marker)
            except ClientError as exc:
                if _code(exc) in _GONE:
                    raise NotFound("there is no such multipart upload") from exc
                _refuse(exc)
            listed = page.get("Parts", [])
            # Times have a resolution of one second; within it any is as good, but always the same one.
            for part in sorted(listed, key=lambda part: (part["LastModified"], part["ETag"])):
                held = newest.get(part["PartNumber"])
                if held is None or part["LastModified"] >= held["LastModified"]:
                    newest[part["PartNumber"]] = part
            if not page.get("IsTruncated") or not listed:
                return [
                    (number, _etag(part["ETag"]), part["Size"]) for number, part in sorted(newest.items())
                ]
            marker = max(part["PartNumber"] for part in listed)

    def head(self, name: str) -> ObjectInfo | None:
        """Size and ETag, or None when there is no such object."""
        check_object_name(name)
        try:
            answer = self._raw("head_object", Key=name)
        except ClientError as exc:
            if _code(exc) in _GONE:
                return None
            _refuse(exc)
        return ObjectInfo(size=answer["ContentLength"], etag=_etag(answer["ETag"]))

    def delete(self, name: str) -> None:
        """Delete an object. Deleting it twice is fine."""
        check_object_name(name)
        self._call("delete_object", Key=name)

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """(name, size in bytes) of the objects whose names begin with ``prefix``, ascending."""
        token: dict[str, str] = {}
        while True:
            page = self._call("list_objects_v2", Prefix=prefix, **token)
            for found in page.get("Contents", []):
                yield str(found["Key"]), int(found["Size"])
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``start``.

        Raises:
            NotFound: There is no such object.
            IntegrityFailure: The object ends before ``start + length``.
        """
        check_object_name(name)
        try:
            answer = self._raw("get_object", Key=name, Range=format_range(start, length))
            data = bytes(_or_unavailable(answer["Body"].read))
        except ClientError as exc:
            if _code(exc) in _GONE:
                raise NotFound("there is no such object") from exc
            if _code(exc) in ("416", "InvalidRange"):
                raise IntegrityFailure("an object is shorter than it should be") from exc
            _refuse(exc)
        if len(data) != length:
            raise IntegrityFailure("an object is shorter than it should be")
        return data

    def read(self, name: str, *, most: int) -> tuple[bytes, str] | None:
        """A small object and its ETag, from one answer; None when there is none.

        Raises:
            IntegrityFailure: It has more than ``most`` bytes.
        """
        check_object_name(name)
        try:
            answer = self._raw("get_object", Key=name)
            data = bytes(_or_unavailable(lambda: answer["Body"].read(most + 1)))
        except ClientError as exc:
            if _code(exc) in _GONE:
                return None
            _refuse(exc)
        if len(data) > most:
            raise IntegrityFailure("an object is larger than it should be")
        return data, _etag(answer["ETag"])

    def put(self, name: str, data: bytes, **served_as: str) -> None:
        """Create an object with this content. The same content again is fine.

        Args:
            name: Its name.
            data: Its content.
            served_as: ``ContentType`` and ``CacheControl`` that the store is to serve it with.

        Raises:
            Conflict: An object of that name with other content exists.
        """
        check_object_name(name)
        try:
            self._raw("put_object", Key=name, IfNoneMatch="*", **_body(data), **served_as)
        except ClientError as exc:
            if _code(exc) not in _EXISTS:
                _refuse(exc)
            held = self.head(name)
            if (
                held is None
                or held.size != len(data)
                or (data and self.get_range(name, 0, len(data)) != data)
            ):
                raise Conflict("an object of that name exists") from exc

    def replace(self, name: str, data: bytes, *, before: str | None, **served_as: str) -> None:
        """Put this content in the place of the object that has the ETag ``before``; None: where none is.

        Source: RFC 9110 sections 13.1.1 and 13.1.2 (If-Match, If-None-Match).

        Raises:
            Conflict: Another object is there, or none: somebody else was faster.
        """
        check_object_name(name)
        condition = {"IfNoneMatch": "*"} if before is None else {"IfMatch": f'"{before}"'}
        try:
            self._raw("put_object", Key=name, **condition, **_body(data), **served_as)
        except ClientError as exc:
            if _code(exc) in _EXISTS | _GONE:
                raise Conflict("the object was replaced meanwhile") from exc
            _refuse(exc)

    def check(self) -> None:
        """The store answers and the bucket is there."""
        self._call("head_bucket")

    def check_round_trip(self) -> None:
        """The store takes an object and gives it back: more than :meth:`check`, for a start.

        Raises:
            IntegrityFailure: It gave back something else.
        """
        data = b"model-access-broker"
        self._call("put_object", Key=_PROBE, Body=data)
        if self.get_range(_PROBE, 0, len(data)) != data:
            raise IntegrityFailure("the object store does not give back what it was given")

    def create_bucket(self) -> None:
        """Create the bucket; an existing one of ours is fine. For the embedded store."""
        where = {} if self._region == "us-east-1" else {"LocationConstraint": self._region}
        try:
            self._raw("create_bucket", **({"CreateBucketConfiguration": where} if where else {}))
        except ClientError as exc:
            if _code(exc) not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                _refuse(exc)

    def _is_made_of(self, name: str, parts: Sequence[tuple[int, str]]) -> bool:
        """Whether the object has the ETag of a multipart object of these parts."""
        held = self.head(name)
        return held is not None and held.etag == multipart_etag([etag for _, etag in sorted(parts)])

    def _call(self, operation: str, **arguments: Any) -> Any:
        try:
            return self._raw(operation, **arguments)
        except ClientError as exc:
            _refuse(exc)

    def _raw(self, operation: str, **arguments: Any) -> Any:
        """One call; every failure but the store's own answer becomes StoreUnavailable."""
        call = getattr(self._client(), operation)
        return _or_unavailable(lambda: call(Bucket=self._bucket, **arguments))

    def _client(self) -> Any:
        """The client for the credentials of this moment; made again when they change."""
        credentials = self._credentials()
        made = self._made
        if made is None or made[0] != credentials:
            # Two threads may both make one; each is whole, and the last one stays.
            made = self._made = (credentials, self._make_client(credentials))
        return made[1]

    def _make_client(self, credentials: Credentials) -> Any:
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self._endpoint,
            region_name=self._region,
            aws_access_key_id=credentials.access_key,
            aws_secret_access_key=credentials.secret_key,
            aws_session_token=credentials.session_token,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path" if self._path_style else "virtual"},
                retries={"total_max_attempts": self._attempts, "mode": "standard"},
                connect_timeout=CONNECT_SECONDS,
                read_timeout=self._read_seconds,
                max_pool_connections=_POOL,
                # Stores other than AWS refuse or ignore the newer checksum trailers.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                proxies={},
            ),
        )


def _body(data: bytes) -> dict[str, Any]:
    digest = hashlib.md5(data, usedforsecurity=False).digest()
    return {"Body": data, "ContentMD5": base64.b64encode(digest).decode()}


def multipart_etag(etags: Sequence[str]) -> str | None:
    """The ETag that S3 gives an object joined from parts with these ETags, or None when they are no MD5s.

    Source: Amazon S3 user guide, "Checking object integrity": MD5 over the parts' MD5s, and their number.
    """
    try:
        joined = b"".join(bytes.fromhex(etag) for etag in etags)
    except ValueError:
        return None
    return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(etags)}"


def chain_credentials() -> CredentialSource:
    """Credentials from botocore's own chain (environment, profile, web identity, instance role).

    They are refreshed by botocore before they expire; their real end bounds every URL (I06).

    Raises:
        StoreUnavailable: When called and there are none.
    """
    session = boto3.session.Session()

    def current() -> Credentials:
        held = _or_unavailable(session.get_credentials)
        if held is None:
            raise StoreUnavailable("there are no credentials for the object store")
        frozen = _or_unavailable(held.get_frozen_credentials)
        # botocore has no public name for it; a missing one means keys that do not expire.
        expiry = getattr(held, "_expiry_time", None)
        return Credentials(
            access_key=frozen.access_key,
            secret_key=frozen.secret_key,
            session_token=frozen.token,
            expires_at=None if expiry is None else int(expiry.timestamp() * 1000),
        )

    return current


def _or_unavailable(call: Callable[[], R]) -> R:
    try:
        return call()
    except ClientError:
        raise
    except (BotoCoreError, OSError, ValueError) as exc:
        # The text of these errors names the URL: only their kind leaves.
        raise StoreUnavailable("the object store does not answer", why=type(exc).__name__) from exc


def _code(exc: ClientError) -> str:
    return str(exc.response.get("Error", {}).get("Code", ""))


def _etag(text: str) -> str:
    return text.strip('"')


def _refuse(exc: ClientError) -> NoReturn:
    raise StoreUnavailable("the object store refuses", why=_code(exc) or "no error code") from exc
