"""The thread that brings entries to one destination, and waits longer while that does not take them."""

from __future__ import annotations

import threading
from typing import Final

from broker import limits
from broker.errors import (
    BrokerError,
    ConfigurationError,
    IntegrityFailure,
    RateLimited,
    Unavailable,
)
from broker.ports import Entropy
from broker.services.forwarding import Forwarder
from broker.web.logs import describe_fault, get_logger

POLL_SECONDS: Final = 0.5
"""Between two looks at a log that did not grow, and at a destination that another forwarder has."""
FIRST_PAUSE: Final = 0.5
GRACE_SECONDS: Final = 30.0
_DOUBLINGS: Final = 16
_BYTES: Final = 6


def pause_after(failures: int, entropy: Entropy) -> float:
    """Seconds to wait after so many failures in a row: full jitter, so that senders do not fall in step.

    Evenly drawn from nothing up to ``FIRST_PAUSE``, doubled with each failure up to
    ``limits.MAX_FORWARD_PAUSE``.
    """
    most: float = min(limits.MAX_FORWARD_PAUSE, FIRST_PAUSE * 2 ** min(failures, _DOUBLINGS))
    return most * int.from_bytes(entropy.random_bytes(_BYTES)) / 256**_BYTES


class Courier:
    """One destination, until it is stopped or cannot go on.

    Attributes:
        name: The destination's.
        ended: Why it cannot go on, None while it can: the log does not hold, or somebody has to change
            something first.
    """

    def __init__(self, forwarder: Forwarder, entropy: Entropy) -> None:
        self._forwarder: Final = forwarder
        self._entropy: Final = entropy
        self.name: Final = forwarder.destination.name
        self._stop: Final = threading.Event()
        self._thread: Final = threading.Thread(target=self._run, name=f"forward-{self.name}", daemon=True)
        self._failures = 0
        self.ended: BrokerError | None = None

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Ask it to end after the delivery that is under way."""
        self._stop.set()

    def join(self) -> None:
        """Wait for its end, for as long as a delivery and a database may take.

        A receiver that answers byte by byte is not waited for: the process ends, as if it were killed.
        """
        self._thread.join(self._forwarder.destination.timeout + GRACE_SECONDS)

    @property
    def is_running(self) -> bool:
        """Whether it goes on."""
        return self._thread.is_alive() and self.ended is None

    def _run(self) -> None:
        while self.ended is None and not self._stop.wait(self._turn()):
            pass
        try:
            self._forwarder.close()
        except Exception as exc:
            get_logger().error("a destination is not released", name=self.name, fault=describe_fault(exc))

    def _turn(self) -> float:
        """One step; seconds until the next."""
        try:
            step = self._forwarder.step()
        except (ConfigurationError, IntegrityFailure) as exc:
            # Trying again would change nothing.
            self._failed(exc)
            self.ended = exc
            return 0
        except Exception as exc:
            self._failed(exc)
            asked = exc.retry_after if isinstance(exc, RateLimited) else 0
            return max(asked, pause_after(self._failures, self._entropy))
        if self._failures:
            get_logger().info("forwarding works again", name=self.name)
        self._failures = 0
        return 0 if step.left else POLL_SECONDS

    def _failed(self, exc: Exception) -> None:
        if self._failures == 0:
            get_logger().error("forwarding fails", name=self.name, fault=describe_fault(exc))
        self._failures += 1
        note_failure(self._forwarder, exc)


def note_failure(forwarder: Forwarder, exc: Exception) -> None:
    """Tell everybody who asks how a destination is; a database that does not answer is told of elsewhere."""
    try:
        forwarder.failed(describe_failure(exc))
    except BrokerError:
        get_logger().error("a failure is not noted", name=forwarder.destination.name)


def describe_failure(exc: Exception) -> str:
    """A failure in our own words."""
    if not isinstance(exc, BrokerError):
        return f"a bug: {type(exc).__name__}"
    return f"{exc.what} ({exc.why})" if exc.why else exc.what


def forward_once(forwarder: Forwarder) -> int:
    """Deliver everything that there is, and part with the destination; how many entries that was.

    Raises:
        Unavailable: Another forwarder sends to it.
        As :meth:`~broker.services.forwarding.Forwarder.step`: what was delivered until then stays so.
    """
    moved = 0
    try:
        while True:
            step = forwarder.step()
            if not step.held:
                raise Unavailable(f"another forwarder sends to {forwarder.destination.name}")
            moved += step.moved
            if not step.left:
                return moved
    except Exception as exc:
        note_failure(forwarder, exc)
        raise
    finally:
        forwarder.close()
