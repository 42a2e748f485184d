"""A streamed chat through the official client. The same seed gives the same text again."""

from __future__ import annotations

import os

from openai import OpenAI

URL = os.environ.get("PLAIT_URL", "http://127.0.0.1:8000")

with OpenAI(base_url=f"{URL}/v1", api_key="none") as client:
    stream = client.chat.completions.create(
        model="smollm2-135m-instruct",
        messages=[{"role": "user", "content": "Name three colours."}],
        max_tokens=24,
        temperature=0.7,
        seed=7,
        logprobs=True,
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in stream:
        for choice in chunk.choices:
            for token in choice.logprobs.content or () if choice.logprobs else ():
                print(f"{token.token!r} {token.logprob:.3f}")
        if chunk.usage is not None:
            print(f"{chunk.usage.completion_tokens} tokens")
