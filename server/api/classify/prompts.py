"""From a classify request to token ids: the label words, and each template around each input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plait.server.api.interfaces import ServedModelLike
from plait.server.api.requests.budget import ContextBudget
from plait.server.api.requests.job import require_info
from plait.server.api.requests.model_support import unsupported
from plait.server.api.requests.prompts import check_length
from plait.server.api.requests.sampling import check_ids, shared_vocab_size
from plait.server.api.schemas.classify import PLACE, ClassifyRequest
from plait.server.errors import BadRequest, ContextTooLong
from plait.server.prompt.tokenizer import Tokenizer
from plait.server.settings import LimitSettings
from plait.server.wire.messages import ModelInfo


@dataclass(frozen=True, slots=True)
class ClassifyPrompts:
    """The token ids of a request."""

    words: list[list[int]]  # of all classes, in order
    prompts: Sequence[Sequence[list[int]]]  # [templates][inputs], last an empty one if calibrated


def check(request: ClassifyRequest, limits: LimitSettings) -> None:
    """Raise BadRequest for the first field that is over a limit, or a word or template without use.

    Needs no tokens.
    """
    for i, template in enumerate(request.templates):
        if PLACE not in template:
            param = _item("template", request.template, i)
            raise BadRequest(f"{param} has no {PLACE}, where the input stands.", param=param)
    count = len(request.templates) * (len(request.inputs) + is_calibrated(request))
    if count > limits.max_sequences_per_request:
        raise BadRequest(
            f"These are {count} prompts, one for each template and input (and an empty input, to "
            f"calibrate); at most {limits.max_sequences_per_request} are read for one request.",
            param="input",
        )
    if len(request.cache_salt or "") > limits.max_cache_salt_chars:
        raise BadRequest(
            f"cache_salt may have at most {limits.max_cache_salt_chars} characters.",
            param="cache_salt",
        )
    for param, _, word in _named_words(request):
        if not word.strip():
            raise BadRequest(f"{param}: a label word needs more than blanks.", param=param)


def check_model(info: ModelInfo) -> None:
    """Raise BadRequest if the model's worker scores no continuations."""
    if "continuations" not in info.capabilities:
        raise unsupported("the model gives no log-probabilities of words behind a prompt", "model")


def is_calibrated(request: ClassifyRequest) -> bool:
    """Tell whether the scores of an empty input are subtracted."""
    return request.calibrate is not False


def num_chars(request: ClassifyRequest) -> int:
    """Return how many characters have to be tokenized."""
    inputs, templates = request.inputs, request.templates
    own = sum(map(len, inputs)) * len(templates) + sum(map(len, templates)) * (len(inputs) + 1)
    return own + sum(len(word) for _, _, word in _named_words(request))


def tokenize(
    request: ClassifyRequest, served: ServedModelLike, limits: LimitSettings
) -> ClassifyPrompts:
    """Return the token ids; for a thread.

    Raises:
        BadRequest: two words are the same tokens, or there are too many tokens.
    """
    tokenizer, info = served.tokenizer, require_info(served)
    words = _word_ids(request, tokenizer, info, limits)
    room = PromptRoom(info, shared_vocab_size(tokenizer, info), words)
    for i, text in enumerate(request.inputs):
        param = _item("input", request.input, i)
        check_length(text, tokenizer, room.context, param=param)
    found: list[list[list[int]]] = []
    for i, template in enumerate(request.templates):
        param = _item("template", request.template, i)
        check_length(template, tokenizer, room.context, param=param)
        empty = _prompt(template, "", tokenizer)
        room.check(empty, param, may_be_empty=not is_calibrated(request))
        prompts = [_prompt(template, text, tokenizer) for text in request.inputs]
        for k, prompt in enumerate(prompts):
            room.check(prompt, _item("input", request.input, k))
        found.append([*prompts, empty] if is_calibrated(request) else prompts)
    return ClassifyPrompts(words, found)


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
        longest = max(map(len, self.words))
        rows = sum(len(word) - 1 for word in self.words)
        if len(prompt) + longest > self.context or len(prompt) + rows > cached:
            raise ContextTooLong(
                f"This model's context has {self.context} tokens; the prompt has {len(prompt)}, "
                f"the label words {rows + len(self.words)}, the longest {longest}.",
                param=param,
            )


def _prompt(template: str, text: str, tokenizer: Tokenizer) -> list[int]:
    """Return the prompt; special tokens of the template are special, those of the input are not."""
    wrapped = tokenizer.quote(text).join(template.split(PLACE))
    return tokenizer.encode(wrapped, special=True, prefix=True)


def _word_ids(
    request: ClassifyRequest, tokenizer: Tokenizer, info: ModelInfo, limits: LimitSettings
) -> list[list[int]]:
    """Return the token ids of all words; no two words have the same."""
    owners: dict[tuple[int, ...], str] = {}
    left = limits.max_logit_bias
    for param, name, word in _named_words(request):
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
            other = "twice" if owners[ids] == name else f"a label word of {owners[ids]!r} as well"
            raise BadRequest(f"{param}: {word!r} is given {other}.", param=param)
        owners[ids] = name
    return [list(ids) for ids in owners]


def _named_words(request: ClassifyRequest) -> list[tuple[str, str, str]]:
    """Return each label word with its path in the request and its class: (path, class, word)."""
    return [
        (_item(f"classes.{name}", request.classes[name], i), name, word)
        for name, words in request.words.items()
        for i, word in enumerate(words)
    ]


def _item(field: str, value: str | list[str], i: int) -> str:
    """Return the path of an item of a field that may also be a single text."""
    return field if isinstance(value, str) else f"{field}[{i}]"
