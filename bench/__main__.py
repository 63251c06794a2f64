"""``python -m bench [--quick]``: every benchmark, figures on stdout, JSON in ``bench/results/``."""

from __future__ import annotations

import argparse
import sys

from bench import fetch


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="256 MiB and 3 rounds instead of 1 GiB and 5")
    parser.add_argument("--size-mib", type=int, help="size of the object")
    parser.add_argument("--rounds", type=int, help="rounds of each tool")
    given = parser.parse_args()
    size = given.size_mib or (256 if given.quick else 1024)
    rounds = given.rounds or (3 if given.quick else 5)
    return fetch.run(size_mib=size, rounds=rounds, name="fetch-quick" if given.quick else "fetch")


if __name__ == "__main__":
    sys.exit(main())
