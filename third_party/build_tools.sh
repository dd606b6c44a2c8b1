#!/usr/bin/env bash
# Build llama-quantize, llama-embedding and llama-imatrix from the pinned archive: build_tools.sh FOLDER
# The binaries land in FOLDER/bin; nothing is built again while they are there.
set -euo pipefail
out=$1
python=${PYTHON:-python3}
tools=(llama-quantize llama-embedding llama-imatrix)
stamp="$out/built-from"
source=$("$python" "$(dirname "$0")/fetch.py")
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(basename "$source")" ]; then exit 0; fi
cmake -S "$source" -B "$out" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_OPENSSL=OFF
cmake --build "$out" --parallel "$(nproc)" --target "${tools[@]}"
basename "$source" > "$stamp"
