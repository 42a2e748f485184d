"""Answers of a given form: a JSON schema, made of a class, and a list of choices."""

from __future__ import annotations

import os

from openai import OpenAI
from pydantic import BaseModel

URL = os.environ.get("PLAIT_URL", "http://127.0.0.1:8000")
MODEL = "smollm2-135m-instruct"


class City(BaseModel):
    """What is asked for."""

    name: str
    country: str
    is_capital: bool


with OpenAI(base_url=f"{URL}/v1", api_key="none") as client:
    parsed = client.chat.completions.parse(
        model=MODEL,
        messages=[{"role": "user", "content": "Describe Paris."}],
        response_format=City,
        max_tokens=60,
        temperature=0,
    )
    print(parsed.choices[0].message.parsed)
    chosen = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Is the sea wet?"}],
        extra_body={"structured_outputs": {"choice": ["yes", "no"]}},
        temperature=0,
    )
    print(chosen.choices[0].message.content)
