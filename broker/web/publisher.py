"""The thread of each server process that publishes the log as static files."""

from __future__ import annotations

from broker.services.archiving import LogArchiver
from broker.services.house import House
from broker.services.log_publishing import LogPublisher
from broker.web.looks import HouseLook


class PublisherThread(HouseLook):
    """Publishes what is new; nothing at all where no place is named."""

    def __init__(self, house: House) -> None:
        place = house.log_site
        every = 1.0 if place is None else place.every
        said = {"fails": "the log is not published", "works": "the log is published again"}
        super().__init__(house, "publisher", every, **said)
        self._publisher = None if place is None else LogPublisher(house, place.site, entries=place.entries)
        self._archiver = (
            None if place is None or place.archive is None else LogArchiver(house, place.site, place.archive)
        )

    def start(self) -> None:
        """Begin, where there is a place."""
        if self._publisher is not None:
            super().start()

    def act(self) -> None:
        """Publish what is new."""
        if self._publisher is not None:
            self._publisher.publish(until=self.is_stopped)
        if self._archiver is not None and not self.is_stopped():
            self._archiver.archive(until=self.is_stopped)
