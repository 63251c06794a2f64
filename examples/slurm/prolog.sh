#!/bin/sh
# Prolog= of slurm.conf: root runs it on every node of a job, before anything else of the job does.
# The keys of the job's ranks go into memory, into a folder that its user alone can open.
set -eu
jobs=${RANK_KEYS:-/run/broker-jobs}
install -d -m 0755 "$jobs"
install -d -m 0700 -o "$SLURM_JOB_UID" "$jobs/$SLURM_JOB_ID"
