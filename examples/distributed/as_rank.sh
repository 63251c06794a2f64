#!/bin/sh
# What torchrun starts for each rank: the command, with the profile that was minted for this rank.
set -eu
unset BROKER_TOKEN_FILE
export BROKER_PROFILE_DIR="$RANKS/$LOCAL_RANK"
exec "$@"
