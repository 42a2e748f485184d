#!/usr/bin/env bash
# tokenizers' encode keeps Python's interpreter lock, encode_batch of the same text does not.
#
# While Tokenizer.encode works on a text of a megabyte, which takes seconds, no other thread of the
# process runs: an event loop stands still, and a thread pool does not help. encode_batch and
# encode_batch_fast of a list with that one text give the same ids and let the others run. One would
# expect the same of both, as all of them do their work in Rust, and the documentation says nothing of
# it. It matters to servers, which tokenise what clients send: one long text stops everybody.
#
# Exit code 0 while that is so, 1 once it changes. Shares are compared, no times: how much of the call
# another thread was kept from running at a stretch.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import threading
import time

import tokenizers
from tokenizers import Tokenizer, models, pre_tokenizers

alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
text = "".join(f"the quick brown fox number {i} " for i in range(40_000))


def share(work):
    """Return what the work returns, and the longest pause of another thread as a share of it."""
    pauses, ended = [0.0], threading.Event()

    def watch():
        last = time.perf_counter()
        while not ended.is_set():
            time.sleep(0.001)
            now = time.perf_counter()
            pauses.append(now - last)
            last = now

    thread = threading.Thread(target=watch)
    thread.start()
    begun = time.perf_counter()
    result = work()
    took = time.perf_counter() - begun
    time.sleep(0.01)
    ended.set()
    thread.join()
    return result, max(pauses) / took


one, alone = share(lambda: tokenizer.encode(text))
several, batch = share(lambda: tokenizer.encode_batch_fast([text]))
print("tokenizers", tokenizers.__version__)
print(f"encode: another thread stands still for {alone:.0%} of it; encode_batch_fast: {batch:.0%}")
assert one.ids == several[0].ids
sys.exit(0 if alone > 0.5 and batch < 0.5 else 1)
PYTHON
