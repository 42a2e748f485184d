"""An edit of a known text. `prediction` changes how soon the answer comes, never the answer."""

from __future__ import annotations

import os

from openai import OpenAI

URL = os.environ.get("PLAIT_URL", "http://127.0.0.1:8000")
CODE = "def total(prices):\n    result = 0\n    for price in prices:\n        result += price\n"

with OpenAI(base_url=f"{URL}/v1", api_key="none") as client:
    answers = [
        client.chat.completions.create(
            model="smollm2-135m-instruct",
            messages=[{"role": "user", "content": f"Repeat this code:\n{CODE}"}],
            max_tokens=60,
            temperature=0,
            extra_body=extra,
        )
        for extra in ({}, {"prediction": {"type": "content", "content": CODE}})
    ]
    plain, predicted = (answer.choices[0].message.content for answer in answers)
    print(predicted)
    print("the same text:", plain == predicted)
    usage = answers[1].usage
    if usage is not None and usage.completion_tokens_details is not None:
        print("predicted tokens:", usage.completion_tokens_details.accepted_prediction_tokens)
