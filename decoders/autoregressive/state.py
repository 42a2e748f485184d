"""What the autoregressive decoder derives from one sequence's text."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from plait.decoders.contract.constraint import Constraint
from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.contract.sampler import Sampler
from plait.decoders.contract.text import Text
from plait.decoders.sampling.state import SamplingState
from plait.decoders.speculative.drafting import SpeculationState


@dataclass(slots=True)
class AutoregressiveState:
    """One sequence: what its next token depends on besides the logits."""

    request: DecodeRequest
    sampling: SamplingState
    sampler: Sampler
    speculation: SpeculationState | None = None
    closing: tuple[int, ...] = ()  # the shortest end of the answer, once it must be followed
    closing_start: int = 0  # tokens of output before that end
    num_accepted: int = 0  # tokens that the constraint has accepted: the output, maybe a stop token
    log_masses: list[float] = field(default_factory=list)  # log of the legal mass at each draw
    num_steered: int = 0  # tokens redrawn or forced to end within the budget
    num_untruncated: int = 0  # tokens drawn where truncation left nothing legal
    num_checks: int = 0  # tokens that the constraint was asked for
    num_refused: int = 0  # drawn tokens that the constraint has taken back, though its mask allows

    @property
    def constraint(self) -> Constraint | None:
        """The constraint, which has accepted the output."""
        return self.request.constraint

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """Tokens that end the text."""
        return self.request.stop_token_ids

    @property
    def remaining(self) -> int:
        """Tokens that may still be emitted."""
        return self.request.max_tokens - self.request.text.num_output

    @property
    def is_closing(self) -> bool:
        """Whether the next token is decided."""
        return self.request.text.num_output - self.closing_start < len(self.closing)

    @property
    def log_weight(self) -> float:
        """The sum of the log masses, in the order of the draws."""
        total = 0.0
        for value in self.log_masses:
            total += value
        return total

    def next_closing(self) -> int:
        """Return the next token of the end that is followed."""
        return self.closing[self.request.text.num_output - self.closing_start]

    def fork(self, text: Text) -> AutoregressiveState:
        """Return the state of another text, which begins as this one's; without drafters' states.

        Cost: that of copying the constraint and the counts; O(text) where the texts differ.
        """
        shared = text.num_shared(self.request.text) - text.prompt_length
        constraint = self.constraint
        if constraint is not None:
            constraint = constraint.fork()
            constraint.rollback(self.num_accepted - shared)
            for token in text.token_ids[text.prompt_length + shared :]:
                accepted = constraint.accept_token(token)
                assert accepted, f"the constraint refuses token {token} of a fork"
        twin = replace(
            self,
            request=replace(self.request, text=text, constraint=constraint),
            sampling=self.sampling.fork(text),
            speculation=None,
            num_accepted=text.num_output,
            log_masses=self.log_masses[:shared],
        )
        if constraint is not None:
            twin.log_masses += [0.0] * (text.num_output - shared)  # tokens that were not drawn
        twin._end_closing_unless(shared == text.num_output)
        return twin

    def truncate(self) -> None:
        """Take note that the text has been cut."""
        length = self.request.text.num_output
        if self.constraint is not None:
            self.constraint.rollback(self.num_accepted - length)
        self.num_accepted = length
        self.sampling.truncate()
        del self.log_masses[length:]
        self._end_closing_unless(True)

    def _end_closing_unless(self, is_prefix: bool) -> None:
        """Follow no end that the text has left, or that had not begun where the text ends now."""
        if not is_prefix or self.request.text.num_output <= self.closing_start:
            self.closing, self.closing_start = (), 0
