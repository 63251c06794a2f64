"""Presigned URLs: byte-equal with botocore, clamped, and never shown."""

from __future__ import annotations

import datetime as dt
from typing import Any
from urllib.parse import parse_qs, urlsplit

import boto3
import botocore.auth
import pytest
from botocore.config import Config
from hypothesis import given
from hypothesis import strategies as st

from broker import limits
from broker.errors import ConfigurationError, InvalidRequest, StoreUnavailable
from broker.storage.presign import (
    MAX_OBJECT_NAME,
    MAX_PARTS,
    Credentials,
    Presigner,
    check_object_name,
    format_range,
)

NOW = 1_763_900_123_456
ODD_NAMES = [
    "v/AAAA/0",
    "a b/c+d/ü~é.bin",
    "x/%2F/?q=1&r#s",
    "日本語/😀",
    "quotes'\"()*!$;:@,=",
    "~tilde/-_.",
    "tail.",
]


def _presigner(*, path_style: bool = True, token: str | None = None, **credentials: Any) -> Presigner:
    held = Credentials(access_key="AKIAEXAMPLE", secret_key="s3cr3t/+", session_token=token, **credentials)
    return Presigner(
        endpoint="http://store.example:8333",
        region="us-east-1",
        bucket="broker",
        credentials=lambda: held,
        path_style=path_style,
    )


@pytest.fixture
def freeze(monkeypatch: pytest.MonkeyPatch) -> None:
    """Botocore signs at our signing time: thirty seconds before NOW."""
    when = dt.datetime.fromtimestamp(NOW // 1000 - limits.PRESIGN_BACKDATE, tz=dt.UTC)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda *_, **__: when)


def _botocore(*, path_style: bool = True, token: str | None = None) -> Any:
    return boto3.client(
        "s3",
        endpoint_url="http://store.example:8333",
        region_name="us-east-1",
        aws_access_key_id="AKIAEXAMPLE",
        aws_secret_access_key="s3cr3t/+",
        aws_session_token=token,
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": "path" if path_style else "virtual"},
            request_checksum_calculation="when_required",
        ),
    )


@pytest.mark.usefixtures("freeze")
@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize("path_style", [True, False])
@pytest.mark.parametrize("token", [None, "tok/en+=="])
def test_get_is_byte_equal_with_botocore(name: str, path_style: bool, token: str | None) -> None:
    client = _botocore(path_style=path_style, token=token)
    client.meta.events.register(
        "before-sign.s3.GetObject", lambda request, **_: request.params.update({"x-broker-grant": "g_1/2 é"})
    )
    expected = client.generate_presigned_url(
        "get_object",
        Params={"Bucket": "broker", "Key": name, "Range": "bytes=5-99"},
        ExpiresIn=120 + limits.PRESIGN_BACKDATE,
    )
    signed, _expires_at = _presigner(path_style=path_style, token=token).get(
        name, byte_range="bytes=5-99", grant="g_1/2 é", expires=120, now=NOW
    )
    assert signed == expected


@pytest.mark.usefixtures("freeze")
@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize("create_only", [True, False])
def test_put_is_byte_equal_with_botocore(name: str, create_only: bool) -> None:
    condition = {"IfNoneMatch": "*"} if create_only else {}
    expected = _botocore().generate_presigned_url(
        "put_object",
        Params={"Bucket": "broker", "Key": name, "ContentLength": 77, **condition},
        ExpiresIn=600 + limits.PRESIGN_BACKDATE,
    )
    signed, _expires_at = _presigner().put(
        name, content_length=77, expires=600, now=NOW, if_none_match=create_only
    )
    assert signed == expected
    assert ("if-none-match" in signed) == create_only


@pytest.mark.usefixtures("freeze")
@pytest.mark.parametrize("name", ODD_NAMES)
def test_upload_part_is_byte_equal_with_botocore(name: str) -> None:
    expected = _botocore().generate_presigned_url(
        "upload_part",
        Params={
            "Bucket": "broker",
            "Key": name,
            "UploadId": "id/+=_1",
            "PartNumber": 3,
            "ContentLength": 5_000,
        },
        ExpiresIn=60 + limits.PRESIGN_BACKDATE,
    )
    signed, _expires_at = _presigner().upload_part(
        name, upload_id="id/+=_1", part_number=3, content_length=5_000, expires=60, now=NOW
    )
    assert _split(signed) == _split(expected)


def _split(url: str) -> tuple[str, list[str]]:
    """Location and parameters of a URL: the order of the parameters is not part of a signature."""
    head, _, query = url.partition("?")
    return head, sorted(query.split("&"))


def test_the_signed_query_names_the_grant_and_is_dated_back() -> None:
    signed, expires_at = _presigner().get("v/1", byte_range="bytes=0-0", grant="g_7", expires=60, now=NOW)
    query = parse_qs(urlsplit(signed).query)
    assert query["x-broker-grant"] == ["g_7"]
    assert query["X-Amz-SignedHeaders"] == ["host;range"]
    date = dt.datetime.strptime(query["X-Amz-Date"][0], "%Y%m%dT%H%M%SZ").replace(tzinfo=dt.UTC)
    assert int(date.timestamp()) == NOW // 1000 - limits.PRESIGN_BACKDATE
    assert int(date.timestamp()) + int(query["X-Amz-Expires"][0]) == expires_at // 1000


