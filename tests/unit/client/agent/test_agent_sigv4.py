"""Signatures, with botocore as the other implementation and AWS's published examples."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import example, given
from hypothesis import strategies as st

from broker import limits
from broker.client.agent import sigv4
from broker.client.agent.http import Request
from broker.client.agent.s3_errors import S3Refusal
from broker.runtime import SystemClock

ACCESS_KEY, SECRET = "BROKERAGENT", "kept-Secret_0"
HOST = "127.0.0.1:4242"
EMPTY = hashlib.sha256(b"").hexdigest()
EXAMPLE = {"access_key": "AKIAIOSFODNN7EXAMPLE", "secret": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"}
EXAMPLE_HOST = "examplebucket.s3.amazonaws.com"
EXAMPLE_TIME = int(datetime(2013, 5, 24, tzinfo=UTC).timestamp()) * 1000


def signed(
    url: str = "/acme/llama/w.bin",
    *,
    method: str = "GET",
    region: str = "us-east-1",
    body: bytes = b"",
    secret: str = SECRET,
    access_key: str = ACCESS_KEY,
    service: str = "s3",
    token: str | None = None,
    expires: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> Request:
    """A request as botocore signs it: in its header, or (with ``expires``) in its query."""
    made = AWSRequest(
        method=method, url=f"http://{HOST}{url}", data=body, headers={**(headers or {}), "Host": HOST}
    )
    credentials = Credentials(access_key, secret, token)
    if expires is None:
        S3SigV4Auth(credentials, service, region).add_auth(made)
    else:
        S3SigV4QueryAuth(credentials, service, region, expires=expires).add_auth(made)
    parts = urlsplit(made.prepare().url)
    found = {name.lower(): value for name, value in made.headers.items()}
    return Request(method=method, raw_path=parts.path, query=parts.query, headers=found, body=body)


def verify(request: Request, **changes: Any) -> str:
    now = SystemClock().now()
    return sigv4.verify_signature(
        request, **{"access_key": ACCESS_KEY, "secret": SECRET, "now": now, **changes}
    )


def code(request: Request, **changes: Any) -> str:
    with pytest.raises(S3Refusal) as caught:
        verify(request, **changes)
    assert caught.value.status == 403
    assert SECRET not in str(vars(caught.value))
    return caught.value.s3_code


# -- AWS's own numbers --------------------------------------------------------------------------------


@dataclass
class Example:
    """An example of the Amazon S3 API Reference, "Examples: Signature Calculations"."""

    signature: str
    method: str = "GET"
    path: str = "/"
    query: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    def request(self) -> Request:
        headers = {"host": EXAMPLE_HOST, "x-amz-date": "20130524T000000Z", "x-amz-content-sha256": EMPTY}
        headers |= self.headers
        names = ";".join(sorted(headers))
        credential = f"{EXAMPLE['access_key']}/20130524/us-east-1/s3/aws4_request"
        headers["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={credential},SignedHeaders={names},Signature={self.signature}"
        )
        return Request(method=self.method, raw_path=self.path, query=self.query, headers=headers)


EXAMPLES = {
    "GET Object": Example(
        path="/test.txt",
        headers={"range": "bytes=0-9"},
        signature="f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
    ),
    "PUT Object": Example(
        method="PUT",
        path="/test%24file.text",
        headers={
            "date": "Fri, 24 May 2013 00:00:00 GMT",
            "x-amz-storage-class": "REDUCED_REDUNDANCY",
            "x-amz-content-sha256": "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
        },
        signature="98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
    ),
    "GET Bucket Lifecycle": Example(
        query="lifecycle", signature="fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"
    ),
    "Get Bucket (List Objects)": Example(
        query="max-keys=2&prefix=J",
        signature="34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_of_aws(name: str) -> None:
    request = EXAMPLES[name].request()
    assert sigv4.verify_signature(request, **EXAMPLE, now=EXAMPLE_TIME) == "us-east-1"
    with pytest.raises(S3Refusal):
        sigv4.verify_signature(replace(request, raw_path="/other"), **EXAMPLE, now=EXAMPLE_TIME)


def test_the_presigned_example_of_aws() -> None:
    query = (
        "X-Amz-Algorithm=AWS4-HMAC-SHA256"
        "&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request"
        "&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host"
        "&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
    )
    request = Request(method="GET", raw_path="/test.txt", query=query, headers={"host": EXAMPLE_HOST})
    for now in (EXAMPLE_TIME, EXAMPLE_TIME + 86400_000):
        assert sigv4.verify_signature(request, **EXAMPLE, now=now) == "us-east-1"
    with pytest.raises(S3Refusal):
        sigv4.verify_signature(request, **EXAMPLE, now=EXAMPLE_TIME + 86400_001)


# -- botocore -----------------------------------------------------------------------------------------

KEYS = st.text(st.characters(codec="utf-8"), max_size=40)


@given(key=KEYS, expires=st.sampled_from([None, 60]), value=KEYS)
def test_whatever_botocore_signs_is_taken(key: str, expires: int | None, value: str) -> None:
    url = f"/acme/{quote(key, safe='/~')}?prefix={quote(value, safe='')}&list-type=2&acl"
    assert verify(signed(url, expires=expires)) == "us-east-1"


@given(
    value=st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=30),
    region=st.from_regex(r"[a-z0-9-]{1,20}", fullmatch=True),
)
@example(value="  a   b ", region="us-east-1")
@example(value="", region="auto")
def test_headers_and_regions_that_botocore_signs(value: str, region: str) -> None:
    request = signed(region=region, headers={"X-Amz-Meta-A": value, "Range": "bytes=0-1"})
    assert verify(request) == region


@pytest.mark.parametrize("expires", [None, 60])
@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "PUT", "POST"])
def test_every_method(method: str, expires: int | None) -> None:
    request = signed(method=method, expires=expires)
    assert verify(request) == "us-east-1"
    others = {"GET", "HEAD", "DELETE", "PUT", "POST"} - {method}
    assert {code(replace(request, method=other)) for other in others} == {"SignatureDoesNotMatch"}


def test_header_values_that_are_not_ascii() -> None:
    """A client signs bytes, and headers arrive as Latin-1: what looks like a space there is none."""
    plain = "é à\x85 \xa0ü".encode().decode("latin-1")
    names, request = "host;x-amz-content-sha256;x-amz-date;x-amz-meta-a", signed()
    headers = {**request.headers, "x-amz-meta-a": plain}
    date, time = headers["x-amz-date"][:8], headers["x-amz-date"]
    lines = [f"{name}:{headers[name]}" for name in names.split(";")]
    canonical = "\n".join(["GET", request.raw_path, "", *lines, "", names, headers["x-amz-content-sha256"]])
    scope = f"{date}/us-east-1/s3/aws4_request"
    digest = hashlib.sha256(canonical.encode("latin-1")).hexdigest()
    key = f"AWS4{SECRET}".encode()
    for part in (*scope.split("/"), "\n".join(["AWS4-HMAC-SHA256", time, scope, digest])):
        key = hmac.digest(key, part.encode(), "sha256")
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/{scope}, SignedHeaders={names}, Signature={key.hex()}"
    )
    assert verify(replace(request, headers=headers)) == "us-east-1"


@pytest.mark.parametrize("separator", [", ", ","])
def test_both_spellings_of_the_header(separator: str) -> None:
    request = signed()
    header = request.headers["authorization"].replace(", ", separator)
    assert verify(replace(request, headers={**request.headers, "authorization": header}))


@pytest.mark.parametrize("expires", [None, 60])
def test_what_was_signed_cannot_be_changed(expires: int | None) -> None:
    request = signed("/acme/llama/w.bin?list-type=2", expires=expires)
    query = request.query
    changes: list[dict[str, Any]] = [
        {"raw_path": "/acme/llama/x.bin"},
        {"raw_path": "/acme/llama//w.bin"},
        {"raw_path": "/acme/./llama/w.bin"},
        {"raw_path": "/"},
        {"query": f"{query}&prefix=a"},
        {"query": f"prefix&{query}"},
        {"query": query.replace("list-type=2", "list-type=1")},
        {"query": query.replace("list-type=2", "")},
        {"headers": {**request.headers, "host": "127.0.0.1:4243"}},
    ]
    assert {code(replace(request, **change)) for change in changes} == {"SignatureDoesNotMatch"}


def test_spellings_of_one_path_are_one_path() -> None:
    request = signed("/acme/a%20b")
    assert verify(replace(request, raw_path="/%61cme/a%20b"))
    assert code(replace(request, raw_path="/acme/a+b")) == "SignatureDoesNotMatch"


@pytest.mark.parametrize("name", ["x-amz-date", "x-amz-content-sha256"])
def test_a_signed_header_cannot_be_changed_or_left_out(name: str) -> None:
    request = signed()
    left = {key: value for key, value in request.headers.items() if key != name}
    assert code(replace(request, headers=left))
    other = {"x-amz-date": "20130524T000000Z", "x-amz-content-sha256": "UNSIGNED-PAYLOAD"}[name]
    assert code(replace(request, headers={**left, name: other}))


@pytest.mark.parametrize("expires", [None, 60])
def test_an_amz_header_that_is_not_signed(expires: int | None) -> None:
    request = signed(expires=expires)
    more = {**request.headers, "x-amz-meta-more": "a"}
    assert code(replace(request, headers=more)) == "AccessDenied"
    assert verify(replace(request, headers={**request.headers, "range": "bytes=0-1", "accept": "*/*"}))


def test_the_host_must_be_signed() -> None:
    request = signed()
    header = request.headers["authorization"].replace("SignedHeaders=host;", "SignedHeaders=")
    assert code(replace(request, headers={**request.headers, "authorization": header})) == "AccessDenied"


# -- time ---------------------------------------------------------------------------------------------


def _made(request: Request) -> int:
    text = request.headers["x-amz-date"]
    return int(datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()) * 1000


@pytest.mark.parametrize("side", [1, -1])
def test_fifteen_minutes_and_a_moment_more(side: int) -> None:
    request = signed()
    most = side * sigv4.MAX_SKEW * 1000
    assert verify(request, now=_made(request) + most)
    assert code(request, now=_made(request) + most + side) == "RequestTimeTooSkewed"


def test_presigned_until_it_expires() -> None:
    request = signed(expires=3)
    now = SystemClock().now()
    assert verify(request, now=now)
    assert code(request, now=now + 10_000) == "AccessDenied"
    assert code(request, now=now - sigv4.MAX_SKEW * 1000 - 10_000) == "RequestTimeTooSkewed"


@pytest.mark.parametrize("expires", [0, sigv4.MAX_EXPIRES + 1, -1, 10**9])
def test_presigned_for_too_long_or_never(expires: int) -> None:
    assert code(signed(expires=expires)) == "AuthorizationQueryParametersError"
    assert verify(signed(expires=sigv4.MAX_EXPIRES))


@pytest.mark.parametrize("time", ["20261340T000000Z", "00000000T000000Z", "2026", "", "20261123T0000000"])
def test_times_that_are_none(time: str) -> None:
    request = signed()
    headers = {**request.headers, "x-amz-date": time}
    headers["authorization"] = headers["authorization"].replace(
        headers["authorization"].split("/")[1], time[:8] or "20261123"
    )
    assert code(replace(request, headers=headers)) in ("AccessDenied", "AuthorizationHeaderMalformed")


# -- who ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expires", [None, 60])
def test_another_secret_key_service_or_a_session(expires: int | None) -> None:
    assert code(signed(secret=SECRET + "x", expires=expires)) == "SignatureDoesNotMatch"
    assert code(signed(secret="-", expires=expires)) == "SignatureDoesNotMatch"
    assert code(signed(access_key="OTHER", expires=expires)) == "InvalidAccessKeyId"
    assert code(signed(service="sts", expires=expires)) == "AuthorizationHeaderMalformed"
    assert code(signed(token="session", expires=expires)) == "InvalidToken"


def test_twice_signed_or_not_at_all() -> None:
    header, query = signed(), signed(expires=60)
    both = replace(header, query=query.query)
    assert code(both) == "AccessDenied"
    assert code(replace(query, query="")) == "AccessDenied"
    left = {name: value for name, value in header.headers.items() if name != "authorization"}
    assert code(replace(header, headers=left)) == "AccessDenied"


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Bearer x",
        f"AWS {ACCESS_KEY}:abc=",
        "AWS4-HMAC-SHA256",
        "AWS4-HMAC-SHA256 Credential=a, SignedHeaders=host, Signature=00",
        "AWS4-HMAC-SHA256 Credential=" + "a/" * 2000,
        "x" * 60_000,
    ],
)
def test_headers_that_are_no_signature(value: str) -> None:
    request = signed()
    assert code(replace(request, headers={**request.headers, "authorization": value}))


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF), max_size=200), st.booleans())
def test_any_text_is_refused_in_order(text: str, in_query: bool) -> None:
    query = f"X-Amz-Algorithm={quote(text)}" if in_query else quote(text, safe="&=")
    headers = {"host": HOST} if in_query else {"host": HOST, "authorization": text}
    assert code(Request(method="GET", raw_path="/", query=query, headers=headers))


def test_parameters_at_the_limit_one_past_it_and_twice() -> None:
    names = [f"p{i}=1" for i in range(limits.MAX_PAIRS)]
    assert len(sigv4.parse_pairs("&".join(names))) == limits.MAX_PAIRS
    assert verify(signed(f"/?{'&'.join(names)}"))
    assert code(signed(f"/?{'&'.join([*names, 'more=1'])}")) == "InvalidArgument"
    assert code(signed("/?prefix=a&prefix=b")) == "InvalidArgument"
    assert sigv4.parse_pairs("a=b+c%20d&&e&f=") == ((b"a", b"b c d"), (b"e", b""), (b"f", b""))


# -- bodies -------------------------------------------------------------------------------------------


def test_the_body_of_a_post_is_the_signed_one() -> None:
    request = signed("/acme?delete", method="POST", body=b"<Delete/>")
    assert verify(request)
    assert code(replace(request, body=b"<Delete></Delete>")) == "XAmzContentSHA256Mismatch"


@pytest.mark.parametrize(
    "payload", ["", hashlib.sha256(b"x").hexdigest(), "STREAMING-UNSIGNED-PAYLOAD-TRAILER"]
)
def test_a_read_has_no_body(payload: str) -> None:
    request = signed()
    assert code(replace(request, headers={**request.headers, "x-amz-content-sha256": payload}))
    assert verify(signed(headers={"X-Amz-Content-SHA256": "UNSIGNED-PAYLOAD"}))
    assert verify(signed(headers={"X-Amz-Content-SHA256": EMPTY}))
