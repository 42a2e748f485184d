"""A diffusion model: which positions are unmasked in a step is chosen by the request."""

from __future__ import annotations

import os

from openai import OpenAI

URL = os.environ.get("PLAIT_URL", "http://127.0.0.1:8000")
MODEL = "tiny-diffusion"
NAMES = '["Ada Hale", "Leo Frost", "Mira Baker"] -> reverse'

with OpenAI(base_url=f"{URL}/v1", api_key="none") as client:
    for unmasker in ("off", "threshold"):
        answer = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": NAMES}],
            temperature=0,
            extra_body={"decoding": {"unmasker": unmasker, "trace": True}},
        )
        trace = (answer.model_extra or {})["decoding"]
        print(f"{unmasker}: {trace['forwards']} passes: {answer.choices[0].message.content}")
    gap = client.completions.create(
        model=MODEL,
        prompt='<|user|>json name, age\nname is Ada, age is 36<|assistant|>{"name": "Ada", "age": ',
        suffix="}",
        max_tokens=2,
        temperature=0,
    )
    print("the gap:", gap.choices[0].text)
