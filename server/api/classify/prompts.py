"""From texts to token ids: the label words, and each template around each input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plait.server.api.classify.task import ScoringTask
from plait.server.api.interfaces import ServedModelLike
from plait.server.api.requests.budget import ContextBudget
from plait.server.api.requests.job import require_info
from plait.server.api.requests.model_support import unsupported
from plait.server.api.requests.prompts import check_length
from plait.server.api.requests.sampling import check_ids, shared_vocab_size
from plait.server.api.schemas.classify import PLACE
from plait.server.errors import BadRequest, ContextTooLong
from plait.server.prompt.tokenizer import Tokenizer
from plait.server.settings import LimitSettings
from plait.server.wire.messages import ModelInfo


@dataclass(frozen=True, slots=True)
class TaskTokens:
    """The token ids of a task."""

    words: list[list[int]]  # of all classes, in order
    prompts: Sequence[Sequence[list[int]]]  # [templates][inputs], last an empty one if calibrated


@dataclass(frozen=True, slots=True)
class PromptRoom:
    """What a prompt may be, given the label words behind it."""

    info: ModelInfo
    vocab_size: int
    words: Sequence[Sequence[int]]

    @property
    def context(self) -> int:
        """Tokens of a text at most."""
        return ContextBudget(self.info, 1).context

    def check(self, prompt: Sequence[int], param: str, *, may_be_empty: bool = False) -> None:
        """Raise BadRequest if a prompt has no token, or leaves no room for the label words."""
        check_ids(prompt, self.vocab_size, param=param)
        if not (prompt or may_be_empty):
            raise BadRequest(f"{param}: the prompt has no tokens; give at least one.", param=param)
        cached = (self.info.num_blocks - 1) * self.info.block_size
        longest = max(map(len, self.words), default=0)
        rows = sum(len(word) - 1 for word in self.words)
        if len(prompt) + longest > self.context or len(prompt) + rows > cached:
            raise ContextTooLong(
                f"This model's context has {self.context} tokens; the prompt has {len(prompt)}, "
                f"the label words {rows + len(self.words)}, the longest {longest}.",
                param=param,
            )


def check_model(info: ModelInfo) -> None:
    """Raise BadRequest if the model's worker scores no continuations."""
    if "continuations" not in info.capabilities:
        why = "the model gives no log-probabilities of words behind a prompt"
        raise unsupported(why, "model", "continuations")


def tokenize(task: ScoringTask, served: ServedModelLike, limits: LimitSettings) -> TaskTokens:
    """Return the token ids; for a thread.

    Raises:
        BadRequest: two words are the same tokens, or there are too many tokens.
    """
    tokenizer, info = served.tokenizer, require_info(served)
    words = _word_ids(task, tokenizer, info, limits)
    room = PromptRoom(info, shared_vocab_size(tokenizer, info), words)
    for param, text in (*task.inputs, *task.templates):
        check_length(text, tokenizer, room.context, param=param)
    found: list[list[list[int]]] = []
    for template in task.templates:
        empty = _prompt(template.text, "", tokenizer)
        room.check(empty, template.param, may_be_empty=not task.is_calibrated)
        prompts = [_prompt(template.text, each.text, tokenizer) for each in task.inputs]
        for prompt, each in zip(prompts, task.inputs, strict=True):
            room.check(prompt, each.param)
        found.append([*prompts, empty] if task.is_calibrated else prompts)
    return TaskTokens(words, found)


def _prompt(template: str, text: str, tokenizer: Tokenizer) -> list[int]:
    """Return the prompt; special tokens of the template are special, those of the input are not."""
    wrapped = tokenizer.quote(text).join(template.split(PLACE))
    return tokenizer.encode(wrapped, special=True, prefix=True)


def _word_ids(
    task: ScoringTask, tokenizer: Tokenizer, info: ModelInfo, limits: LimitSettings
) -> list[list[int]]:
    """Return the token ids of all words; no two words have the same."""
    owners: dict[tuple[int, ...], str] = {}
    left = limits.max_logit_bias
    for param, word, label in task.words:
        is_long = tokenizer.min_token_count(word) > left
        ids = () if is_long else tuple(tokenizer.encode_inside(word))
        check_ids(ids, shared_vocab_size(tokenizer, info), param=param)
        left -= len(ids)
        if is_long or left < 0:
            limit = limits.max_logit_bias
            raise BadRequest(
                f"The label words may have at most {limit} tokens together.", param="classes"
            )
        if ids in owners:
            other = "twice" if owners[ids] == label else f"a label word of {owners[ids]!r} as well"
            raise BadRequest(f"{param}: {word!r} is given {other}.", param=param)
        owners[ids] = label
    return [list(ids) for ids in owners]
