"""The verifier as a service, in the way in which the server's scorer `http` calls it."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from benchmarks.step_search import task
from benchmarks.step_search.network import load_verifier, token_logprobs

BATCH = 64


class Verifier:
    """Says how probable the whole steps of a text are, which is near 1 if they are right."""

    def __init__(self, folder: Path) -> None:
        self._network = load_verifier(folder)
        self.num_texts = 0  # scored so far

    @torch.inference_mode()
    def score(self, texts: Sequence[tuple[str, str, bool]]) -> list[float]:
        """Return a probability for each prompt and completion, which may be complete."""
        self.num_texts += len(texts)
        parts = [texts[i : i + BATCH] for i in range(0, len(texts), BATCH)]
        return [score for part in parts for score in self._score(part)]

    def _score(self, texts: Sequence[tuple[str, str, bool]]) -> list[float]:
        rows = [task.read(prompt, text, is_complete=ends) for prompt, text, ends in texts]
        found = token_logprobs(self._network, rows)
        starts = [len(prompt) - 1 for prompt, _, _ in texts]
        return [math.exp(sum(own[start:])) for own, start in zip(found, starts, strict=True)]


@contextmanager
def served(verifier: Verifier) -> Iterator[str]:
    """Serve the verifier on this machine; yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            texts = [(t["prompt"], t["text"], t["is_complete"]) for t in body["texts"]]
            scores = verifier.score(texts)
            answer = json.dumps({"scores": scores}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:
            """Write no log."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
