"""TLS to receivers: their certificate and name verified, ours shown where they ask for one."""

from __future__ import annotations

import ssl
from pathlib import Path

from broker.errors import ConfigurationError


def open_context(
    *, ca_file: Path | None = None, cert_file: Path | None = None, key_file: Path | None = None
) -> ssl.SSLContext:
    """A client's side of TLS 1.2 or 1.3.

    Args:
        ca_file: PEM of the authorities to believe; the system's unless given.
        cert_file: PEM of the certificate to show, if any.
        key_file: PEM of its key.

    Raises:
        ConfigurationError: A file cannot be read, or is something else.

    **Source**: RFC 5425 sections 4.2 and 5; RFC 9662 (cipher suites: no TLS below 1.2).
    """
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigurationError(f"the authorities in {ca_file} cannot be read") from exc
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if cert_file is not None:
        try:
            # An empty passphrase, so that an encrypted key fails and nobody is asked at a terminal.
            context.load_cert_chain(cert_file, key_file, password="")
        except (OSError, ssl.SSLError) as exc:
            raise ConfigurationError(f"{cert_file} and its key cannot be used") from exc
    return context
