"""``witness``: run a witness for somebody else's log."""

from __future__ import annotations

import os
from pathlib import Path

import click

from broker.cli.command import BrokerCommand, BrokerGroup, Invocation
from broker.cli.output import safe


@click.group(
    cls=BrokerGroup,
    examples=(
        "broker witness key --name witness.example/w1 --out witness.key",
        "broker witness serve --key witness.key --state ./witness --log VKEY",
    ),
)
def witness() -> None:
    """Be a witness: cosign a log's tree heads once they are seen only to grow.

    For a second organisation. It needs no broker, no database and no profile.
    """


@witness.command(
    cls=BrokerCommand, examples=("broker witness key --name witness.example/w1 --out witness.key",)
)
@click.option("--name", metavar="NAME", required=True, help="The witness's name, such as witness.example/w1.")
@click.option(
    "--out",
    metavar="FILE",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where the key goes; never replaced.",
)
@click.pass_obj
def key(call: Invocation, *, name: str, out: Path) -> None:
    """Make a witness's key.

    Its verifier key goes to whoever demands this witness, in the line "witness NAME VKEY URL" of their
    policy.
    """
    from broker.runtime import SystemEntropy
    from broker.witness.keys import create_key

    made = create_key(out, name=name, entropy=SystemEntropy())
    found = {"name": name, "vkey": made.public.vkey, "key": str(out)}
    call.out.record(found, [safe(f"{member:<5} {value}") for member, value in found.items()])


@witness.command(
    cls=BrokerCommand,
    examples=(
        "broker witness serve --key witness.key --state ./witness --log VKEY",
        "broker witness serve --key witness.key --state ./witness --log VKEY --port 7380 -o json",
    ),
)
@click.option(
    "--key",
    "key_file",
    metavar="FILE",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="From broker witness key.",
)
@click.option(
    "--state",
    metavar="DIR",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the newest cosigned head of each log is kept.",
)
@click.option("--log", "logs", metavar="VKEY", required=True, multiple=True, help="Verifier key of a log.")
@click.option("--host", metavar="ADDR", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", metavar="N", type=click.IntRange(0, 65535), default=0, help="Else a free one.")
@click.pass_obj
def serve(
    call: Invocation, *, key_file: Path, state: Path, logs: tuple[str, ...], host: str, port: int
) -> None:
    """Cosign heads of these logs, until SIGTERM or Ctrl-C.

    A head is cosigned only with a proof that the log grew from the one that was cosigned last, and that is
    on the disk before the signature leaves. DIR must never be restored from an older copy. It speaks
    plain HTTP: put a TLS proxy before it where others reach it.
    """
    from broker.client.agent import lifecycle
    from broker.errors import InternalError
    from broker.ledger.note import parse_vkey
    from broker.runtime import SystemClock
    from broker.witness.keys import read_key
    from broker.witness.server import WitnessServer
    from broker.witness.service import WitnessService
    from broker.witness.state import WitnessState

    lifecycle.forbid_core_dumps()
    own = read_key(key_file)
    service = WitnessService(
        key=own, logs=map(parse_vkey, logs), state=WitnessState(state), clock=SystemClock()
    )
    server = WitnessServer(service, host=host, port=port)
    address = f"[{host}]" if ":" in host else host
    with lifecycle.held_signals():
        server.start()
        url = f"http://{address}:{server.port}"
        found = {"url": url, "pid": os.getpid(), "vkey": own.public.vkey}
        call.out.record(found, [safe(f"{url}  {own.public.vkey}")])
        call.out.say("cosigning; Ctrl-C stops it")
        well = lifecycle.await_end(lambda: server.is_running)
        server.close()
    if not well:
        raise InternalError("the witness failed")
