"""The destinations that the settings name, joined to the log that they are told of."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from broker import __version__
from broker.canonical import Json
from broker.config import Settings
from broker.config.forward import ForwardSettings
from broker.db.cursors import CursorStore
from broker.db.engine import open_engine
from broker.errors import ConfigurationError
from broker.forwarding.jsonl import LineFile
from broker.forwarding.syslog import SyslogReceiver, syslog_hostname
from broker.forwarding.tls import open_context
from broker.forwarding.webhook import WebhookReceiver, check_webhook_url, parse_secrets
from broker.keys.private import read_private
from broker.ledger.entry import TYPES
from broker.outbox import Receiver
from broker.services.forwarding import Destination, Forwarder, describe, render_as
from broker.services.house import House
from broker.wiring import Wired, open_house


@dataclass(frozen=True, kw_only=True)
class Forwarding:
    """A log, how far everybody is, and who is told."""

    house: House
    cursors: CursorStore
    destinations: tuple[Destination, ...]
    wired: Wired

    def forwarder(self, destination: Destination) -> Forwarder:
        """Who sends to it; for one thread."""
        return Forwarder(self.house, self.cursors, destination)

    def status(self, destination: Destination) -> Json:
        """How far it is: see :func:`broker.services.forwarding.describe`."""
        return describe(self.house, self.cursors, destination)

    def close(self) -> None:
        """Close the database; receivers are their forwarders' to close."""
        self.cursors.close()
        self.wired.close()


def open_forwarding(settings: Settings) -> Forwarding:
    """Join everything that forwarding needs. Nothing is sent or connected to yet.

    Raises:
        ConfigurationError: No destination is named, or one cannot be used.
        As :func:`~broker.wiring.build_house`.
    """
    if not settings.forward:
        raise ConfigurationError(
            "the settings name nobody to forward to",
            next="add a table [[forward]]; see docs/operations/siem.md",
        )
    wired = open_house(settings)
    house = wired.house
    try:
        destinations = tuple(_destination(each, house) for each in settings.forward)
        engine = open_engine(settings.database_url.get_secret_value(), pool_size=2)
        cursors = CursorStore(engine, integrity_key=wired.keys.row_mac, clock=house.clock)
    except BaseException:
        wired.close()
        raise
    return Forwarding(house=house, cursors=cursors, destinations=destinations, wired=wired)


def _destination(place: ForwardSettings, house: House) -> Destination:
    unknown = sorted(set(place.types) - set(TYPES))
    if unknown:
        raise ConfigurationError(
            f"forwarding to {place.name}: no entry has the type {unknown[0]}",
            next=f"one of {', '.join(sorted(TYPES))}",
        )
    return Destination(
        name=place.name,
        kind=place.kind,
        receiver=_receiver(place, house),
        render=render_as(place.format, origin=house.log.origin, version=__version__),
        types=frozenset(place.types),
        from_now=place.start == "now",
        batch=place.batch,
        timeout=place.timeout,
    )


def _receiver(place: ForwardSettings, house: House) -> Receiver:
    if place.path is not None:
        return LineFile(place.path)
    context = None
    if place.encrypted or place.kind == "webhook":
        if place.key_file is not None:
            read_private(place.key_file, "key file")
        context = open_context(ca_file=place.ca_file, cert_file=place.cert_file, key_file=place.key_file)
    if place.kind == "syslog":
        host, port = place.address
        return SyslogReceiver(
            host,
            port,
            context=context,
            hostname=syslog_hostname(urlsplit(house.public_urls[0]).hostname),
            version=__version__,
            timeout=place.timeout,
        )
    if place.url is None or place.secret_file is None or context is None:
        raise ConfigurationError(f"forwarding to {place.name}: a webhook has a url and a secret_file")
    secrets = read_private(place.secret_file, "webhook secret")
    return WebhookReceiver(
        check_webhook_url(place.url),
        secrets=parse_secrets(secrets.decode("utf-8", "replace")),
        origin=house.log.origin,
        format=place.format,
        context=context,
        clock=house.clock,
        timeout=place.timeout,
    )
