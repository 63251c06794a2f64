"""How the Hub endpoint says no, so that Hub clients tell their user why and what to do.

A client turns ``X-Error-Code`` into an exception and puts ``X-Error-Message`` into its text. The command
``hf`` prints neither: of a refused repository it says that it "requires approval". What it does print is
``X-HF-Warning``, so the reason is said there, too.

**Source**: huggingface_hub, ``utils/_http.py`` (hf_raise_for_status, _warn_on_warning_headers) and
``cli/_errors.py``.
"""

from __future__ import annotations

import hashlib
import json
from typing import Final

from broker.client.agent.http import Answer
from broker.client.agent.revisions import Missing
from broker.errors import HTTP_STATUS, BrokerError, MethodNotAllowed, NotFound, RateLimited

MAX_MESSAGE: Final = 1000
"""Characters of a message: it travels in headers, of which clients and proxies take a few KiB."""
NO_SECRET: Final = "Invalid credentials in Authorization header"  # noqa: S105 - a message
"""In the Hub's own words: to any other 401 clients answer that the repository does not exist."""
_ACCESS: Final = frozenset({401, 403})


def refuse(error: BrokerError) -> Answer:
    """The answer that makes a Hub client raise its own exception, with our reason in it.

    Who may not read meets the exception of a gated repository, whatever the reason: no other one carries a
    reason to the user. A 401 of the broker is one of these, too: the client's own token is right.
    """
    if isinstance(error, NotFound):
        return _missing(error)
    status = HTTP_STATUS[error.code]
    if isinstance(error, MethodNotAllowed):
        return _answer(403, error)
    if status in _ACCESS:
        return _answer(403, error, code="GatedRepo", warn=True)
    more = [("Retry-After", str(error.retry_after))] if isinstance(error, RateLimited) else []
    return _answer(status, error, more=more)


def _missing(error: NotFound) -> Answer:
    part = error.part if isinstance(error, Missing) else "Repo"
    commit = error.commit if isinstance(error, Missing) else ""
    more = [("X-Repo-Commit", commit)] if commit else []
    # Clients ask for files that may be there as a matter of course: of these nobody wants to be warned.
    return _answer(404, error, code=f"{part}NotFound", warn=part != "Entry", more=more)


def refuse_secret() -> Answer:
    """The answer to a request without the agent's secret: the same whatever it asked for."""
    body = json.dumps({"error": NO_SECRET}).encode()
    headers = [("WWW-Authenticate", "Bearer"), ("X-Error-Message", NO_SECRET)]
    return Answer(status=401, headers=[*_JSON, *headers], body=body)


def _answer(
    status: int,
    error: BrokerError,
    *,
    code: str | None = None,
    warn: bool = False,
    more: list[tuple[str, str]] | None = None,
) -> Answer:
    message = message_of(error)
    headers = [*_JSON, ("X-Error-Message", message), *(more or [])]
    if code is not None:
        headers.append(("X-Error-Code", code))
    if warn:
        # "topic; message": a topic is told once in a process, so each message is one of its own.
        topic = hashlib.sha256(message.encode()).hexdigest()[:16]
        headers.append(("X-HF-Warning", f"{topic}; {message}"))
    return Answer(status=status, headers=headers, body=json.dumps({"error": message}).encode())


_JSON: Final = [("Content-Type", "application/json"), ("Cache-Control", "no-store")]


def message_of(error: BrokerError) -> str:
    """What, why and next in one line of printable ASCII, at most :data:`MAX_MESSAGE` characters."""
    parts = [error.what]
    parts += [f"why: {error.why}"] if error.why else []
    parts += [f"next: {error.next}"] if error.next else []
    shown = " | ".join(" ".join(part.split()) for part in parts)
    text = "".join(ch if ch.isascii() and ch.isprintable() else _escape(ch) for ch in shown)
    return text if len(text) <= MAX_MESSAGE else f"{text[: MAX_MESSAGE - 3]}..."


def _escape(ch: str) -> str:
    return ch.encode("ascii", "backslashreplace").decode() if not ch.isascii() else f"\\x{ord(ch):02x}"
