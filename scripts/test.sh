#!/usr/bin/env bash
# Lint, types and tests:  bash scripts/test.sh [pytest arguments]    (without arguments: everything in tests/)
# When paths are given and none is in tests/web, nothing of web/ is checked, and nothing is installed for it.
# Without arguments the tests in the browser run once more, with the newest frontend, unless COMFYUI_PATH names a ComfyUI.
# All parts run even when an earlier one fails; the exit status is 0 only when all passed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
unset PYTHONDONTWRITEBYTECODE  # or every process that a test starts compiles the whole of ComfyUI

web=true
for argument in "$@"; do
    case $argument in
        tests | tests/ | tests/web*) web=true; break ;;
        tests/*) web=false ;;
    esac
done

missing=()
ldconfig -p | grep -q libEGL.so.1 || missing+=(libegl1 libgl1)  # skia draws the demo model's world
if $web; then
    command -v chromium >/dev/null || missing+=(chromium)
    command -v npm >/dev/null || missing+=(nodejs npm)
fi
if [ ${#missing[@]} -gt 0 ] && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    echo "Installing ${missing[*]} for the tests ..."
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}"; } >/dev/null 2>&1 ||
        echo "That did not work; the tests will say so."
fi

bash scripts/env.sh true || exit 1
failed=0
bash scripts/env.sh ruff format --check || failed=1
bash scripts/env.sh ruff check || failed=1
cache=${PERFUSION_CACHE:-$HOME/.cache/comfyui-perfusion}
bash scripts/env.sh mypy --cache-dir "$cache/mypy" perfusion_core || failed=1  # it reads all of torch's types at first
if [ $# -gt 0 ]; then
    ! $web || bash scripts/check_web.sh || failed=1
    bash scripts/env.sh python -m pytest "$@" || failed=1
    exit $failed
fi

export OMP_NUM_THREADS=1  # of what the tests start

check_face() {  # one after the other, with one server and one browser at a time
    local failed=0
    bash scripts/check_web.sh || failed=1
    bash scripts/env.sh python -m pytest tests/web || failed=1
    [ -n "${COMFYUI_PATH:-}" ] || bash scripts/host.sh 0.30.0 newest python -m pytest tests/web || failed=1
    return $failed
}

said=$(mktemp)
set -m  # a process group of its own, or Ctrl-C would not end it
check_face >"$said" 2>&1 &
face=$!
set +m
trap 'kill -- -$face; rm "$said"; exit 130' INT TERM
# meanwhile the rest, files in parallel, the longest first (tests/host/conftest.py)
bash scripts/env.sh python -m pytest tests/core tests/host \
    --dist loadfile --no-loadscope-reorder -n "$(getconf _NPROCESSORS_ONLN)" --maxprocesses 4 || failed=1
wait $face || failed=1
cat "$said"
rm "$said"
exit $failed
