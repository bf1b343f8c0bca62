#!/usr/bin/env bash
# Write the two locks, for every supported Python at once:
#   requirements.lock          all a workstation uses, checks and tests included
#   requirements-device.lock   what a device installs, in the same versions
#   .ci/setup/lock.sh VENV
set -euo pipefail
cd "$(dirname "$0")/../.."
uv=${1:?usage: .ci/setup/lock.sh VENV}/bin/uv

compile() {
    UV_CUSTOM_COMPILE_COMMAND="make lock" "$uv" pip compile --quiet --universal \
        --python-version 3.10 --no-emit-index-url --no-emit-find-links pyproject.toml "$@"
}

compile --upgrade --all-extras --output-file requirements.lock
compile --upgrade --constraints requirements.lock --no-annotate \
    --output-file requirements-device.lock
