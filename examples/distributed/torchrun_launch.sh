#!/bin/bash
# torchrun, with a token of its own for each rank:
#
#   torchrun_launch.sh acme/llama-7b@step-1000 8 train.py broker://acme/llama-7b@step-1000
#
# On several nodes run it on each, with NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT set: each node mints for
# its own ranks, with its own identity, so no key or token leaves it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
ref=$1 ranks_here=$2
shift 2
nodes=${NNODES:-1} node=${NODE_RANK:-0}
meeting=(--standalone)
if ((nodes > 1)); then
    # Not a dynamic rendezvous: which ranks are here has to be known before they start.
    meeting=(--node-rank="$node" --master-addr="$MASTER_ADDR" --master-port="$MASTER_PORT")
fi

# The profiles of this node's ranks: in memory, for this user alone, gone with this script.
umask 077
RANKS=$(mktemp -d /dev/shm/ranks.XXXXXX)
export RANKS
children=()
finish() {
    kill "${children[@]}" 2>/dev/null || true
    wait || true
    rm -rf "$RANKS"
}
trap finish EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

for ((local = 0; local < ranks_here; local++)); do
    rank=$((node * ranks_here + local))
    broker token mint --quiet --scope "$ref" \
        --paths 'weights/.metadata' \
        --paths "weights/__${rank}_*.distcp" \
        --paths "$(printf 'data/shard-%05d.*' "$rank")" \
        --ttl 10m --out "$RANKS/$local" --renew > /dev/null &
    children+=($!)
done
for ((local = 0; local < ranks_here; local++)); do
    until [[ -e $RANKS/$local/token ]]; do
        kill -0 "${children[local]}" || exit 1
        sleep 0.1
    done
done

# --max-restarts=0: a rank that comes back may be another one, and would hold the wrong profile.
torchrun "${meeting[@]}" --nnodes="$nodes" --nproc-per-node="$ranks_here" --max-restarts=0 --no-python \
    "$here/as_rank.sh" python "$@" &
children+=($!)
wait "${children[-1]}"
