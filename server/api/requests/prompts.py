"""Prompts as tokens: plain ones, those with a text behind the answer, templates with holes."""

from __future__ import annotations

from dataclasses import dataclass

from plait.decoders.contract.decoding import PromptExtras
from plait.server.api.requests.sampling import check_ids
from plait.server.api.schemas.chat import ChatRequest
from plait.server.api.schemas.completions import CompletionRequest, Infill
from plait.server.errors import BadRequest, ContextTooLong
from plait.server.prompt.infill import InfillTemplate
from plait.server.prompt.tokenizer import Tokenizer
from plait.server.settings import LimitSettings

FILLER = 0  # stands at the positions of holes, where no token is read


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as tokens, and as the text that `echo` repeats."""

    token_ids: list[int]
    text: str
    suffix: tuple[int, ...] = ()  # token ids behind the answer
    template: InfillTemplate | None = None  # whose holes lie among the token ids
    holes: tuple[tuple[int, int], ...] = ()  # [start, stop) of each
    prediction: tuple[int, ...] = ()  # token ids of the answer that the client expects
    prefill: str | None = ""  # text of the answer that it ends with; None: nobody can tell
    num_hidden: int = 0  # tokens in front that the text does not show (bos)

    @property
    def num_holes(self) -> int:
        """Tokens of the holes."""
        return sum(stop - start for start, stop in self.holes)

    @property
    def num_given(self) -> int:
        """Tokens that are read and not answered."""
        return len(self.token_ids) - self.num_holes + len(self.suffix)

    @property
    def extras(self) -> PromptExtras:
        """What the worker is told of it beside its tokens."""
        return PromptExtras(list(self.prediction), list(self.suffix), list(self.holes))


def predicted_ids(
    request: ChatRequest, tokenizer: Tokenizer, vocab_size: int, limits: LimitSettings
) -> tuple[int, ...]:
    """Return the tokens of a chat request's prediction, as they stand behind a line break.

    A model that begins its answers otherwise spells the first word differently; the drafter finds
    its way after that.

    Raises:
        BadRequest: it is longer than the operator allows, or not Unicode.
    """
    if request.prediction is None:
        return ()
    text = request.prediction.text
    count, token_ids = tokenizer.min_token_count(text), list[int]()
    if count <= limits.max_prediction_tokens:
        token_ids = tokenizer.encode_inside(text)
        count = len(token_ids)
    if count > limits.max_prediction_tokens:
        raise BadRequest(
            f"A prediction may have at most {limits.max_prediction_tokens} tokens; this one has "
            f"{'' if token_ids else 'at least '}{count}.",
            param="prediction.content",
        )
    return tuple(token_id for token_id in token_ids if token_id < vocab_size)  # others never come


def completion_prompts(
    request: CompletionRequest, tokenizer: Tokenizer, context: int
) -> list[Prompt]:
    """Return the prompts of a completions request.

    Args:
        request: The request.
        tokenizer: Its model's.
        context: Most tokens of a text; what is sure to be longer is refused before it is made.
    Raises:
        BadRequest: a token id outside of the vocabulary, or a template whose holes don't match.
    """
    for text in (*request.prompts, request.suffix or ""):
        if isinstance(text, str):
            check_length(text, tokenizer, context, param="prompt")
    if request.infill is not None and sum(request.infill.lengths) > context:
        raise ContextTooLong(
            f"This model's context has {context} tokens, fewer than the holes.",
            param="infill.lengths",
        )
    suffix: tuple[int, ...] = ()
    if request.suffix:
        suffix = tuple(tokenizer.encode_inside(request.suffix, special=True))
    return [_prompt(prompt, request.infill, suffix, tokenizer) for prompt in request.prompts]


def check_length(text: str, tokenizer: Tokenizer, context: int, *, param: str) -> None:
    """Raise ContextTooLong if a text is sure to have more tokens than the context, untokenised."""
    fewest = tokenizer.min_token_count(text)
    if fewest > context:
        raise ContextTooLong(
            f"This model's context has {context} tokens; the prompt has at least {fewest}.",
            param=param,
        )


def _prompt(
    prompt: str | list[int], infill: Infill | None, suffix: tuple[int, ...], tokenizer: Tokenizer
) -> Prompt:
    if isinstance(prompt, str):
        if infill is not None:
            return _template_prompt(prompt, infill, tokenizer)
        ids = tokenizer.encode(prompt, special=True, prefix=True)
        return Prompt(ids, prompt, suffix, num_hidden=len(tokenizer.prefix))
    if infill is not None:
        raise BadRequest("infill needs a prompt that is text.", param="prompt")
    check_ids(prompt, tokenizer.vocab_size, param="prompt")
    return Prompt(prompt, tokenizer.decode(prompt, special=True), suffix)


def _template_prompt(text: str, infill: Infill, tokenizer: Tokenizer) -> Prompt:
    """Encode what stands between the holes, each piece by itself."""
    texts = text.split(infill.hole)
    if len(texts) != len(infill.lengths) + 1:
        raise BadRequest(
            f"The prompt has {len(texts) - 1} holes {infill.hole!r}, but infill.lengths has "
            f"{len(infill.lengths)} entries.",
            param="infill.lengths",
        )
    ids = tokenizer.encode(texts[0], special=True, prefix=True)
    starts = []
    for length, piece in zip(infill.lengths, texts[1:], strict=True):
        starts.append(len(ids))
        ids += [FILLER] * length + tokenizer.encode_inside(piece, special=True)
    holes = tuple(
        (start, start + length) for start, length in zip(starts, infill.lengths, strict=True)
    )
    template = InfillTemplate(tuple(texts), tuple(infill.lengths))
    return Prompt(ids, text, template=template, holes=holes, num_hidden=len(tokenizer.prefix))
