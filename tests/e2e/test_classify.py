"""/v1/classify on the default model: sentences of an easy task."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.fixtures.real_server import RealServer

REVIEWS = {
    "positive": [
        "I loved every minute of it.",
        "A wonderful, moving film.",
        "The acting is superb and the story is great.",
        "Funny, warm and beautifully shot.",
        "The best film of the year.",
    ],
    "negative": [
        "I was bored to tears.",
        "A dull, stupid mess.",
        "The acting is awful and the story makes no sense.",
        "A complete waste of time.",
        "The worst film of the year.",
    ],
}
WORDS = {
    "positive": [" positive", " good", " great"],
    "negative": [" negative", " bad", " terrible"],
}
EXAMPLES = {
    "positive": [
        "An absolute delight from start to finish.",
        "Brilliant performances and a clever script.",
        "I laughed, I cried, I want to see it again.",
        "One of the finest dramas in years.",
    ],
    "negative": [
        "Painfully slow and utterly pointless.",
        "I walked out after twenty minutes.",
        "The jokes fall flat and the plot is a mess.",
        "Badly written, badly acted, badly shot.",
    ],
}
TEMPLATES = [
    "Review: {input}\nSentiment:",
    "{input} All in all, the film was",
    "<|im_start|>user\nIs this review positive or negative? {input}<|im_end|>\n"
    "<|im_start|>assistant\nThe review is",
]


def classify(url: str, **fields: Any) -> dict[str, Any]:
    have = httpx.post(f"{url}/v1/classify", json=fields, timeout=120)
    assert have.status_code == 200, have.text
    answer: dict[str, Any] = have.json()
    return answer


def num_right(url: str, **fields: Any) -> int:
    """Classify the ten reviews; guessing gets nine or more with probability 11 / 1024."""
    inputs = [text for texts in REVIEWS.values() for text in texts]
    want = [name for name, texts in REVIEWS.items() for _ in texts]
    data = classify(url, input=inputs, **fields)["data"]
    assert [each["index"] for each in data] == list(range(10))
    return sum(each["class"] == name for each, name in zip(data, want, strict=True))


def test_label_words_tell_reviews_apart(server: RealServer) -> None:
    assert num_right(server.url, classes=WORDS, template=TEMPLATES) >= 9
    assert server.is_idle()


@pytest.mark.parametrize("match", ["template", "transport"])
def test_prototypes_tell_reviews_apart(server: RealServer, match: str) -> None:
    path = f"{server.url}/v1/classify/prototypes"
    body = {"name": "reviews", "examples": EXAMPLES, "template": TEMPLATES}
    assert httpx.post(path, json=body, timeout=120).status_code == 200
    fields = {"prototypes": "reviews", "match": match}
    assert num_right(server.url, **fields) >= 9
    assert num_right(server.url, classes=WORDS, **fields) >= 9
    assert httpx.delete(f"{path}/reviews").json()["deleted"] is True


def test_scores_are_those_of_an_echo(server: RealServer) -> None:
    """The sum over the word's tokens; two passes of other shapes differ in the last bits."""
    text, word = "Review: A dull mess.\nSentiment:", " negative beyond words"
    classes = {"a": word, "b": " fine"}
    fields = {"input": "A dull mess.", "template": "Review: {input}\nSentiment:", "trace": True}
    have = classify(server.url, classes=classes, calibrate=False, **fields)["data"][0]
    body = {"prompt": text + word, "max_tokens": 0, "echo": True, "logprobs": 0}
    echoed = httpx.post(f"{server.url}/v1/completions", json=body, timeout=120).json()
    logprobs = echoed["choices"][0]["logprobs"]
    offsets, values = logprobs["text_offset"], logprobs["token_logprobs"]
    want = sum(v for at, v in zip(offsets, values, strict=True) if at >= len(text))
    assert have["scores"]["a"] == pytest.approx(want, abs=1e-4)
    assert have["templates"][0]["logprobs"]["a"] == [have["scores"]["a"]]


def test_a_diffusion_model_is_refused(diffusion_server: RealServer) -> None:
    body = {"input": "a", "template": "{input}:", "classes": WORDS}
    have = httpx.post(f"{diffusion_server.url}/v1/classify", json=body)
    assert (have.status_code, have.json()["error"]["param"]) == (400, "model")
