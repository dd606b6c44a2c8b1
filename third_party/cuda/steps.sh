# What verify.sh and train.sh share: where things lie, and steps that are each done once. Sourced with BUNDLE and OUT_DIR.
bundle=$(realpath "$1")
out=$2
work=$bundle/work results=$bundle/work/results
mkdir -p "$work/done" "$results" "$out"
log=$results/log.txt
base=${PYTHON:-python3}
python=$work/venv/bin/python
export TIEREXPORT_CACHE=$work/cache PYTHONPATH=$work/main/src HF_HUB_OFFLINE=1
export PIP_NO_INDEX=1 PIP_NO_DEPS=1 PIP_DISABLE_PIP_VERSION_CHECK=1
failed=()

step() {  # NAME COMMAND...: once, into the log; a failure is noted and the next call tries again
    local name=$1 status
    shift
    if [ ! -e "$work/done/$name" ]; then
        echo "$(date +%T) $name" | tee -a "$log"
        set +e  # errexit is off inside `if` and `||`, so the status is taken this way
        (set -e; "$@") >> "$log" 2>&1
        status=$?
        set -e
        if [ "$status" = 0 ]; then
            touch "$work/done/$name"
        else
            failed+=("$name")
            echo "$name failed:"; tail -n 15 "$log"
        fi
    fi
    cp "$results"/* "$out"
}

need() {  # a step without which the others make no sense
    step "$@"
    if [ ${#failed[@]} != 0 ]; then exit 1; fi
}

unpack() {
    (cd "$bundle" && sha256sum --check SHA256SUMS)
    cat "$bundle"/bundle.?? | tar -xz -C "$work"
}

environment() {
    local site pip
    "$base" -m venv --clear --without-pip "$work/venv"
    site=$(echo "$work"/venv/lib/python*/site-packages)
    # Not --system-site-packages: where python3 is itself a virtual environment's, that is not where torch lies.
    "$base" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])' > "$site/torch.pth"
    pip=$(echo "$work"/wheels/pip-*.whl)
    "$python" "$pip/pip" install "$pip"
    "$python" -m pip install "$work"/wheels/*.whl
}
