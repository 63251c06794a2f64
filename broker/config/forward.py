"""The settings of forwarding: one table for each destination."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import SplitResult, urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

from broker import limits
from broker.config.parts import LOOPBACK, AbsolutePath

_SCHEMES: Final = {"syslog": ("tls", "tcp"), "webhook": ("https", "http")}
_TLS_FILES: Final = ("ca_file", "cert_file", "key_file")


class ForwardSettings(BaseModel):
    """Somebody who is told of every entry."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    """Name of the destination; how far it has come is kept under it, so another name begins anew."""
    kind: Literal["syslog", "webhook", "file"]
    """`syslog` (RFC 5424), `webhook` (Standard Webhooks) or `file` (JSON lines)."""
    # Some receivers want a secret in it (I11).
    url: str | None = Field(default=None, max_length=limits.MAX_URL, repr=False)
    """`tls://HOST:PORT` or `tcp://HOST:PORT` for syslog; `https://HOST[:PORT]/PATH` for a webhook."""
    path: AbsolutePath | None = None
    """The file to which lines are added."""
    format: Literal["ocsf", "jsonl"] = "ocsf"
    """`ocsf` (events of the Open Cybersecurity Schema Framework) or `jsonl` (whole entries)."""
    start: Literal["first", "now"] = Field(default="first", alias="from")
    """Where a new destination begins: with the log's `first` entry, or with the next one from `now` on."""
    types: tuple[str, ...] = ()
    """Types of entries that it gets; all unless given."""
    batch: int = Field(default=100, ge=1, le=limits.MAX_FORWARD_ENTRIES)
    """Entries that are delivered at once, at most."""
    timeout: float = Field(default=15.0, ge=0.5, le=limits.MAX_FORWARD_TIMEOUT)
    """Seconds that one delivery may take."""
    secret_file: AbsolutePath | None = None
    """File with the webhook's secrets (`whsec_...`), one a line; each of them signs."""
    ca_file: AbsolutePath | None = None
    """PEM file of the authorities that may vouch for the receiver; the system's unless given."""
    cert_file: AbsolutePath | None = None
    """PEM file of the certificate that is shown to a receiver that asks for one."""
    key_file: AbsolutePath | None = None
    """PEM file of that certificate's key."""
    unsafe_plaintext: bool = False
    """Syslog in clear (`tcp://`) may leave this machine."""

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if self.kind == "file":
            self._refuse("url", "secret_file", "unsafe_plaintext", *_TLS_FILES)
            if self.path is None:
                raise ValueError("a file has a path")
            return self
        self._refuse("path", *(("secret_file",) if self.kind == "syslog" else ("unsafe_plaintext",)))
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file come together")
        self._check_url()
        if self.kind == "webhook" and self.secret_file is None:
            raise ValueError("a webhook has a secret_file")
        return self

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of a syslog receiver."""
        parts = self._parts()
        return parts.hostname or "", parts.port or 0

    @property
    def encrypted(self) -> bool:
        """Whether it is reached over TLS."""
        return self._parts().scheme in ("tls", "https")

    def _refuse(self, *names: str) -> None:
        given: list[Any] = [name for name in names if getattr(self, name)]
        if given:
            raise ValueError(f"{', '.join(given)} does not go with the kind {self.kind}")

    def _check_url(self) -> None:
        parts = self._parts()
        local = parts.hostname in LOOPBACK
        if parts.scheme not in _SCHEMES[self.kind] or not parts.hostname:
            raise ValueError(f"a {self.kind} has a url that begins with {_SCHEMES[self.kind][0]}://")
        if self.kind == "syslog" and (not parts.port or parts.path or parts.query or "@" in parts.netloc):
            raise ValueError("a syslog receiver's url is tls://HOST:PORT")
        if parts.scheme == "http" and not local:
            raise ValueError("http is for loopback only")
        if parts.scheme == "tcp" and not local and not self.unsafe_plaintext:
            raise ValueError("tcp in clear is for loopback only, unless unsafe_plaintext is set")

    def _parts(self) -> SplitResult:
        try:
            parts = urlsplit(self.url or "")
            _ = parts.port
        except ValueError:
            # Its own words would quote the URL (I11).
            raise ValueError("the url is not one") from None
        return parts
