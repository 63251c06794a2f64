"""The HTTP server: gunicorn with threads, told to trust nothing that it is not told to trust.

``python -m broker.web.server`` runs it with the settings of the environment, as ``broker serve`` does
and as the development stack does for its child. SIGTERM drains: requests under way are answered.

**Source**: RFC 9112 section 3 (limits of a request line), section 9.6 (closing).
"""

from __future__ import annotations

import itertools
import json
import logging
import shutil
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from flask import Flask

# gunicorn has no types of its own: what is taken from it, and made of it, is unchecked here.
# gunicorn has no types: hence the exceptions.
from gunicorn import util as gunicorn_util  # type: ignore[import-untyped]
from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]
from gunicorn.arbiter import Arbiter  # type: ignore[import-untyped]
from gunicorn.http import errors as http_errors  # type: ignore[import-untyped]
from gunicorn.workers.gthread import ThreadWorker  # type: ignore[import-untyped]

from broker import limits
from broker.config import Settings, load_settings
from broker.errors import (
    EXIT_CODE,
    BrokerError,
    ConfigurationError,
    InternalError,
    MalformedRequest,
    TooLarge,
)
from broker.web import balance, problems
from broker.web.balance import Balance
from broker.web.logs import configure_logging, describe_fault, get_logger

GRACEFUL_SECONDS: Final = 10
KEEPALIVE_SECONDS: Final = 15
HEARTBEAT_SECONDS: Final = 60
SWITCH_SECONDS: Final = 0.0005
_MULTIPROC: Final = "PROMETHEUS_MULTIPROC_DIR"
_FIELD_ROOM: Final = 256
"""Name and scheme beside the largest value of a header, an access token."""


_CONNECTIONS: Final = itertools.count()
"""Numbers what failed before it had an id; with the process id, one of a kind in a log."""


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """How the server listens.

    Attributes:
        host: Address to listen on.
        port: TCP port.
        workers: Processes.
        threads: Threads of each.
        io_timeout: Seconds that a connection may be silent in the middle of a request or answer.
    """

    host: str
    port: int
    workers: int = 1
    threads: int = 8
    io_timeout: int = limits.IO_TIMEOUT

    @property
    def bind(self) -> str:
        """Address and port as gunicorn writes them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class BrokerWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """A threaded worker whose own refusals look like the application's, and repeat nothing.

    It leaves a new connection to a worker that has fewer.
    """

    balance: Balance
    place: int
    _left = 0

    def accept(self, listener: Any) -> None:
        """Take a new connection, unless another worker should; it stays in the socket's queue then."""
        if self._left < balance.ATTEMPTS and self.balance.has_more(self.place, self.nr_conns):
            self._left += 1
            time.sleep(balance.PAUSE_SECONDS)
            return
        self._left = 0
        super().accept(listener)
        self.balance.set(self.place, self.nr_conns)

    def finish_request(self, conn: Any, fs: Any) -> None:
        """What a request leaves behind: its connection, open or closed."""
        super().finish_request(conn, fs)
        self.balance.set(self.place, self.nr_conns)

    def murder_keepalived(self, *args: Any, **kwargs: Any) -> None:
        """Close connections that were idle for too long."""
        super().murder_keepalived(*args, **kwargs)
        self.balance.set(self.place, self.nr_conns)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: Exception) -> None:
        """Answer what never became a request, or failed outside the application.

        gunicorn's own answer and log line quote the request: a header line may hold a token (I11).
        """
        del req, addr
        error = _error_of(exc)
        request_id = f"connection-{self.pid}-{next(_CONNECTIONS)}"
        if isinstance(error, InternalError):
            get_logger().error("a connection failed", request_id=request_id, fault=describe_fault(exc))
        else:
            get_logger().info("not a request", request_id=request_id, kind=type(exc).__name__)
        try:
            gunicorn_util.write_nonblock(client, _raw_answer(error, request_id))
        except OSError:
            get_logger().info("not a request, and gone", request_id=request_id)


