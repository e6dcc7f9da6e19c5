#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs every fuzzer, of C and of Python, for SECONDS each; 0: round after round until interrupted.
#
#   run.sh SECONDS
set -eu

seconds=${1:?usage: run.sh SECONDS}
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python3}
cd "$root"

round() { # seconds
	printf '%s\n' model regex record |
		PYTHONPATH="$root" IDMESH_FUZZ_SECONDS="$1" xargs -P2 -I NAME "$python" tests/fuzz/NAME_fuzz.py
	"$root/tests/native/run.sh" fuzz "$1"
}

if [ "$seconds" = 0 ]; then
	while :; do round 600; done
fi
round "$seconds"
