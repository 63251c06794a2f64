"""The variables that point unmodified tools at an agent, and those of the user that would point elsewhere.

A variable that is removed names other credentials, another endpoint, or turns off what the agent needs;
each would be preferred by some tool to what the agent sets.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

S3_ACCESS_KEY: Final = "BROKERAGENT"
"""The access key id of every agent; what has to be known is the secret."""
S3_REGION: Final = "us-east-1"
REMOVED: Final[Mapping[str, tuple[str, ...]]] = {
    # Other credentials and ways to get some, other endpoints.
    "s3": (
        "AWS_PROFILE",
        "AWS_DEFAULT_PROFILE",
        "AWS_SESSION_TOKEN",
        "AWS_SECURITY_TOKEN",
        "AWS_CREDENTIAL_EXPIRATION",
        "AWS_ROLE_ARN",
        "AWS_ROLE_SESSION_NAME",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
        "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
        "AWS_USE_FIPS_ENDPOINT",
        "AWS_USE_DUALSTACK_ENDPOINT",
        "RUNAI_STREAMER_S3_UNSIGNED",
    ),
    # Another token, no token, another endpoint.
    "hf": (
        "HUGGING_FACE_HUB_TOKEN",
        "HF_OIDC_RESOURCE",
        "HF_OIDC_ID_TOKEN",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN",
        "HUGGINGFACE_CO_STAGING",
    ),
}
"""Endpoint -> variables of the user that a command beside it does not get."""
_REMOVED_PREFIX: Final = {"s3": "FSSPEC_S3", "hf": "FSSPEC_HF"}
"""Options of fsspec's filesystems in variables, whichever: FSSPEC_S3_KEY, FSSPEC_S3_ENDPOINT_URL, ..."""

_NAME_RE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NO_PROXY: Final = ("NO_PROXY", "no_proxy")


def s3_environment(endpoint: str, secret: str) -> dict[str, str]:
    """The variables for S3 clients: those of AWS's SDKs, and of tools that have names of their own.

    Args:
        endpoint: ``http://HOST:PORT``.
        secret: The endpoint's secret access key.
    """
    return {
        "AWS_ACCESS_KEY_ID": S3_ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": secret,
        # Any region does; without one some SDKs ask the machine's metadata service, and wait.
        "AWS_REGION": S3_REGION,
        "AWS_DEFAULT_REGION": S3_REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        # Where both are set, some tools prefer the one, some the other; the C++ SDK knows only the first.
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ENDPOINT_URL_S3": endpoint,
        "S3_ENDPOINT_URL": endpoint,  # s5cmd
        "AWS_ALLOW_HTTP": "true",  # object_store (Rust), and what is built on it
        "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",  # buckets are no host names of a loopback address
    }


def hub_environment(endpoint: str, secret: str) -> dict[str, str]:
    """The variables for Hub clients (huggingface_hub and all that is built on it).

    Args:
        endpoint: ``http://HOST:PORT``.
        secret: The endpoint's bearer token.
    """
    return {"HF_ENDPOINT": endpoint, "HF_TOKEN": secret}


def no_proxy_environment(environ: Mapping[str, str], hosts: tuple[str, ...]) -> dict[str, str]:
    """``NO_PROXY`` in both spellings, with ``hosts`` added to what the user has: loopback needs no proxy.

    Args:
        environ: The user's variables.
        hosts: Literal addresses.
    """
    found = {}
    for name, other in (_NO_PROXY, _NO_PROXY[::-1]):
        text = environ.get(name) or environ.get(other) or ""
        kept = [part.strip() for part in text.split(",") if part.strip()]
        # "*" (no proxy for anybody) is only understood where it stands alone.
        more = [] if "*" in kept else [host for host in hosts if host not in kept]
        found[name] = ",".join([*kept, *more])
    return found


def find_removed(environ: Mapping[str, str], endpoints: Iterable[str]) -> list[str]:
    """The user's variables that would lead tools elsewhere than to these endpoints (``s3``, ``hf``)."""
    wanted = list(endpoints)
    names = {name for endpoint in wanted for name in REMOVED[endpoint]}
    prefixes = tuple(_REMOVED_PREFIX[endpoint] for endpoint in wanted)
    found = [name for name in environ if name in names or name.startswith(prefixes)]
    # The names are printed as lines for a shell; what is not a name to it, no tool can have set there (I04).
    return [name for name in found if _NAME_RE.fullmatch(name)]


def child_environment(
    environ: Mapping[str, str], *, removed: Iterable[str], exported: Mapping[str, str]
) -> dict[str, str]:
    """The whole environment of a command: the user's own, without ``removed``, with ``exported``."""
    gone = set(removed)
    return {name: value for name, value in environ.items() if name not in gone} | dict(exported)
