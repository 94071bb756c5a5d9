#!/usr/bin/env bash
# All that a GPU has to show about speed, in at most 8 minutes and without a network.
#   bash benchmarks/gpu.sh pack [3.12 [SCENES]]    beforehand, with a network: what it needs, into .gpu (under 64 MB)
#   bash benchmarks/gpu.sh FOLDER                  on the GPU machine: figures.jsonl and log.txt in FOLDER
#   bash benchmarks/gpu.sh FOLDER --tiny           the same with tiny networks, on any machine
#   bash benchmarks/gpu.sh FOLDER --world MINUTES  instead: trains the demo model on SCENES that were encoded beforehand,
#                                                  at least 2048; 6000 fit
# The GPU machine needs a Python with torch and transformers, python3 or the one that PYTHON names. ComfyUI is taken from
# COMFYUI_PATH or from .gpu. What does not fit into the time is left out, the most important comes first.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
carried=${CARRIED:-$PWD/.gpu} python=${PYTHON:-python3} limit=480

if [ "$1" = pack ]; then
    rm -rf .gpu && mkdir .gpu
    comfyui=$(bash scripts/env.sh sh -c 'echo "$COMFYUI_PATH"')
    tar -C "$comfyui" -czf .gpu/comfyui.tgz --exclude='__pycache__' --exclude='./models' --exclude='./input' \
        --exclude='./output' --exclude='./temp' --exclude='./user' --exclude='./custom_nodes' --exclude='./blueprints' .
    version=${2:-3.12}
    platforms=()
    for glibc in 2_28 2_27 2_17; do platforms+=(--platform "manylinux_${glibc}_x86_64"); done
    bash scripts/env.sh python -m pip download -q --no-deps --only-binary=:all: --python-version "$version" \
        --implementation cp "${platforms[@]}" --platform manylinux2014_x86_64 -d .gpu/wheels \
        torchsde trampoline "$([ -n "${3:-}" ] && echo skia-python || echo av)" \
        "$(grep ^comfy-aimdo "$comfyui/requirements.txt")"
    [ -z "${3:-}" ] || bash scripts/env.sh python -m benchmarks.world.pool "$3" "$carried/world"
    du -sh .gpu
    exit
fi

mkdir -p "$1"
out=$(cd "$1" && pwd)
if [ -z "${COMFYUI_PATH:-}" ]; then
    export COMFYUI_PATH=${TMPDIR:-/tmp}/perfusion-gpu/ComfyUI
    mkdir -p "$COMFYUI_PATH"
    tar -C "$COMFYUI_PATH" -xzf "$carried/comfyui.tgz"
    "$python" -m pip install -q --no-index --no-deps --target "$COMFYUI_PATH/../site" "$carried"/wheels/*.whl
    export PYTHONPATH=$COMFYUI_PATH/../site
fi

if [ "${2:-}" = --world ]; then
    export PERFUSION_CACHE=$out OMP_NUM_THREADS=1
    [ -d "$out/world" ] || { cp -r "$carried/world" "$out" && "$python" -m benchmarks.world.export --restore; }
    "$python" -m benchmarks.world.train_diffusion --minutes "$3" --device "${DEVICE:-cuda}" 2>&1 | tee -a "$out/log.txt"
    "$python" -m benchmarks.world.export --file "$out/demo_model.safetensors"
    exit
fi

tiny=${2:-}
# run NEEDED ARGUMENTS...: one benchmark, when NEEDED seconds are left
run() {
    local needed=$1 left=$((limit - SECONDS))
    shift
    [ -n "$tiny" ] && needed=0
    if [ "$left" -lt "$needed" ]; then
        echo "left out, $left s left: $*" | tee -a "$out/log.txt"
        return
    fi
    echo "== $* (at $SECONDS s)" | tee -a "$out/log.txt"
    timeout "$left" "$python" benchmarks/cost.py "$@" $tiny --json "$out/figures.jsonl" >>"$out/log.txt" 2>&1 ||
        echo "failed, see log.txt: $*"
}

small=512 large=1024 rounds=5 steps=11
[ -z "$tiny" ] || { small=64 large=64 rounds=1 steps=2; }
common=(--rounds "$rounds" --steps "$steps")
run 30 forward --model sd1 --size $small --dtype float16 "${common[@]}"
run 30 training --size $small --dtype float16 --batch 4 --rounds "$rounds"
[ -n "$tiny" ] && exit
run 60 forward --model sdxl --size $large --dtype float16 "${common[@]}"
run 30 forward --model sd1 --size $small --dtype bfloat16 --batch 4 --ours "${common[@]}"
run 60 forward --model sdxl --size $large --dtype bfloat16 --batch 4 --ours --rounds 2 --steps 6
run 30 python "${common[@]}"
run 60 forward --model anima --size $large --dtype bfloat16 --ours --rounds 3 --steps 6
run 60 forward --model sdxl --size $large --dtype float16 --ours --streamed --concepts 1 --rounds 2 --steps 6
run 120 forward --model sd1 --size $small --dtype float16 --compile inductor --ours --concepts 1 4 "${common[@]}"
run 30 training --size $small --dtype bfloat16 --batch 4 --rounds "$rounds"
run 20 loading --model sdxl
echo "done after $SECONDS s"
