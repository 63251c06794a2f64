#!/bin/sh
# TaskProlog: the user runs it on the node of each rank, before the rank. Its lines "export NAME=VALUE" become
# the rank's environment.
#
# The rank's key is made here and stays on this node. Its thumbprint goes to the launcher (mint_ranks.py)
# through a folder that all nodes share; what comes back, a token for that key, is of no use without it.
set -eu
umask 077
name=$SLURM_STEP_ID.$SLURM_PROCID
own=${RANK_KEYS:-/run/broker-jobs}/$SLURM_JOB_ID/$name

# First of all: whatever fails below, the rank never falls back to its user's own profile.
echo "export BROKER_PROFILE_DIR=$own"
echo "export BROKER_TOKEN_FILE=$RANK_TOKENS/$name/token"

mkdir -p "$own"
broker token key --out "$own/key.jwk" > "$RANK_TOKENS/$name.new"
mv "$RANK_TOKENS/$name.new" "$RANK_TOKENS/$name.jkt"

tries=300
until [ -e "$RANK_TOKENS/$name/token" ]; do
    tries=$((tries - 1))
    if [ "$tries" -eq 0 ]; then
        echo "print no token for rank $SLURM_PROCID: see the launcher's messages in the job's output"
        exit 1
    fi
    sleep 0.2
done
cp "$RANK_TOKENS/$name/config.toml" "$own/config.toml"
