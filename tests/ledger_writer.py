"""A process that appends to a ledger from several threads, for tests that need more than one.

``python -m tests.ledger_writer URL THREADS COUNT`` prints ``ready``, waits for a line on its input,
and prints ``INDEX REQUEST_ID`` for each append that was acknowledged, after it was.
"""

from __future__ import annotations

import os
import secrets
import sys
import threading

from broker.drafts import Charge
from tests.databases import draft, open_store, proof, request


def main(url: str, threads: int, count: int) -> None:
    store = open_store(url)
    store.initialize()
    print("ready", flush=True)
    sys.stdin.readline()
    failures: list[BaseException] = []

    def write() -> None:
        try:
            for _ in range(count):
                request_id = secrets.token_hex(8)
                charge = Charge(
                    holder="everybody", version_id=secrets.token_bytes(16), total_extents=1, extents=((0, 1),)
                )
                done = store.append(
                    draft(proof=proof(), request=request(request_id=request_id), charges=(charge,))
                )
                os.write(1, f"{done.index} {request_id}\n".encode())
        except BaseException as exc:
            failures.append(exc)
            raise

    running = [threading.Thread(target=write) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    store.close()
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
