#!/bin/sh
# Epilog= of slurm.conf: root runs it on every node when the job has ended, however it ended.
set -eu
rm -rf -- "${RANK_KEYS:-/run/broker-jobs}/${SLURM_JOB_ID:?}"