@pytest.mark.parametrize(("asked", "given_"), [(1, 1), (300, 300), (301, 300), (10**9, 300)])
def test_a_read_url_lives_five_minutes_at_most(asked: int, given_: int) -> None:
    _signed, expires_at = _presigner().get("v/1", byte_range="bytes=0-0", grant="g", expires=asked, now=NOW)
    assert expires_at == (NOW // 1000 + given_) * 1000


@pytest.mark.parametrize("asked", [limits.UPLOAD_URL_TTL, limits.UPLOAD_URL_TTL + 1])
def test_an_upload_url_is_cut_to_its_limit(asked: int) -> None:
    _, put = _presigner().put("v/1", content_length=1, expires=asked, now=NOW)
    _, part = _presigner().upload_part(
        "v/1", upload_id="u", part_number=1, content_length=1, expires=asked, now=NOW
    )
    assert put == part == (NOW // 1000 + limits.UPLOAD_URL_TTL) * 1000


@given(
    left=st.integers(min_value=1, max_value=10**6),
    asked=st.integers(min_value=1, max_value=10**6),
    now=st.integers(min_value=10**12, max_value=2 * 10**12),
)
def test_no_url_outlives_its_credentials(left: int, asked: int, now: int) -> None:
    presigner = _presigner(expires_at=now + left)
    try:
        _signed, expires_at = presigner.get("v/1", byte_range="bytes=0-9", grant="g", expires=asked, now=now)
    except StoreUnavailable:
        assert left < 1000
        return
    assert now < expires_at <= now + min(left, asked * 1000, limits.LEASE_TTL * 1000)


def test_expired_credentials_sign_nothing() -> None:
    with pytest.raises(StoreUnavailable):
        _presigner(expires_at=NOW - 1).put("v/1", content_length=1, expires=60, now=NOW)


@pytest.mark.parametrize(
    "text",
    ["", "bytes=0-", "bytes=-5", "bytes=5-4", "bytes=0-1,3-4", "bytes=00-1", "bytes = 0-1", "bytes=0-1\n"],
)
def test_only_one_closed_range_is_signed(text: str) -> None:
    with pytest.raises(InvalidRequest):
        _presigner().get("v/1", byte_range=text, grant="g", expires=60, now=NOW)


def test_format_range_is_inclusive() -> None:
    assert format_range(0, 668) == "bytes=0-667"
    for start, length in ((-1, 5), (0, 0)):
        with pytest.raises(InvalidRequest):
            format_range(start, length)


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", "a/../b", "./a", "a/.", "a\0b", "\ud800"])
def test_names_that_a_client_would_rewrite_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest):
        _presigner().get(name, byte_range="bytes=0-0", grant="g", expires=60, now=NOW)


def test_object_names_have_a_limit() -> None:
    check_object_name("a" * MAX_OBJECT_NAME)
    with pytest.raises(InvalidRequest):
        check_object_name("a" * (MAX_OBJECT_NAME + 1))


@pytest.mark.parametrize(("number", "upload_id"), [(0, "u"), (MAX_PARTS + 1, "u"), (1, "")])
def test_parts_have_an_upload_and_a_number(number: int, upload_id: str) -> None:
    with pytest.raises(InvalidRequest):
        _presigner().upload_part(
            "v/1", upload_id=upload_id, part_number=number, content_length=1, expires=60, now=NOW
        )


@pytest.mark.parametrize("expires", [0, -1])
def test_a_url_without_life_is_refused(expires: int) -> None:
    with pytest.raises(InvalidRequest):
        _presigner().put("v/1", content_length=1, expires=expires, now=NOW)


@pytest.mark.parametrize("length", [-1, limits.MAX_FILE_SIZE + 1])
def test_a_length_out_of_range_is_refused(length: int) -> None:
    with pytest.raises(InvalidRequest):
        _presigner().put("v/1", content_length=length, expires=60, now=NOW)


@pytest.mark.parametrize(
    "endpoint", ["store:8333", "ftp://store", "http://", "http://a/b", "http://u:p@store", "http://a?x=1"]
)
def test_an_endpoint_is_scheme_host_and_port(endpoint: str) -> None:
    with pytest.raises(ConfigurationError):
        Presigner(
            endpoint=endpoint, region="r", bucket="b", credentials=_presigner().credentials, path_style=True
        )


def test_a_default_port_is_not_signed() -> None:
    # HTTP clients leave it out of Host, and the store would compute another signature.
    presigner = Presigner(
        endpoint="https://s3.example:443/",
        region="r",
        bucket="b",
        credentials=_presigner().credentials,
    )
    assert presigner.host == "s3.example"


def test_I11_no_secret_is_in_a_repr() -> None:
    presigner = _presigner(token="session-token")
    shown = repr(presigner) + repr(presigner.credentials())
    assert "s3cr3t" not in shown
    assert "session-token" not in shown
