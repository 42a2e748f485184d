# `make serve` and `make test` are all a fresh machine needs; the README says both without make.
PORT ?= 8000
PEERS ?=
BUILT_FROM := pyproject.toml $(wildcard setup.py requirements/* kernels/*/*.cpp kernels/*/*.h)
.PHONY: serve test test-vllm vllm quick dev check check-deploy bench docs lock

serve: .venv/.runtime
	.venv/bin/plait serve --port $(PORT)

test: .venv/.dev
	.venv/bin/python -P -m pytest

# What `plait serve --worker vllm` needs, once; and the tests of such workers.
vllm: .venv/.runtime .venv-vllm/.vllm

test-vllm: .venv/.dev .venv-vllm/.vllm
	.venv/bin/python -P -m pytest -n 0 -m vllm

# Before a push, in under two minutes: structure, and fast tests of every layer.
quick: .venv/.dev
	.venv/bin/python -P -m pytest -q $(QUICK)
QUICK := tests/unit/test_house_style.py tests/unit/test_layering.py tests/unit/test_docs.py \
	tests/unit/test_packaging.py tests/unit/test_registry.py tests/unit/test_kv_blocks.py \
	tests/unit/test_api_jobs.py tests/unit/test_diffusion_methods.py tests/unit/test_text.py \
	tests/unit/test_sampling_sampler.py tests/unit/test_models_config.py \
	tests/oracle/test_sampling_noise.py tests/oracle/test_seed_stable.py \
	tests/oracle/test_speculative_rules.py

dev: .venv/.dev
	.venv/bin/pre-commit install

check: .venv/.dev
	.venv/bin/ruff check . && .venv/bin/ruff format --check .
	.venv/bin/mypy && .venv/bin/mypy tests benchmarks docs deploy
	.venv/bin/cog --check -P -I docs docs/*.md README.md && .venv/bin/hadolint Dockerfile
	.venv/bin/python -P .ci/wheel.py

# Manifests by the tools of others, which it installs (docs/deploy.md). DEPLOY=--write: goldens anew.
check-deploy: .venv-deploy/.done .venv-checkov/.done
	.venv-deploy/bin/python -m deploy.check $(DEPLOY)

bench: .venv/.dev
	.venv/bin/python -m benchmarks.peers $(PEERS)

docs: .venv/.dev
	.venv/bin/cog -r -P -I docs docs/*.md README.md

# After a change of the dependencies in pyproject.toml. Commit what it writes.
lock: .venv/.dev
	.venv/bin/uv pip compile $(LOCK) --extra model --extra kernels -o requirements/runtime.txt
	.venv/bin/uv pip compile $(LOCK) --all-extras -c requirements/runtime.txt -o requirements/dev.txt
	.venv/bin/uv pip compile $(LOCK) requirements/vllm.in $(CPU_WHEELS) $(UNFIT) -o requirements/vllm.txt
LOCK := -q pyproject.toml --python-version 3.11 --python-platform linux --no-annotate \
	--no-emit-package torch --custom-compile-command "make lock"
CPU_WHEELS := --extra-index-url https://download.pytorch.org/whl/cpu --index-strategy unsafe-best-match
UNFIT := --no-emit-package torchvision --no-emit-package torchaudio --no-emit-package torchcodec

.venv-vllm/.vllm: requirements/vllm.txt requirements/install.sh
	sh requirements/install.sh vllm

.venv-deploy/.done: deploy/check/requirements.txt
	python3 -m venv .venv-deploy
	.venv-deploy/bin/pip install --quiet --no-deps -r $< && touch $@

.venv-checkov/.done: deploy/check/requirements-checkov.txt
	python3 -m venv .venv-checkov
	.venv-checkov/bin/pip install --quiet -r $< && touch $@

.venv/.%: $(BUILT_FROM)
	sh requirements/install.sh $*
