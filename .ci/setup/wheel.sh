#!/usr/bin/env bash
# Build the device's wheel into dist/ and try it as a device would: a clean environment, only the
# locked device packages, no checkout in sight.
#   .ci/setup/wheel.sh VENV [FILE.edge]     runs FILE.edge too; by default the demonstration's, if made
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${1:?usage: .ci/setup/wheel.sh VENV [FILE.edge]}/bin/python
project=$PWD

rm -rf dist
"$python" -m hatchling build -t wheel -d dist >/dev/null
wheel=$(echo "$project"/dist/*.whl)
echo "wheel: dist/${wheel##*/}, $(du -h "$wheel" | cut -f1)"

device=$(mktemp -d)
trap 'rm -rf "$device"' EXIT
"$python" -m venv "$device/venv"
"$device/venv/bin/python" -m pip --quiet --quiet --disable-pip-version-check install \
    --constraint requirements-device.lock "$wheel"
"$device/venv/bin/python" -m pip check

artifact=${2:-$(ls -t .cache/demo/*.edge 2>/dev/null | head -n 1 || true)}
artifact=${artifact:+$(realpath "$artifact")}
cd "$device"
venv/bin/python - <<'PYTHON'
import importlib.util
import sys

import edge_llm
import firmware_tools

for name in ("compile", "targets", "tvm", "torch", "gguf", "numpy"):
    if importlib.util.find_spec(name) is not None:
        sys.exit(f"wheel: a device would find {name}, which is the workstation's")
PYTHON
venv/bin/edge-llm --help
if [ -n "$artifact" ]; then
    venv/bin/edge-llm run "$artifact" --prompt "What is the capital of France?" --max-tokens 16
else
    echo "wheel: no artifact to run: make demo makes one"
fi
