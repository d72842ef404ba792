#!/usr/bin/env bash
# Everything that waits for a GPU, in one command: tests first, then figures, the most important first.
#
#     recipes/benchmark/gpu.sh                 # on a GPU, under nine minutes; results in gpu-results/
#     recipes/benchmark/gpu.sh FOLDER
#     TINY=1 DEVICE=cpu PATIENCE=5 recipes/benchmark/gpu.sh FOLDER    # that it runs, on any machine
#
# Needs torch, transformers and, for the tests, pytest; no network, no datasets. Each part has a time limit, writes what it
# found at once (FOLDER/PART.log, and the figures in FOLDER/PART/), and one that fails does not stop the
# rest: FOLDER/summary.txt has a line for each.
set -u
cd "$(dirname "$0")/../.."
results=$(realpath -m "${1:-gpu-results}")
device=${DEVICE:-cuda}
python=${PYTHON:-python}
patience=${PATIENCE:-1} # times as long for each part, on a slow machine
limit=${LIMIT:-$((530 * patience))} # seconds for all parts together
tiny=${TINY:+--tiny}
mkdir -p "$results"
: > "$results/summary.txt"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export HF_HOME="$results/hf-home" # its file of measured ways is a result, too
interpret=$([ "$device" = cpu ] && echo TRITON_INTERPRET=1)
begun=$SECONDS
failed=0
# A test file whose imports are not installed does not stop the others.
pytest=("$python" -m pytest -p no:cacheprovider -q -m gpu --continue-on-collection-errors)
arms="dense hf_nm interval frozen work copy"

# part NAME SECONDS COMMAND...: run it, for so long at most, and write how it ended
part() {
    local name=$1 most=$(($2 * patience)) left started=$SECONDS code=0
    shift 2
    left=$((limit - (SECONDS - begun)))
    if [ "$left" -lt 5 ]; then
        echo "$name: left out, no time" | tee -a "$results/summary.txt"
        return
    fi
    [ "$most" -gt "$left" ] && most=$left
    # INT first: a benchmark then prints what it has measured
    timeout --signal=INT --kill-after=$((10 * patience)) "$most" "$@" > "$results/$name.log" 2>&1 || code=$?
    case $code in
        0) echo "$name: done in $((SECONDS - started)) s" ;;
        124) echo "$name: stopped after $most s, what it measured so far is kept" ;;
        *) echo "$name: FAILED with exit code $code after $((SECONDS - started)) s, see $name.log" ;;
    esac | tee -a "$results/summary.txt"
    [ "$code" -eq 0 ] || [ "$code" -eq 124 ] || failed=1
}

# benchmark NAME SECONDS OPTIONS...: a script of recipes/benchmark, where it is there
benchmark() {
    local name=$1 most=$2 script=recipes/benchmark/$1.py
    shift 2
    if [ ! -f "$script" ]; then
        echo "$name: left out, there is no $script" | tee -a "$results/summary.txt"
        return
    fi
    mkdir -p "$results/$name"
    part "$name" "$most" "$python" "$script" "$@"
}

# options_of NAME: those of the options that its script has
has() { # SCRIPT OPTION, asked of its source: starting each of them takes seconds
    local script=recipes/benchmark/$1.py
    grep -qs -- "\"$2\"" "$script" && return
    grep -qs "common_options(" "$script" && grep -q -- "\"$2\"" recipes/benchmark/measured.py
}
options_of() {
    local name=$1 found=()
    has "$name" --device && found+=(--device "$device")
    if has "$name" --output; then
        found+=(--output "$results/$name")
    elif has "$name" --json; then
        found+=(--json "$results/$name/$name.json")
    fi
    [ -n "$tiny" ] && has "$name" --tiny && found+=(--tiny)
    echo "${found[@]}"
}

part environment 40 "$python" -c "import torch; from hf_nm.environment import environment; print(environment()); print(torch.__config__.show())"
# Without pytest; where there is no GPU, in Triton's interpreter.
part packed_kernels 60 env PYTHONPATH="$PYTHONPATH:$PWD/tests/support" ${interpret:-} "$python" tests/support/packed_kernels.py
if [ -n "$interpret" ]; then
    for check in gradients strays traffic; do
        part "step_kernels_$check" 60 env PYTHONPATH="$PYTHONPATH:$PWD/tests/support" "$interpret" "$python" tests/support/interpreted.py "$check"
    done
fi
# Kernels and whatever runs on a GPU only. Where there is none these tests are skipped.
part tests_kernels 100 "${pytest[@]}" tests/test_gpu.py tests/inference tests/sparsity
benchmark traffic 30 $(options_of traffic)
if [ -n "$tiny" ]; then
    benchmark training_step 60 $(options_of training_step) --rounds 2 --warmup 1 --tokens 32 --vocab_size 200 --arms $arms autograd
else
    benchmark training_step 80 $(options_of training_step) --bf16 --rounds 10 --tokens 8192 --arms $arms autograd
fi
benchmark infer 80 $(options_of infer) --rounds "${ROUNDS:-10}"
benchmark generate 70 $(options_of generate) --rounds 3 --compile
benchmark mask 50 $(options_of mask) --rounds "${ROUNDS:-10}"
benchmark memory 45 $(options_of memory) --patterns 2:4
benchmark many 30 $(options_of many) --size 256
if [ -z "$tiny" ]; then
    mkdir -p "$results/training_step_32k"
    part training_step_32k 50 "$python" recipes/benchmark/training_step.py --device "$device" --bf16 --rounds 7 --tokens 32768 --arms dense hf_nm --json "$results/training_step_32k/training_step.json"
fi
benchmark packed 60 $(options_of packed) --gib 0.5 --kinds model
part tests_rest 150 "${pytest[@]}" tests/optim tests/model tests/targets tests/checkpoint/test_packed_loading.py

echo "$((SECONDS - begun)) s in all; results in $results" | tee -a "$results/summary.txt"
exit $failed
