"""An agent: the endpoints of one caller, their secrets, and the variables that lead to them.

The addresses are bound, and the variables known, before anything is served: whoever starts a command forks
while there is one thread only, and what the command asks in the meantime waits for :meth:`Agent.start`.
Secrets are drawn for each start and kept in memory alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final

from broker.canonical import b64url
from broker.client.agent.environment import (
    find_removed,
    hub_environment,
    no_proxy_environment,
    s3_environment,
)
from broker.client.agent.http import App, Listener
from broker.client.agent.hub import HubApp
from broker.client.agent.s3 import S3App
from broker.client.library import Library
from broker.client.sdk import Client
from broker.errors import UsageError
from broker.runtime import SystemEntropy

SECRET_BYTES: Final = 32
_ADDRESS: Final = re.compile(r"(127\.0\.0\.1|\[::1\]):([0-9]{1,5})")


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where an endpoint listens; port 0 is any free one."""

    host: str = "127.0.0.1"
    port: int = 0


def parse_address(text: str) -> Address:
    """``127.0.0.1:PORT`` or ``[::1]:PORT``: a literal address of loopback, port 0 to 65,535.

    Raises:
        UsageError: It is something else.
    """
    found = _ADDRESS.fullmatch(text)
    if found is None or int(found[2]) > 65535:
        raise UsageError(
            "an endpoint's address is 127.0.0.1:PORT or [::1]:PORT", why="the agent listens on loopback only"
        )
    return Address(host=found[1].strip("[]"), port=int(found[2]))


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One endpoint: its URL, and the variables that lead tools to it."""

    url: str
    listener: Listener = field(repr=False)
    environment: Mapping[str, str] = field(repr=False)


class Agent:
    """The endpoints of one caller. A context manager: closed at its end.

    Args:
        library: What the caller may see and read. It stays the maker's own.
        principal: The caller's id.
        s3: Where the S3 endpoint listens; None for no such endpoint.
        hf: The same for the Hub endpoint.

    Raises:
        UsageError: An address is taken.
    """

    def __init__(self, library: Library, *, principal: str, s3: Address | None, hf: Address | None) -> None:
        self.principal = principal
        self.endpoints: dict[str, Endpoint] = {}
        try:
            if s3 is not None:
                self._add("s3", s3, s3_environment, lambda secret: S3App(library, secret=secret))
            if hf is not None:
                self._add(
                    "hf",
                    hf,
                    hub_environment,
                    lambda secret: HubApp(library, secret=secret, principal=principal),
                )
        except UsageError:
            self.close()
            raise

    def _add(
        self,
        name: str,
        address: Address,
        variables: Callable[[str, str], dict[str, str]],
        app_of: Callable[[str], App],
    ) -> None:
        secret = b64url(SystemEntropy().random_bytes(SECRET_BYTES))
        listener = Listener(app_of(secret), host=address.host, port=address.port)
        host = f"[{listener.host}]" if ":" in listener.host else listener.host
        url = f"http://{host}:{listener.port}"
        self.endpoints[name] = Endpoint(url=url, listener=listener, environment=variables(url, secret))

    def __enter__(self) -> Agent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Every variable to export, for somebody whose variables are ``environ``. It holds the secrets."""
        hosts = _no_proxy_hosts(endpoint.listener for endpoint in self.endpoints.values())
        found = no_proxy_environment(environ, hosts)
        for endpoint in self.endpoints.values():
            found |= endpoint.environment
        return found

    def removed(self, environ: Mapping[str, str]) -> list[str]:
        """Variables among ``environ`` that would lead tools elsewhere than to this agent."""
        return find_removed(environ, self.endpoints)

    def start(self) -> None:
        """Serve."""
        for endpoint in self.endpoints.values():
            endpoint.listener.start()

    @property
    def is_running(self) -> bool:
        """Whether every endpoint serves."""
        return all(endpoint.listener.is_running for endpoint in self.endpoints.values())

    def close(self) -> None:
        """Serve no more; connections under way are broken off."""
        for endpoint in self.endpoints.values():
            endpoint.listener.close()


@contextmanager
def agent_of(
    client: Client, *, s3: Address | None, hf: Address | None, purpose: str | None, jobs: int | None
) -> Iterator[Agent]:
    """The agent of a client, not started yet; closed at the end of the with-block.

    Args:
        purpose: Recorded with every grant, and a matter of policy; ``BROKER_PURPOSE`` without it.
        jobs: Connections that one long read uses; ``BROKER_JOBS`` without it.

    Raises:
        NotAuthenticated, Unreachable: Now, and not to the first tool, if the caller cannot sign in.
        UsageError: An address is taken.
    """
    principal = str(client.whoami()["principal"]["id"])
    library = client.library(purpose=purpose, jobs=jobs)
    try:
        with Agent(library, principal=principal, s3=s3, hf=hf) as made:
            yield made
    finally:
        library.close()


def _no_proxy_hosts(listeners: Iterable[Listener]) -> tuple[str, ...]:
    found = dict.fromkeys(listener.host for listener in listeners)
    # Some libraries compare with the brackets of the URL, some without.
    return tuple(form for host in found for form in ((host, f"[{host}]") if ":" in host else (host,)))
