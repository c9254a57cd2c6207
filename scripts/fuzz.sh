#!/bin/sh
# Fuzzes what reads hosts' bytes: each target of engine/fuzz for so many seconds, so many at once. What
# finds new ways is kept in engine/fuzz/corpus, made small; what fails is in engine/fuzz/work.
#   fuzz.sh SECONDS JOBS [TARGET...]
set -eu

seconds=$1 jobs=$2
shift 2
[ $# -gt 0 ] || set -- pdu login session cdb
cd "$(dirname "$0")/../engine/fuzz"
here=$(pwd)
host=$(rustc -vV | sed -n 's/^host: //p')
# Coverage by LLVM's own pass, which the stable compiler has; libFuzzer comes with its crate.
RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares" \
    cargo --config net.retry=5 build --release --locked --target "$host"
for name; do
    mkdir -p "work/$name/found"
done
# A target's log tells how many inputs it ran, and what it has found.
export here host seconds
# shellcheck disable=SC2016
printf '%s\n' "$@" | xargs -P "$jobs" -I@ sh -c '
    cd "$here/work/@"
    "$here/target/$host/release/@" -max_total_time="$seconds" -max_len=16384 -timeout=10 -rss_limit_mb=2048 \
        -dict="$here/keys.dict" -print_final_stats=1 found "$here/corpus/@" > log 2>&1 || {
        echo "@: it fails, see $here/work/@" >&2
        exit 255
    }
    grep -E "^stat::number_of_executed_units|^Done" log | sed "s/^/@: /"'
for name; do
    rm -rf "work/$name/kept"
    mkdir "work/$name/kept"
    "target/$host/release/$name" -merge=1 -max_len=2048 "work/$name/kept" "corpus/$name" "work/$name/found" \
        > "work/$name/merge" 2>&1
    rm -rf "corpus/$name"
    mv "work/$name/kept" "corpus/$name"
done
du -sh corpus
