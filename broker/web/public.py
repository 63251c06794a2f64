"""What anybody may ask: health, metadata, keys, the newest tree head. Nothing here reads the request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from werkzeug.wrappers import Response

from broker import jose
from broker.canonical import Json
from broker.errors import Unavailable
from broker.identity import scope
from broker.services import auditing, cosigned
from broker.services.exchange import GRANT_TYPE as TOKEN_EXCHANGE
from broker.services.house import House
from broker.services.log_keys import show_keys
from broker.services.tokens import JWT_BEARER
from broker.web import metrics
from broker.web.calls import PublicCall
from broker.web.problems import ALGORITHMS

PROTECTED_RESOURCE: Final = "/.well-known/oauth-protected-resource"


def live(call: PublicCall) -> Json:
    """The process answers."""
    del call
    return {"status": "alive"}


def ready(call: PublicCall) -> Json:
    """Everything that a read needs answers. Which part does not is for the log, not for outsiders.

    Raises:
        Unavailable: Something does not.
    """
    if not call.readiness.check():
        raise Unavailable("the broker is not ready")
    return {"status": "ready"}


def show_metrics(call: PublicCall) -> Response:
    """Counters in the Prometheus text format."""
    del call
    return Response(metrics.render_metrics(), content_type=metrics.CONTENT_TYPE)


def base_url(house: House) -> str:
    """The first public URL, without a slash at its end."""
    return house.public_urls[0].rstrip("/")


def authorization_server(call: PublicCall) -> Json:
    """How to get a token here, and the log and store that a client pins. Source: RFC 8414."""
    house, base = call.house, base_url(call.house)
    return {
        "issuer": house.issuer,
        "token_endpoint": f"{base}/oauth/token",
        "introspection_endpoint": f"{base}/oauth/introspect",
        "revocation_endpoint": f"{base}/oauth/revoke",
        "jwks_uri": f"{base}/oauth/jwks",
        "response_types_supported": [],
        "grant_types_supported": [JWT_BEARER, TOKEN_EXCHANGE],
        "token_endpoint_auth_methods_supported": ["none"],
        "dpop_signing_alg_values_supported": list(ALGORITHMS),
        "authorization_details_types_supported": sorted(scope.ACTIONS),
        "broker_log": {"origin": house.log.origin, "vkey": house.log.vkey},
        "store_hosts": list(house.store_hosts),
    }


def protected_resource(call: PublicCall) -> Json:
    """What this API wants to see in a request. Source: RFC 9728."""
    base = base_url(call.house)
    return {
        "resource": base,
        "authorization_servers": [call.house.issuer],
        "jwks_uri": f"{base}/oauth/jwks",
        "bearer_methods_supported": ["header"],
        "dpop_bound_access_tokens_required": True,
        "dpop_signing_alg_values_supported": list(ALGORITHMS),
        "authorization_details_types_supported": sorted(scope.ACTIONS),
    }


def jwks(call: PublicCall) -> Json:
    """The public keys of every access token that is still accepted. Source: RFC 7517 section 5."""
    accepted = call.house.token_keys.accepted
    return {"keys": [_public_jwk(kid, jwk) for kid, jwk in accepted.items()]}


def _public_jwk(kid: str, jwk: Mapping[str, Any]) -> Json:
    # Parsed again, so that whatever else a key's record may hold stays here.
    public = jose.parse_public_jwk(jwk)
    alg = jose.EDDSA if public["kty"] == "OKP" else jose.ES256
    return {**public, "kid": kid, "use": "sig", "alg": alg}


def log_keys(call: PublicCall) -> Json:
    """The keys that sign the log, each with what the one before said of it."""
    return show_keys(call.house)


def checkpoint(call: PublicCall) -> Response:
    """The newest signed tree head. Source: C2SP tlog-tiles, "Checkpoints"."""
    return _head(auditing.checkpoint(call.house))


def cosigned_head(call: PublicCall) -> Response:
    """The newest tree head that a quorum of the log's witnesses cosigned."""
    return _head(cosigned.newest_note(call.house))


def _head(text: str) -> Response:
    answer = Response(text, content_type="text/plain; charset=utf-8")
    answer.headers["Cache-Control"] = "public, max-age=5"
    return answer
