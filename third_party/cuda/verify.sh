#!/usr/bin/env bash
# Verify tierexport on this machine's GPU without a network: verify.sh BUNDLE OUT_DIR [--device cpu]
#
# BUNDLE is what pack.py made, on a disk that outlives this call: a call that is cut short is made
# again and goes on after the last step that was finished. OUT_DIR gets summary.md, a verify.json for
# each recipe, doctor.json, device.txt and log.txt. PYTHON names the interpreter that has torch.
set -euo pipefail
devices=cpu,cuda
if [ "${3:-}" = --device ]; then devices=$4; fi
case $devices in *cuda*) cuda=true ;; *) cuda=false ;; esac
# shellcheck source=steps.sh
. "$(dirname "$0")/steps.sh"

find_cuda() {
    # Sets toolkit, and cublas: the same, or where it has none the folder that torch's came in.
    export PATH=$PATH:/usr/local/cuda/bin
    toolkit=$(nvcc --dryrun -x cu -c /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p')  # the command may be a wrapper
    cublas=$toolkit
    if [ ! -e "$toolkit/include/cublas_v2.h" ]; then
        cublas=$(find "$(cat "$work"/venv/lib/python*/site-packages/torch.pth)/nvidia" -name cublas_v2.h -print -quit)
        cublas=$(realpath "$(dirname "$cublas")/..")
    fi
    export LD_LIBRARY_PATH=$cublas/lib:$toolkit/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
}

llama_cpp() {
    local options=(-DLLAVA_BUILD=OFF -DLLAMA_OPENSSL=OFF) chip
    if $cuda; then
        # One architecture: this GPU's. NO_VMM, because linking the driver takes a stub that not every toolkit has.
        chip=$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')
        options+=(-DGGML_CUDA=ON -DGGML_CUDA_NO_VMM=ON -DGGML_CUDA_NCCL=OFF "-DCMAKE_CUDA_ARCHITECTURES=$chip-real")
        if [ "$cublas" != "$toolkit" ]; then
            # Only its headers: torch's packages have others that may not be this compiler's.
            mkdir -p "$work/cublas"
            ln -sf "$cublas"/include/cublas*.h "$work/cublas"
            options+=("-DCMAKE_CUDA_COMPILER=$toolkit/bin/nvcc" "-DCMAKE_CUDA_FLAGS=-I$work/cublas")
            options+=("-DCUDA_cublas_LIBRARY=$(find "$cublas/lib" -name "libcublas.so*" -print -quit)")
        fi
    fi
    # llama.cpp's AMX kernels, as GCC compiles them, end in an illegal instruction (ggml-org/llama.cpp pull request 26954).
    no_amx=
    if "${CC:-cc}" -mno-amx-int8 -E -x c /dev/null > /dev/null 2>&1; then no_amx=-mno-amx-int8; fi
    # The build folder stays, so a build that is cut short goes on.
    CFLAGS="${CFLAGS:-} $no_amx" CXXFLAGS="${CXXFLAGS:-} $no_amx" CMAKE_ARGS="${options[*]}" CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)} \
        "$python" -m pip install --no-build-isolation --verbose -C "build-dir=$work/build" "$work/llama_cpp_python"
}

describe() {
    {
        if $cuda; then nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader; fi
        echo "$(nproc) cores,$(sed -n 's/^model name.*://p' /proc/cpuinfo | head -n 1)"
        "$python" -c 'import platform, torch; print("Python", platform.python_version(), "torch", torch.__version__)'
        if $cuda; then nvcc --version | grep release; fi
    } > "$results/device.txt"
}

examine() {  # what it finds wrong is for the reader; the steps after it fail by themselves
    "$python" -m tierexport doctor --json > "$results/doctor.json" || [ -s "$results/doctor.json" ]
}

int4_kernel() {  # mslk stays out of the environment: torchao imports it with everything, working or not
    local group said
    rm -f "$work/int4_group"
    if ! compgen -G "$work/mslk/*.whl"; then
        echo "int4 kernel: not run: the bundle has no mslk for this torch" >> "$results/device.txt"
        return
    fi
    "$python" -m pip install --target "$work/mslk/site" --upgrade "$work"/mslk/*.whl
    for group in 32 64 128; do
        said=$(PYTHONPATH=$PYTHONPATH:$work/mslk/site "$python" "$work/main/third_party/cuda/int4_probe.py" "$group" 2>> "$log") &&
            echo "$group" > "$work/int4_group"
        echo "int4 kernel, group $group: ${said:-crashed, see log.txt}" >> "$results/device.txt"
        if [ -e "$work/int4_group" ]; then return; fi
    done
}

judge() {  # NAME RECIPE OPTION...: exit status 1 is a verdict, and no mistake of ours
    local name=$1 recipe=$work/main/recipes/$2.toml data=() each
    shift 2
    for each in "$work"/data/*/; do if [ -d "$each" ]; then data+=(--data "$each"); fi; done
    "$python" -m tierexport build "$recipe" --out "$work/$name" "$@" || [ $? = 1 ]
    "$python" -m tierexport verify "$work/$name" --device "$devices" "${data[@]}" || [ $? = 1 ]
    cp "$work/$name/verify.json" "$results/$name.json"
    summarize
}

judge_packed() {  # with mslk where its kernel works, at the smallest group that it takes; else dequantized
    local group=32
    if [ -e "$work/int4_group" ]; then
        group=$(cat "$work/int4_group")
        export PYTHONPATH=$PYTHONPATH:$work/mslk/site
    fi
    judge four_bit_packed four_bit --set 'torchao.layout="packed"' --set "torchao.group_size=$group"
}

summarize() {
    "$python" "$work/main/third_party/cuda/summary.py" "$results" three_tier int8 four_bit four_bit_packed
}

need unpack unpack
need environment environment
if $cuda; then find_cuda; fi
need llama_cpp llama_cpp
need device describe
step doctor examine
if $cuda; then step int4_kernel int4_kernel; fi
for recipe in three_tier int8 four_bit; do step "$recipe" judge "$recipe" "$recipe"; done
step four_bit_packed judge_packed
summarize
cp "$results/summary.md" "$out"
cat "$out/summary.md"
if [ ${#failed[@]} != 0 ]; then echo "failed: ${failed[*]}"; exit 1; fi
