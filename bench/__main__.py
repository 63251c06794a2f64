"""``python -m bench [--quick] [--only NAME]``: figures on stdout, JSON in ``bench/results/``."""

from __future__ import annotations

import argparse
import sys

from bench import agent, archive, fetch, grants, ledger, ledger_postgres, questions, start, verification

BENCHMARKS = {
    "fetch": fetch.run,
    "agent": agent.run,
    "ledger": ledger.run,
    "ledger-postgres": ledger_postgres.run,
    "grants": grants.run,
    "start": start.run,
    "archive": archive.run,
    "questions": questions.run,
    "verification": verification.run,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="256 MiB and 3 rounds instead of 1 GiB and 5")
    parser.add_argument("--only", choices=BENCHMARKS, help="one benchmark instead of all")
    parser.add_argument("--size-mib", type=int, help="size of the object")
    parser.add_argument("--rounds", type=int, help="rounds of each tool")
    given = parser.parse_args()
    size = given.size_mib or (256 if given.quick else 1024)
    rounds = given.rounds or (3 if given.quick else 5)
    chosen = [given.only] if given.only else list(BENCHMARKS)
    ended = 0
    for name in chosen:
        result = f"{name}-quick" if given.quick else name
        sys.stdout.write(f"\n== {name}\n")
        ended |= BENCHMARKS[name](size_mib=size, rounds=rounds, name=result)
    return ended


if __name__ == "__main__":
    sys.exit(main())
