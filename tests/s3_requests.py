"""Requests to an S3 endpoint, signed by botocore and sent byte for byte as a test wants them."""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from botocore import credentials
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest

REGION = "us-east-1"
SECONDS = 20


@dataclass(frozen=True)
class Credentials:
    """Whose signature; a session token makes it one of a temporary credential."""

    access_key: str
    secret: str = field(repr=False)
    session: str | None = None

    def of_botocore(self) -> credentials.Credentials:
        return credentials.Credentials(self.access_key, self.secret, self.session)


def signed_headers(
    method: str, target: str, port: int, who: Credentials, *, service: str = "s3", **more: str
) -> dict[str, str]:
    """The headers of a request with an ``Authorization``."""
    host = f"127.0.0.1:{port}"
    made = AWSRequest(method=method, url=f"http://{host}{target}", headers={"Host": host, **more})
    S3SigV4Auth(who.of_botocore(), service, REGION).add_auth(made)
    return dict(made.headers.items())


def signed_target(method: str, target: str, port: int, who: Credentials, *, expires: int = 60) -> str:
    """The target of a presigned URL."""
    host = f"127.0.0.1:{port}"
    made = AWSRequest(method=method, url=f"http://{host}{target}", headers={"Host": host})
    S3SigV4QueryAuth(who.of_botocore(), "s3", REGION, expires=expires).add_auth(made)
    parts = urlsplit(made.url)
    return f"{parts.path}?{parts.query}"


def exchange(
    port: int, method: str, target: str, headers: Mapping[str, str]
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of one request on a connection of its own; ``Host`` unless given."""
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        line.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        for name, value in {"Host": f"127.0.0.1:{port}", **headers}.items():
            line.putheader(name, value)
        line.endheaders()
        answer = line.getresponse()
        return answer.status, {n.lower(): v for n, v in answer.getheaders()}, answer.read()
    finally:
        line.close()
