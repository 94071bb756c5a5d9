#!/usr/bin/env bash
# Runs a command in the project's environment, set up on first use:  bash scripts/env.sh python -c 'import torch'
# scripts/environment/setup_env.py says what the environment is and where it is kept.
set -euo pipefail
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

for python in "${PYTHON:-python3}" python3.12 python3.11 python3.10 python3.13; do
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && break
    python=
done
[ -n "$python" ] || { echo "Python 3.10 or newer is needed: install it, or name it in PYTHON." >&2; exit 1; }

settings=$("$python" "$scripts/environment/setup_env.py")  # VIRTUAL_ENV and COMFYUI_PATH, quoted for the shell
eval "$settings"
export VIRTUAL_ENV COMFYUI_PATH PATH="$VIRTUAL_ENV/bin:$PATH"
export OMP_WAIT_POLICY=PASSIVE  # spinning threads of two programs on few cores slow each other down many times over
exec "$@"
