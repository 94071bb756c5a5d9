#!/usr/bin/env bash
# Runs a command with a ComfyUI and a frontend of your choice:  bash scripts/host.sh HOST [FRONTEND] [COMMAND...]
#   bash scripts/host.sh 0.30.0 newest                             the tests in the browser, with the newest frontend
#   bash scripts/host.sh 0.16.3 python -m pytest tests/web -k vue  another command, with the frontend of that ComfyUI
# HOST is a version of which there is a requirements-host-VERSION.txt, FRONTEND one that the package index has.
# Everything else is as in scripts/env.sh.
set -euo pipefail
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${PERFUSION_CACHE:-$HOME/.cache/comfyui-perfusion}
export PERFUSION_HOST=${1:-}
[ -e "$scripts/environment/requirements-host-$PERFUSION_HOST.txt" ] ||
    { echo "Name one of these versions: $(cd "$scripts/environment" && ls requirements-host-*.txt)" >&2; exit 1; }
shift
frontend=
if [[ ${1:-} =~ ^(newest|[0-9]+\.[0-9.]+)$ ]]; then
    frontend=$1
    shift
fi
[ $# -gt 0 ] || set -- python -m pytest tests/web

package=comfyui-frontend-package
if [ -z "$frontend" ]; then
    comfyui=$(bash "$scripts/env.sh" printenv COMFYUI_PATH)
    frontend=$(sed -n "s/^$package==//p" "$comfyui/requirements.txt")
elif [ "$frontend" = newest ]; then
    frontend=$(bash "$scripts/env.sh" pip install --quiet --dry-run --ignore-installed --no-deps --report - "$package" |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["install"][0]["metadata"]["version"])')
fi
folder=$cache/frontend-$frontend
if [ ! -d "$folder" ]; then
    work=$(mktemp -d "$cache/frontend.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    what=("$package==$frontend")
    if grep -F "$package==$frontend " "$scripts/environment/requirements-frontends.txt" >"$work/pin"; then
        what=(--require-hashes --requirement "$work/pin")
    fi
    bash "$scripts/env.sh" pip download --quiet --no-deps --dest "$work" "${what[@]}" >&2
    python3 -m zipfile -e "$work"/*.whl "$work"
    rm "$work"/*.whl
    [ -d "$folder" ] || mv "$work" "$folder" # another run may have been faster
fi
echo "ComfyUI $PERFUSION_HOST with frontend $frontend" >&2
exec bash "$scripts/env.sh" env COMFYUI_FRONTEND="$folder/comfyui_frontend_package/static" "$@"
