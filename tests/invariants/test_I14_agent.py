"""I14: the S3 endpoint takes one algorithm, for one service; what a request names instead is refused."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from broker.client.agent import sigv4
from broker.client.agent.environment import S3_ACCESS_KEY
from broker.client.agent.http import Request
from broker.client.agent.s3_errors import S3Refusal
from broker.runtime import SystemClock
from tests.s3_requests import Credentials, signed_headers, signed_target

SECRET = "Zm9vYmFyZm9vYmFyZm9vYmFyZm9vYmFyZm9vYmFyZm8"
WHO = Credentials(S3_ACCESS_KEY, SECRET)
TARGET, PORT = "/acme/llama/w.bin", 4242


def request(headers: dict[str, str], target: str = TARGET) -> Request:
    path, _, query = target.partition("?")
    found = {"host": f"127.0.0.1:{PORT}"} | {name.lower(): value for name, value in headers.items()}
    return Request(method="GET", raw_path=path, query=query, headers=found)


def is_taken(asked: Request) -> bool:
    try:
        sigv4.verify_signature(asked, access_key=S3_ACCESS_KEY, secret=SECRET, now=SystemClock().now())
    except S3Refusal:
        return False
    return True


def sign_v2(date: str) -> str:
    """Signature Version 2: the algorithm before this one, with the right secret."""
    text = f"GET\n\n\n{date}\n{TARGET}".encode()
    return hmac.new(SECRET.encode(), text, hashlib.sha1).hexdigest()


@pytest.mark.parametrize(
    "algorithm",
    [
        "AWS4-ECDSA-P256-SHA256",
        "AWS4-HMAC-SHA1",
        "AWS4-HMAC-SHA512",
        "AWS4-HMAC-SHA256-PAYLOAD",
        "aws4-hmac-sha256",
        "AWS3-HMAC-SHA256",
        "AWS",
        "HMAC",
        "none",
        "",
    ],
)
def test_I14_a_request_cannot_choose_another_algorithm(algorithm: str) -> None:
    headers = signed_headers("GET", TARGET, PORT, WHO)
    assert is_taken(request(headers))
    header = headers["Authorization"].replace(sigv4.ALGORITHM, algorithm, 1)
    assert not is_taken(request({**headers, "Authorization": header}))
    target = signed_target("GET", TARGET, PORT, WHO)
    assert is_taken(request({}, target))
    assert not is_taken(request({}, target.replace(sigv4.ALGORITHM, algorithm, 1)))


def test_I14_former_signatures_and_bare_secrets_are_refused() -> None:
    date = "Tue, 24 Nov 2026 00:00:00 GMT"
    for value in (f"AWS {S3_ACCESS_KEY}:{sign_v2(date)}", f"Bearer {SECRET}", f"Basic {SECRET}", SECRET):
        assert not is_taken(request({"Authorization": value, "Date": date}))
    query = f"AWSAccessKeyId={S3_ACCESS_KEY}&Signature={sign_v2(date)}&Expires=9999999999"
    assert not is_taken(request({}, f"{TARGET}?{query}"))


@pytest.mark.parametrize("service", ["s3express", "sts", "iam", "execute-api", "S3"])
def test_I14_a_signature_for_another_service_is_refused(service: str) -> None:
    assert not is_taken(request(signed_headers("GET", TARGET, PORT, WHO, service=service)))


@pytest.mark.parametrize("region", ["us-east-1", "eu-central-1", "auto"])
def test_I14_the_scope_decides_the_key(region: str) -> None:
    """A signature under one scope does not pass under another: the scope is part of the key."""
    headers = signed_headers("GET", TARGET, PORT, WHO)
    header = headers["Authorization"].replace("/us-east-1/", f"/{region}/")
    assert is_taken(request({**headers, "Authorization": header})) == (region == "us-east-1")
