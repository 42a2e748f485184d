"""Prompts as token ids: plain, with a suffix, or an infill template with holes."""

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

PLACEHOLDER = 0  # token id at the positions of holes; it is never read


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as token ids, and as the text that `echo` repeats."""

    token_ids: list[int]
    text: str
    suffix: tuple[int, ...] = ()  # token ids behind the output
    template: InfillTemplate | None = None  # infill: its holes are among the token ids
    holes: tuple[tuple[int, int], ...] = ()  # [start, stop) of each
    prediction: tuple[int, ...] = ()  # token ids of the output that the client expects
    prefill: str | None = ""  # end of the prompt that belongs to the output; None: unknown
    num_hidden: int = 0  # tokens at the start that the text does not show (bos)

    @property
    def num_holes(self) -> int:
        """Positions of the holes."""
        return sum(stop - start for start, stop in self.holes)

    @property
    def num_given(self) -> int:
        """Prompt tokens: those given by the client, not generated."""
        return len(self.token_ids) - self.num_holes + len(self.suffix)

    @property
    def extras(self) -> PromptExtras:
        """What the worker gets beside the token ids."""
        return PromptExtras(list(self.prediction), list(self.suffix), list(self.holes))


def predicted_ids(
    request: ChatRequest, tokenizer: Tokenizer, vocab_size: int, limits: LimitSettings
) -> tuple[int, ...]:
    """Return the token ids of a chat request's prediction, tokenized as after a line break.

    A model that starts its output differently may tokenize the first word differently; the drafter
    finds the place after that word.

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
    return tuple(
        token_id for token_id in token_ids if token_id < vocab_size
    )  # the model has no others


def completion_prompts(
    request: CompletionRequest, tokenizer: Tokenizer, context: int
) -> list[Prompt]:
    """Return the prompts of a completions request.

    Args:
        request: The request.
        tokenizer: Its model's.
        context: Longest text in tokens; one that is certainly longer is refused untokenized.
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
    """Raise ContextTooLong if a text certainly has more tokens than the context; cheap."""
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
    """Tokenize each text between the holes separately."""
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
        ids += [PLACEHOLDER] * length + tokenizer.encode_inside(piece, special=True)
    holes = tuple(
        (start, start + length) for start, length in zip(starts, infill.lengths, strict=True)
    )
    template = InfillTemplate(tuple(texts), tuple(infill.lengths))
    return Prompt(ids, text, template=template, holes=holes, num_hidden=len(tokenizer.prefix))
