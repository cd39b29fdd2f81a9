#!/usr/bin/env bash
# Tests and measures the program on a machine with a GPU, from the folder that `cargo xtask gpu-bundle` makes.
#
#     run.sh PART...      conformance  every GPU kernel against the reference of the CPU
#                         golden       logits of every golden model on the GPU and on the processors
#                         bench        speed of the program
#                         peers        speed of PyTorch on the same work
#                         train        a short training run, and a text by its model
#
# Parts run in the order given, a failure ends none but itself, and each command says what it took. What a part prints lies in
# $OUT/PART.log too (without OUT, in results/). Exit 1 if anything failed. PYTHON is the Python that has PyTorch.
set -u -o pipefail
out=${OUT:-$(pwd)/results}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "$0")" || exit 1
export GALERNE_HOME=${GALERNE_HOME:-/tmp/galerne-gpu-home}
export PYTHONUNBUFFERED=1
python=${PYTHON:-python3}
gpu=(--device cuda)
n_failed=0

# timed SECONDS COMMAND...: the command, ended after so many seconds.
timed() {
    local limit=$1 start status
    shift
    echo "==> $*"
    start=$(date +%s%N)
    timeout --kill-after=5 "$limit" "$@" 2>&1
    status=$?
    awk -v ns=$(($(date +%s%N) - start)) -v status=$status 'BEGIN { printf "<== exit %d after %.1f s\n", status, ns / 1e9 }'
    return $status
}

conformance() {
    local failed=0
    timed 60 nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem --format=csv
    timed 240 ./galerne doctor --conformance || failed=1
    return $failed
}

golden() {
    timed 120 "$python" golden_logits.py ./galerne golden
}

bench() {
    local failed=0
    timed 60 ./galerne bench train "${gpu[@]}" --shape 124m --json || failed=1
    timed 60 ./galerne bench train "${gpu[@]}" --shape 1b --json || failed=1
    timed 60 ./galerne bench decode "${gpu[@]}" --shape 7b --json || failed=1
    timed 90 ./galerne bench batch "${gpu[@]}" --shape 7b --json || failed=1
    timed 60 ./galerne bench prefill "${gpu[@]}" --shape 7b --json || failed=1
    timed 90 ./galerne bench throughput "${gpu[@]}" --shape 7b --json || failed=1
    return $failed
}

peers() {
    local failed=0
    timed 60 "$python" peers/gpu_products.py || failed=1
    timed 100 "$python" peers/gpu_train.py --shape 124m || failed=1
    timed 100 "$python" peers/gpu_train.py --shape 1b || failed=1
    timed 120 "$python" peers/gpu_decode.py || failed=1
    return $failed
}

train() {
    local failed=0 run
    run=gpu-$(date +%s)
    timed 120 ./galerne pretrain "${gpu[@]}" --recipe train.toml --run "$run" --json || failed=1
    timed 60 ./galerne generate "${gpu[@]}" --model "$run" --prompt "Il était une fois" --max-tokens 64 --temperature 0 || failed=1
    return $failed
}

if [ $# -eq 0 ]; then
    echo "usage: run.sh PART... (conformance, golden, bench, peers, train)" >&2
    exit 2
fi
for part in "$@"; do
    case $part in
    conformance | golden | bench | peers | train) ;;
    *)
        echo "run.sh has no part $part: there are conformance, golden, bench, peers, train" >&2
        exit 2
        ;;
    esac
done
for part in "$@"; do
    start=$(date +%s)
    # With pipefail, the part's failure is that of the pipe.
    if "$part" | tee "$out/$part.log"; then
        state=ok
    else
        state=FAILED
        n_failed=$((n_failed + 1))
    fi
    echo "==== $part $state, $(($(date +%s) - start)) s" | tee -a "$out/$part.log"
done
[ $n_failed -eq 0 ]
