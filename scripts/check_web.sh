#!/usr/bin/env bash
# Lints and unit-tests web/. The tools are kept in the cache, by the lock file that pins them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if ! command -v npm >/dev/null; then
    echo "web/ is not checked: that needs node and npm (Debian: apt-get install nodejs npm)." >&2
    [ "${CI:-}" != true ]
    exit
fi
tools=${PERFUSION_CACHE:-$HOME/.cache/comfyui-perfusion}/web-$(sha256sum tests/web/package-lock.json | cut -c1-16)
if [ ! -e "$tools" ]; then
    rm -rf "$tools.new" && mkdir -p "$tools.new"
    cp tests/web/package.json tests/web/package-lock.json "$tools.new"
    npm --prefix "$tools.new" ci --no-audit --no-fund --loglevel error
    mv "$tools.new" "$tools"
fi
ln -sfn "$tools/node_modules" tests/web/node_modules
npm --prefix tests/web run --silent lint
npm --prefix tests/web run --silent test