def _error_of(exc: Exception) -> BrokerError:
    if isinstance(exc, http_errors.LimitRequestLine | http_errors.LimitRequestHeaders):
        return TooLarge("the request line or a header is too large")
    if isinstance(exc, http_errors.ParseException):
        return MalformedRequest("this is not an HTTP request that the server takes")
    return InternalError("an internal error")


def _raw_answer(error: BrokerError, request_id: str) -> bytes:
    refusal = problems.problem_of(error, request_id=request_id, metadata_url="")
    body = json.dumps(refusal.body).encode("ascii")
    head = (
        f"HTTP/1.1 {refusal.status} Refused\r\n"
        f"Content-Type: {refusal.media_type}\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Cache-Control: no-store\r\n"
        "X-Content-Type-Options: nosniff\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode("ascii") + body


class QuietLogger:
    """What gunicorn says of itself, as JSON lines; its arguments may quote a request and are left out.

    It has the methods that gunicorn calls, and is made by it.
    """

    def __init__(self, cfg: Any) -> None:
        self._log = get_logger()
        self.setup(cfg)

    def setup(self, cfg: Any) -> None:
        """Take over another configuration, as a reload does."""
        self.cfg = cfg

    def info(self, msg: object, *args: object, **kwargs: object) -> None:
        """A step of the server's life: addresses, process ids, signals; never a request."""
        del kwargs
        self._log.info("server", said=str(msg) % args if args else str(msg))

    def debug(self, msg: object, *args: object, **kwargs: object) -> None:
        """Nothing: gunicorn's details are about requests."""

    def warning(self, msg: object, *args: object, **kwargs: object) -> None:
        """Something went wrong with a connection or a worker."""
        del args, kwargs
        self._log.warning("server", said=str(msg))

    def error(self, msg: object, *args: object, **kwargs: object) -> None:
        """A worker failed."""
        del args, kwargs
        self._log.error("server", said=str(msg))

    critical = error

    def exception(self, msg: object, *args: object, **kwargs: object) -> None:
        """A failure with its traceback: types and places only."""
        del args, kwargs
        exc = sys.exception()
        if isinstance(exc, BlockingIOError):
            # The connection was silent for too long (ServerOptions.io_timeout): the peer's affair.
            self._log.info("a connection timed out")
            return
        self._log.error("server", said=str(msg), fault=describe_fault(exc) if exc else [])

    def log(self, level: int, msg: object, *args: object, **kwargs: object) -> None:
        """One of the above, by its number."""
        (self.error if level >= logging.ERROR else self.info)(msg, *args, **kwargs)

    def access(self, resp: Any, req: Any, environ: Any, request_time: Any) -> None:
        """Nothing: the application writes one line for each request, and knows what to leave out."""

    def reopen_files(self) -> None:
        """Nothing: everything goes to stderr."""

    def close_on_exec(self) -> None:
        """Nothing: there is no file of its own."""


class _Server(BaseApplication):  # type: ignore[misc]
    """gunicorn, configured by us alone: no command line, no configuration file."""

    def __init__(self, make_app: Callable[[], Flask], settings: dict[str, Any]) -> None:
        self._make_app = make_app
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        """Take our settings."""
        for name, value in self._settings.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        """The application, made in each worker after the fork: nothing open is shared.

        Raises:
            BrokerError: It does not start. gunicorn prints what it says, so only our own words get out.
        """
        try:
            return self._make_app()
        except BrokerError:
            raise
        except Exception as exc:
            raise InternalError("the application does not start") from exc


def _settings_of(options: ServerOptions, metrics_dir: str | None) -> dict[str, Any]:
    timeout = struct.pack("ll", options.io_timeout, 0)

    def limit_silence(server: Any) -> None:
        # Accepted sockets inherit it: a peer that stops in the middle frees its thread (I17).
        for listener in server.LISTENERS:
            listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
            listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)

    shares = Balance(options.workers)

    def give_place(server: Any, worker: Any) -> None:
        worker.balance = shares
        worker.place = shares.free_place([each.place for each in server.WORKERS.values()])
        shares.leave(worker.place)

    return {
        "bind": [options.bind],
        "workers": options.workers,
        "threads": options.threads,
        "worker_class": BrokerWorker,
        "logger_class": QuietLogger,
        "preload_app": False,
        "timeout": HEARTBEAT_SECONDS,
        "graceful_timeout": GRACEFUL_SECONDS,
        "keepalive": KEEPALIVE_SECONDS,
        "limit_request_line": limits.MAX_REQUEST_LINE,
        "limit_request_fields": limits.MAX_HEADER_FIELDS,
        "limit_request_field_size": limits.MAX_TOKEN + _FIELD_ROOM,
        # Nobody in front may say what the path, the scheme or the caller is: broker.web.requests does.
        "forwarded_allow_ips": "",
        "forwarder_headers": "",
        "secure_scheme_headers": {},
        "header_map": "drop",
        "control_socket_disable": True,
        "when_ready": limit_silence,
        "pre_fork": give_place,
        "post_worker_init": _start_worker,
        "worker_exit": _finish_worker,
        "raw_env": [f"{_MULTIPROC}={metrics_dir}"] if metrics_dir else [],
    }


