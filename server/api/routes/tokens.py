"""POST /tokenize and /detokenize."""

from __future__ import annotations

from functools import partial

import msgspec
from fastapi import APIRouter, Request, Response

from plait.server.api.app_state import pool_of, settings_of, tokenization_of
from plait.server.api.auth import tenant_of
from plait.server.api.interfaces import ServedModelLike
from plait.server.api.json_body import JsonRoute
from plait.server.api.openapi import ERRORS, response_docs
from plait.server.api.requests.job import find_model, require_info
from plait.server.api.requests.messages import chat_tokens, num_chars
from plait.server.api.requests.sampling import check_ids
from plait.server.api.schemas.tokenize import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from plait.server.errors import BadRequest
from plait.server.prompt.token_count import count_bytes
from plait.server.prompt.tokenizer import Tokenizer

router = APIRouter(route_class=JsonRoute, tags=["tokens"], responses=ERRORS)


@router.post("/tokenize", response_model=None, responses=response_docs(TokenizeResponse))
async def tokenize(body: TokenizeRequest, request: Request) -> Response:
    """Split a prompt, or a conversation as the model's template writes it, into tokens."""
    served = find_model(pool_of(request), body.model)
    limit = settings_of(request).limits.max_tokenize_bytes
    size = len(body.prompt or "") + num_chars(body.messages or ())
    work = partial(_tokenized, body, served, limit)
    answer = await tokenization_of(request).run(tenant_of(request), size, work)
    return Response(answer, media_type="application/json")


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, request: Request) -> DetokenizeResponse:
    """Join tokens to a text; special tokens are written out."""
    tokenizer = find_model(pool_of(request), body.model).tokenizer
    check_ids(body.tokens, tokenizer.vocab_size, param="tokens")
    return DetokenizeResponse(prompt=tokenizer.decode(body.tokens, special=True))


def _tokenized(body: TokenizeRequest, served: ServedModelLike, limit: int) -> bytes:
    """Return the response as JSON."""
    tokens = _tokens(body, served.tokenizer, limit)
    strings = [served.tokenizer.piece(token) for token in tokens]
    return msgspec.json.encode(
        TokenizeResponse(
            count=len(tokens),
            max_model_len=require_info(served).max_model_len,
            tokens=tokens,
            token_strs=strings if body.return_token_strs else None,
        )
    )


def _tokens(body: TokenizeRequest, tokenizer: Tokenizer, limit: int) -> list[int]:
    chat_only = ("add_generation_prompt", "continue_final_message", "chat_template_kwargs")
    if (body.prompt is None) == (body.messages is None):
        raise BadRequest("Give either a prompt or messages.", param="prompt")
    if body.prompt is None:
        check = partial(_check_size, limit=limit, param="messages")
        return chat_tokens(body, body.chat_template_kwargs or {}, tokenizer, check)[0]
    given = [name for name in chat_only if getattr(body, name) is not None]
    if given:
        raise BadRequest(f"{given[0]} needs messages.", param=given[0])
    _check_size(body.prompt, limit=limit, param="prompt")
    begins = body.add_special_tokens is not False
    return tokenizer.encode(body.prompt, special=True, prefix=begins)


def _check_size(text: str, *, limit: int, param: str) -> None:
    size = count_bytes(text)
    if size > limit:
        raise BadRequest(
            f"{param} has {size} bytes; at most {limit} are tokenised at once. Send it in parts.",
            param=param,
        )
