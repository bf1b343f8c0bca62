#!/usr/bin/env bash
# Write the locks, for every supported Python at once:
#   requirements.lock          what a workstation uses, all but distillation
#   requirements-distill.lock  and distillation: what checks and tests need
#   requirements-device.lock   what a device installs, in the same versions
#   .ci/setup/lock.sh VENV
set -euo pipefail
cd "$(dirname "$0")/../.."
uv=${1:?usage: .ci/setup/lock.sh VENV}/bin/uv

compile() {
    UV_CUSTOM_COMPILE_COMMAND="make lock" "$uv" pip compile --quiet --universal \
        --python-version 3.10 --no-emit-index-url --no-emit-find-links pyproject.toml "$@"
}

# A PyTorch built for CUDA brings its libraries along; one built for the CPU has none to lock.
cuda=(cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cupti nvidia-cuda-nvrtc
    nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand nvidia-cusolver
    nvidia-cusparse nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink nvidia-nvshmem-cu13
    nvidia-nvtx triton)

compile --upgrade --extra compile --extra demo --extra dev --output-file requirements.lock
compile --upgrade --all-extras --no-annotate \
    --constraints requirements.lock --constraints <(echo "torch==2.13.0") \
    "${cuda[@]/#/--no-emit-package=}" --output-file requirements-distill.lock
compile --upgrade --constraints requirements.lock --no-annotate \
    --output-file requirements-device.lock
