#!/usr/bin/env bash
# Train MiniLM's adapter for quantized vectors on this machine's GPU, all nine conditions of the published table, without a
# network: train.sh BUNDLE OUT_DIR [MINUTES [STEPS]]
#
# BUNDLE is what pack.py made with --pairs and two retrieval sets. A call trains for MINUTES, 10 where nothing is said, and ends
# with status 3 where there is more to do: the next call goes on from the last checkpoint, of which there is one every 500
# of the recipe's 10,000 steps. OUT_DIR gets training.json, the table, and log.txt. Without a GPU it trains on the CPU.
set -euo pipefail
# shellcheck source=steps.sh
. "$(dirname "$0")/steps.sh"
minutes=${3:-10} steps=${4:-10000} started=$SECONDS

llama_cpp_alone() {  # its version is part of what training's vectors are cached under; nothing runs it, so nothing is compiled
    "$python" -m pip install --no-build-isolation -C cmake.define.LLAMA_BUILD=OFF "$work/llama_cpp_python"
}

train() {
    local left=$((60 * minutes - SECONDS + started)) data=() every=500 each
    if [ "$left" -lt 1 ]; then left=1; fi
    for each in "$work"/data/*/; do data+=(--data "$each"); done
    if [ "$steps" -lt "$every" ]; then every=$steps; fi
    timeout --signal=INT "$left" "$python" -m tierexport vectors eval all-MiniLM-L6-v2 --pairs "$work/pairs.jsonl" \
        "${data[@]}" --what lora --contrast 0.5 --steps "$steps" --every "$every" --json > "$work/training.json" ||
        { if [ $? = 124 ]; then touch "$work/cut_short"; fi; return 1; }
    cp "$work/training.json" "$results"
}

need unpack unpack
need environment environment
if [ ! -e "$work/done/llama_cpp" ]; then need llama_cpp_alone llama_cpp_alone; fi
rm -f "$work/cut_short"
step "train_$steps" train
if [ -e "$work/cut_short" ]; then echo "not done after $minutes minutes: the next call goes on"; exit 3; fi
if [ ${#failed[@]} != 0 ]; then exit 1; fi
cat "$out/training.json"
