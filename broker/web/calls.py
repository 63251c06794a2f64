"""What a route is, and what its handler is given."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from werkzeug.wrappers import Response

from broker import limits
from broker.canonical import Json
from broker.services.authn import SignedRequest
from broker.services.house import House
from broker.web.health import Readiness
from broker.web.models import Shape
from broker.web.requests import FORM, JSON

Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]


@dataclass(frozen=True, kw_only=True)
class Public:
    """Anybody may ask; the answer is the same for everybody."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """A signed request without an access token: how a key gets its first one.

    ``by`` says what stands in the place of the token.
    """

    by: str


@dataclass(frozen=True, kw_only=True)
class Own:
    """A signed request with an access token, about what is the caller's own: ``of`` says what."""

    of: str


@dataclass(frozen=True, kw_only=True)
class Needs:
    """A signed request with an access token whose scope covers it, and an action that policy allows.

    Attributes:
        action: One of ``policy.request.ACTIONS``.
        scope: Type and action of the ``authorization_details`` that have to cover the request.
    """

    action: str
    scope: tuple[str, str]


Access = Public | Proof | Own | Needs


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request for a handler: what was signed, and its parts in their declared shapes.

    For a public route there is none of this: see :class:`PublicCall`.
    """

    house: House
    request: SignedRequest = field(repr=False)
    values: Mapping[str, str]
    """Variable parts of the path, decoded."""
    query: Any = None
    """An instance of the route's ``query``."""
    body: Any = field(default=None, repr=False)
    """An instance of the route's ``body``; of a form its members."""


@dataclass(frozen=True, kw_only=True)
class PublicCall:
    """A request that needs no credentials: nothing of it is looked at but the path."""

    house: House
    readiness: Readiness
    routes: tuple[Route, ...]
    """Every route that is served."""
    values: Mapping[str, str] = field(default_factory=dict)
    """Variable parts of the path, decoded."""


Handler = Callable[[Call], Json | Response]
PublicHandler = Callable[[PublicCall], Json | Response]


@dataclass(frozen=True, kw_only=True)
class Route:
    """One declared route. What is not declared is not served (I02).

    Attributes:
        name: Unique; the name in metrics and logs.
        rule: The path, variable parts as ``<name>``, or ``<path:name>`` where slashes belong to it.
        handler: Turns a call into a JSON object or a ready answer. Its docstring documents the route.
        body: Shape of the JSON body; None when there is none (or a form).
        query: Shape of the query; None refuses any query.
        form: The body is an OAuth form, and errors are OAuth's.
        most: Limit of the body in bytes.
        local_only: Answered to callers on this machine only, unless the operator opens it.
    """

    name: str
    method: Method
    rule: str
    access: Access
    handler: Handler | PublicHandler
    body: type[Shape] | None = None
    query: type[Shape] | None = None
    form: bool = False
    most: int = limits.MAX_BODY
    local_only: bool = False

    @property
    def summary(self) -> str:
        """One line that says what the route answers."""
        return (self.handler.__doc__ or "").partition("\n")[0].partition(". ")[0].rstrip(".")

    @property
    def parameters(self) -> list[str]:
        """Names of the variable parts of the path."""
        return [part.rpartition(":")[2] for part in re.findall(r"<([^>]+)>", self.rule)]

    @property
    def template(self) -> str:
        """The path with its variable parts as ``{name}``."""
        return re.sub(r"<(?:path:)?([a-z]+)>", r"{\1}", self.rule)

    @property
    def media_type(self) -> str:
        """The media type of the body."""
        return FORM if self.form else JSON
