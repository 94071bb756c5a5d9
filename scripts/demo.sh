#!/usr/bin/env bash
# From photos to a concept to pictures with it, in a real ComfyUI:  bash scripts/demo.sh [FOLDER] [--serve] [--help]
set -euo pipefail
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exec bash "$scripts/env.sh" python "$scripts/demo.py" "$@"
