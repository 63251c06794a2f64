"""The thread of each server process that brings signed heads out of the house while nobody asks."""

from __future__ import annotations

from typing import Final

from broker.services.house import House
from broker.web.looks import HouseLook

INTERVAL_SECONDS: Final = 1.0
"""Between two looks; the head of an idle log is outside after that time."""


class KeeperThread(HouseLook):
    """Calls ``keep_head`` once a second, so that requests seldom wait for the outside store."""

    def __init__(self, house: House) -> None:
        said = {"fails": "tree heads are not kept", "works": "tree heads are kept again"}
        super().__init__(house, "head-keeper", INTERVAL_SECONDS, **said)

    def act(self) -> None:
        """Keep what is due."""
        self._house.keep_head()