def _upkeep_of(worker: Any) -> Any:
    return getattr(getattr(worker, "wsgi", None), "extensions", {}).get("broker_upkeep")


def _start_worker(worker: Any) -> None:
    # A request makes dozens of calls that let go of the interpreter for microseconds. With Python's own five
    # milliseconds each of them may cost as much, also while the ledger's lock is held.
    sys.setswitchinterval(SWITCH_SECONDS)
    worker.balance.set(worker.place, 0)
    upkeep = _upkeep_of(worker)
    if upkeep is not None:
        upkeep.start()


def _finish_worker(server: Any, worker: Any) -> None:
    del server
    worker.balance.leave(worker.place)
    upkeep = _upkeep_of(worker)
    if upkeep is not None:
        upkeep.finish()


def serve(make_app: Callable[[], Flask], options: ServerOptions) -> None:
    """Serve until SIGTERM or SIGINT, then end the process with status 0.

    Args:
        make_app: Called once in each worker process.
        options: How to listen.

    Raises:
        ConfigurationError: A worker could not make the application; stderr says why.
    """
    configure_logging()
    # Several workers count into files that any of them can add up; one needs none.
    metrics_dir = tempfile.mkdtemp(prefix="broker-metrics-") if options.workers > 1 else None
    try:
        _Server(make_app, _settings_of(options, metrics_dir)).run()
    except SystemExit as stop:
        if stop.code == Arbiter.WORKER_BOOT_ERROR:
            raise ConfigurationError("the server does not start", why="its log says what is wrong") from stop
        raise
    finally:
        if metrics_dir is not None:
            shutil.rmtree(metrics_dir, ignore_errors=True)


def run_server(settings: Settings) -> None:
    """Serve as the settings say, until SIGTERM or SIGINT; see :func:`serve`.

    Raises:
        ConfigurationError: A setting is wrong, or the application does not start.
        RollbackDetected: The log does not extend what was published.
    """
    from broker.wiring import check_start

    # Once, before any worker: what is wrong is said in full and with its own exit status.
    check_start(settings)

    def make_app() -> Flask:
        from broker.web.app import build_app

        return build_app(settings)

    serve(
        make_app,
        ServerOptions(
            host=settings.host, port=settings.port, workers=settings.workers, threads=settings.threads
        ),
    )


def main() -> int:
    """Serve as the environment says. Returns the exit status when the server does not start."""
    configure_logging()
    try:
        run_server(load_settings())
    except BrokerError as exc:
        get_logger().error("the server does not start", fault=describe_fault(exc)[:1])
        return EXIT_CODE[exc.code]
    return 0


if __name__ == "__main__":
    sys.exit(main())
