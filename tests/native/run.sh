#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds the engine with sanitizers and runs its C tests.
#
#   run.sh asan [SECONDS]       unit tests and fuzzers (a few seconds of each) under address and undefined behaviour
#   run.sh tsan [SECONDS]       readers under reload and the flow ring's two ends, under the thread sanitizer
#   run.sh fuzz SECONDS         every fuzzer for SECONDS; 0: until interrupted. New finds go to build/fuzz.
set -eu

mode=${1:?usage: run.sh asan|tsan|fuzz [SECONDS]}
root=$(cd "$(dirname "$0")/../.." && pwd)
out=$root/build/native
seeds=$root/tests/fuzz/corpus
cc=${CC:-clang}
flags="-std=gnu11 -g -O1 -fno-omit-frame-pointer -Wall -Wextra -Werror"
flags="$flags -I$root/native/include -I$root/native/engine -I$root/native/automata -I$root/native/ffi -I$root/tests/fuzz"
engine="$root/native/engine/*.c $root/native/automata/*.c $root/native/flow/*.c $root/native/service/*.c"
fuzzers="snapshot engine matcher automata authz process ring peer"
for name in $fuzzers; do mkdir -p "$root/build/fuzz/$name"; done
mkdir -p "$out"
export IDMESH_SEEDS="$seeds/snapshot"
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1

command -v "$cc" >/dev/null || { echo "run.sh: $cc is missing (apt.txt names it)" >&2; exit 2; }

# Compile the engine once for all programs of one set of sanitizers, two files at a time.
engine() { # sanitizers
	objects=$out/$(echo "$1" | tr , -)
	rm -rf "$objects"
	mkdir -p "$objects"
	# shellcheck disable=SC2086
	(cd "$objects" && printf '%s\n' $engine | xargs -P2 -n1 "$cc" $flags -fsanitize="$1" \
		-fno-sanitize-recover=undefined -c)
}

build() { # target source sanitizers
	# shellcheck disable=SC2086
	"$cc" $flags -fsanitize="$3" -fno-sanitize-recover=undefined -o "$out/$1" "$2" "$objects"/*.o -lpthread
}

fuzz() { # name seconds
	build "fuzz_$1" "$root/tests/fuzz/fuzz_$1.c" fuzzer,address,undefined
	time=
	[ "$2" = 0 ] || time="-max_total_time=$2"
	ended=0
	# shellcheck disable=SC2086
	(cd "$out" && "./fuzz_$1" $time -max_len=65536 -timeout=30 -rss_limit_mb=2048 -print_final_stats=1 \
		"$root/build/fuzz/$1" "$seeds/$1" >"fuzz_$1.log" 2>&1) || ended=$?
	tail -n 6 "$out/fuzz_$1.log"
	[ "$ended" = 0 ] || echo "run.sh: fuzz_$1 ended with $ended: see $out/fuzz_$1.log" >&2
	return "$ended"
}

case $mode in
asan)
	engine fuzzer-no-link,address,undefined
	build units "$root/tests/native/units.c" address,undefined
	"$out/units"
	for name in ring ring_hostile; do
		build "$name" "$root/tests/native/$name.c" address,undefined
		(cd "$out" && "./$name")
	done
	for name in $fuzzers; do fuzz "$name" "${2:-5}"; done
	;;
tsan)
	engine thread
	build stress "$root/tests/native/stress.c" thread
	"$out/stress" "${2:-10}" "$seeds"/snapshot/*.snapshot
	build ring_stress "$root/tests/native/ring_stress.c" thread
	"$out/ring_stress" 2
	;;
fuzz)
	engine fuzzer-no-link,address,undefined
	# Two side by side: that is how many cores CI has.
	printf '%s\n' $fuzzers | xargs -P2 -I NAME "$0" one NAME "${2:?SECONDS}"
	;;
one) # of the fuzzers, with the engine built before
	objects=$out/fuzzer-no-link-address-undefined
	fuzz "$2" "${3:?SECONDS}"
	;;
*)
	echo "run.sh: unknown mode $mode" >&2
	exit 2
	;;
esac
