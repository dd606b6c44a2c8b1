#!/usr/bin/env bash
# Build llama-quantize, llama-embedding, llama-imatrix and llama-server from the pinned archive: build_tools.sh FOLDER
# The binaries land in FOLDER/bin; nothing is built again while they are there.
set -euo pipefail
out=$1
python=${PYTHON:-python3}
tools=(llama-quantize llama-embedding llama-imatrix llama-server)
stamp="$out/built-from"
source=$("$python" "$(dirname "$0")/fetch.py")
built="$(basename "$source"): ${tools[*]}"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$built" ]; then exit 0; fi
cmake -S "$source" -B "$out" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=ON -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_OPENSSL=OFF
cmake --build "$out" --parallel "$(nproc)" --target "${tools[@]}"
echo "$built" > "$stamp"
