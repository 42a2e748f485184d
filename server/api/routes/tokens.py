"""POST /tokenize and /detokenize."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request

from plait.server.api.jobs.job import chat_tokens, find_model, loaded_info
from plait.server.api.jobs.sampling import check_ids
from plait.server.api.json_body import JsonRoute
from plait.server.api.openapi import ERRORS
from plait.server.api.schemas.tokenize import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from plait.server.api.state import pool_of
from plait.server.errors import BadRequest
from plait.server.prompt.logprobs import chat_token
from plait.server.prompt.tokenizer import Tokenizer

router = APIRouter(route_class=JsonRoute, tags=["tokens"], responses=ERRORS)


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, request: Request) -> TokenizeResponse:
    """Split a prompt, or a conversation as the model's template writes it, into tokens."""
    served = find_model(pool_of(request), body.model)
    tokenizer = served.tokenizer
    tokens = await _tokens(body, tokenizer)
    return TokenizeResponse(
        count=len(tokens),
        max_model_len=loaded_info(served).max_model_len,
        tokens=tokens,
        token_strs=[chat_token(tokenizer, t) for t in tokens] if body.return_token_strs else None,
    )


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, request: Request) -> DetokenizeResponse:
    """Join tokens to a text; special tokens are written out."""
    tokenizer = find_model(pool_of(request), body.model).tokenizer
    check_ids(body.tokens, tokenizer.vocab_size, param="tokens")
    return DetokenizeResponse(prompt=tokenizer.decode(body.tokens, special=True))


async def _tokens(body: TokenizeRequest, tokenizer: Tokenizer) -> list[int]:
    chat_only = ("add_generation_prompt", "continue_final_message", "chat_template_kwargs")
    if (body.prompt is None) == (body.messages is None):
        raise BadRequest("Give either a prompt or messages.", param="prompt")
    if body.prompt is not None:
        given = [name for name in chat_only if getattr(body, name) is not None]
        if given:
            raise BadRequest(f"{given[0]} needs messages.", param=given[0])
        return await asyncio.to_thread(
            tokenizer.encode, body.prompt, special=True, prefix=body.add_special_tokens
        )
    assert body.messages is not None
    return await chat_tokens(
        tokenizer,
        body.messages,
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=bool(body.continue_final_message),
        kwargs=body.chat_template_kwargs,
    )
