"""Numbers within bounds, as regular expressions over their decimal text.

Numbers are written without leading zeros here, never as -0, and with an exponent only if that is
asked (scientific_text).
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, localcontext
from math import inf, isfinite, lcm, nextafter

from msgspec.structs import replace

from plait.decoders.constrained.grammar import chars, regex
from plait.decoders.constrained.grammar.json_text import MAX_DECIMALS, MAX_INTEGER_DIGITS
from plait.decoders.constrained.grammar.regex import ANY_TEXT, EMPTY_SET, EPSILON, Expr
from plait.decoders.constrained.grammar.residues import RemainderAutomaton, unit_of
from plait.decoders.constrained.schema.facts import NUMBERS, Bound, Facts, tighter

MAX_LISTED = 1000  # multiples that are listed one by one
MAX_SCALE = 1000  # the largest power of ten whose remainders are listed
PRECISE = 15  # digits that a number of 64 bits keeps
SHORT_WHOLE, SHORT_FRACTION = 9, 6  # digits of a fraction, where no bound needs more
MAX_EXPONENT = 300  # of ten; readers of 64 bits take 308
MAX_REMAINDERS = 8_000  # remainders times digits of one number
MIN_INTEGER_DIGITS = 9  # that numbers may have, however large the step
PRECISION = 10_000  # digits; a document's numbers have at most 4,300, and sums must be exact

_DIGIT = regex.char(chars.of("0123456789"))
_NONZERO = regex.char(chars.of("123456789"))
_ZERO = regex.literal("0")
_DOT = regex.literal(".")
_ANY_TAIL = regex.times(regex.concat([_DOT, regex.times(_DIGIT, 1, MAX_DECIMALS)]), 0, 1)
_POSITIVE = regex.concat([_NONZERO, regex.times(_DIGIT, 0, MAX_INTEGER_DIGITS - 1)])
_INTEGERS = regex.union([_ZERO, _POSITIVE])
_FRACTION_TAIL = regex.concat(
    [_DOT, regex.times(_DIGIT, 0, MAX_DECIMALS - 1), _NONZERO, regex.times(_DIGIT, 0, 1)]
)
# Fractions that readers with 64 bits do not take for integers: at most 15 digits.
_SHORT_FRACTIONS = regex.concat(
    [
        regex.union([_ZERO, regex.concat([_NONZERO, regex.times(_DIGIT, 0, SHORT_WHOLE - 1)])]),
        _DOT,
        regex.times(_DIGIT, 0, SHORT_FRACTION - 1),
        _NONZERO,
    ]
)


class NeedsRemainders(ValueError):
    """Whether a number is a multiple cannot be told by its last digits."""


def number_text(facts: Facts) -> Expr:
    """Return the texts of the numbers that the facts allow (integers, fractions or both).

    Raises:
        NeedsRemainders: a multipleOf that is not 2, 5 or a product of these; see remainders_text.
    """
    with localcontext(prec=PRECISION):
        return _number_text(facts)


def scientific_text(facts: Facts) -> Expr:
    """Return the numbers within the bounds that are written with an exponent, 1.5e-07.

    One digit stands before the point, and no number is too large or too small for 64 bits.
    """
    with localcontext(prec=PRECISION):
        low, high = _as_read(facts.low, inf), _as_read(facts.high, -inf)
        positive = _scientific(low, high)
        negative = _scientific(_mirrored(high), _mirrored(low))
    return regex.union([positive, regex.concat([regex.literal("-"), negative])])


def _as_read(bound: Bound | None, inwards: float) -> Bound | None:
    """Return a bound so that no number inside is read as an open bound's own value by 64 bits."""
    if bound is None or not bound.is_open or not bound.value:
        return bound
    nearest = nextafter(float(bound.value), inwards)
    return Bound(Decimal(repr(nearest)), is_open=False) if isfinite(nearest) else bound


def _scientific(low: Bound | None, high: Bound | None) -> Expr:
    """Return the positive numbers between bounds."""
    if low is None or low.value <= 0:
        low = Bound(Decimal(1).scaleb(-MAX_EXPONENT), is_open=False)
    if high is None:
        high = Bound(Decimal(10).scaleb(MAX_EXPONENT), is_open=True)
    if high.value <= 0 or low.value > high.value:
        return EMPTY_SET
    first, last = low.value.adjusted(), high.value.adjusted()
    one, ten = Bound(Decimal(1), is_open=False), Bound(Decimal(10), is_open=True)
    least, most = (Bound(b.value.scaleb(-b.value.adjusted()), b.is_open) for b in (low, high))
    if first == last:
        return _with_exponent(least, most, first, first)
    found = [
        _with_exponent(least, ten, first, first),
        _with_exponent(one, ten, first + 1, last - 1),
        _with_exponent(one, most, last, last),
    ]
    return regex.union(found)


def _with_exponent(least: Bound, most: Bound, first: int, last: int) -> Expr:
    """Return the numbers with a mantissa between bounds and an exponent between first and last."""
    first, last = max(first, -MAX_EXPONENT), min(last, MAX_EXPONENT)
    if first > last:
        return EMPTY_SET
    sign = regex.times(regex.literal("+"), 0, 1)
    found = [(sign, max(first, 0), last), (regex.literal("-"), max(-last, 0), -first)]
    exponents = [
        regex.concat([sign, regex.times(_ZERO, 0, 2), _integers(low, high)])
        for sign, low, high in found
        if low <= high
    ]
    exponent = regex.concat([regex.char(chars.of("eE")), regex.union(exponents)])
    return regex.concat([_signless(least, most, _ANY_TAIL), exponent])


def _integers(first: int, last: int) -> Expr:
    low, high = (Bound(Decimal(value), is_open=False) for value in (first, last))
    return _signless(low, high, EPSILON)


def by_kind(facts: Facts) -> list[Facts]:
    """Return integers and fractions apart where multiples are negated: no fraction is a multiple
    of an integer."""
    if not facts.non_multiples:
        return [facts]
    found = []
    for kind in sorted(facts.kinds & NUMBERS):
        others = [n for n in facts.non_multiples if kind == "integer" or unit_of(n)[1]]
        found.append(replace(facts, kinds=frozenset({kind}), non_multiples=tuple(others)))
    is_same = len(found) == 1 and found[0].non_multiples == facts.non_multiples
    return [facts] if is_same else found


def remainders_of(facts: Facts) -> RemainderAutomaton:
    """Return what tells whether a number is a multiple of all it has to be, and of no other.

    Raises:
        TooManyStates: they are too many.
    """
    steps = facts.multiples or tuple(
        Decimal(1).scaleb(-unit_of(other)[1]) for other in facts.non_multiples
    )
    units = [unit_of(step) for step in steps]
    places = max(places for _, places in units)
    unit = lcm(*(unit * 10 ** (places - own) for unit, own in units))
    with localcontext(prec=PRECISION):
        return RemainderAutomaton(Decimal(unit).scaleb(-places), facts.non_multiples)


def remainders_text(facts: Facts, remainders: RemainderAutomaton) -> Expr:
    """Return the numbers that the facts allow but for multipleOf, which remainders are to tell.

    The more remainders there are, the fewer digits numbers have where no bound says more.
    """
    kinds = facts.kinds if remainders.places else facts.kinds - {"fraction"}
    if not kinds:
        return EMPTY_SET
    digits = max(MIN_INTEGER_DIGITS, 3 + MAX_REMAINDERS // remainders.count)
    text = number_text(replace(facts, kinds=kinds, multiples=(), non_multiples=()))
    return regex.intersection(text, _of_digits(_room(facts, digits, remainders.places)))


def _room(facts: Facts, digits: int, places: int) -> int:
    """Return how many digits before the point a multiple of a step with decimals may have.

    Readers of 64 bits round a number of more than 15 digits to one that may be no multiple.
    """
    if places:
        digits = min(digits, max(PRECISE - places, 1))
    bounds = [bound.value for bound in (facts.low, facts.high) if bound is not None]
    return max([digits, *(len(_parts(value.copy_abs())[0]) + 1 for value in bounds)])


def _of_digits(count: int) -> Expr:
    """Return numbers of so many digits before the point."""
    if count >= MAX_INTEGER_DIGITS:
        return ANY_TEXT
    sign = regex.times(regex.literal("-"), 0, 1)
    return regex.concat([sign, regex.times(_DIGIT, 1, count), _ANY_TAIL])


def _number_text(facts: Facts) -> Expr:
    if facts.multiples and facts.low is not None and facts.high is not None:
        listed = _listed(facts)
        if listed is not None:
            return listed
    tail = _ANY_TAIL if "fraction" in facts.kinds else EPSILON
    low, high = facts.low, facts.high
    if tail is not EPSILON:
        low, high = _as_read(low, inf), _as_read(high, -inf)
    positive = _signless(low, high, tail)
    nonzero = Bound(Decimal(1), False) if tail is EPSILON else Bound(Decimal(0), True)
    negative = _signless(tighter(_mirrored(high), nonzero, 1), _mirrored(low), tail)
    shape = _shape(facts)
    positive, negative = regex.intersection(positive, shape), regex.intersection(negative, shape)
    return regex.union([positive, regex.concat([regex.literal("-"), negative])])


def _shape(facts: Facts) -> Expr:
    """Return what else holds for the signless numbers."""
    found = regex.ANY_TEXT
    if "integer" not in facts.kinds:
        found = regex.concat([_INTEGERS, _FRACTION_TAIL])
        if all(_is_short(bound) for bound in (facts.low, facts.high) if bound is not None):
            found = _SHORT_FRACTIONS
    if facts.non_multiples:
        raise NeedsRemainders
    for multiple in facts.multiples:
        room = _of_digits(_room(facts, MAX_INTEGER_DIGITS, unit_of(multiple)[1]))
        found = regex.intersection(regex.intersection(found, room), _multiples(multiple))
    return found


def _is_short(bound: Bound) -> bool:
    whole, fraction = _parts(bound.value.copy_abs())
    return len(whole) <= SHORT_WHOLE and len(fraction) < SHORT_FRACTION


def _mirrored(bound: Bound | None) -> Bound | None:
    return None if bound is None else Bound(-bound.value, bound.is_open)


def _signless(low: Bound | None, high: Bound | None, tail: Expr) -> Expr:
    """Return the signless numbers between bounds, written with the tail or without."""
    if tail is EPSILON:
        low, high = _whole(low, ROUND_CEILING, 1), _whole(high, ROUND_FLOOR, -1)
    if high is not None and (high.value < 0 or (high.is_open and high.value == 0)):
        return EMPTY_SET
    found = regex.concat([_INTEGERS, tail]) if high is None else _at_most(high, tail)
    if low is None or low.value < 0 or (low.value == 0 and not low.is_open):
        return found
    if tail is EPSILON and low.value == 1 and high is None:
        return _POSITIVE
    return _at_least(low, tail) if high is None else regex.intersection(found, _at_least(low, tail))


def _whole(bound: Bound | None, rounding: str, inwards: int) -> Bound | None:
    """Return the closed bound that allows the same integers."""
    if bound is None:
        return None
    value = bound.value.to_integral_value(rounding)
    is_out = bound.is_open and value == bound.value
    return Bound(value + inwards if is_out else value, is_open=False)


def _parts(value: Decimal) -> tuple[str, str]:
    """Return the digits before and after the point, the latter without trailing zeros."""
    whole, _, fraction = f"{value:f}".partition(".")
    return whole, fraction.rstrip("0")


def _digits(first: int, last: int) -> Expr:
    return regex.char(((48 + first, 48 + last),)) if first <= last else EMPTY_SET


def _any_digits(least: int, most: int) -> Expr:
    return regex.times(_DIGIT, least, most) if most >= least else EMPTY_SET


def _at_least(bound: Bound, any_tail: Expr) -> Expr:
    whole, fraction = _parts(bound.value)
    most = max(MAX_INTEGER_DIGITS - 1, len(whole))
    longer = regex.concat([_NONZERO, _any_digits(len(whole), most)])
    greater = [
        regex.concat(
            [
                regex.literal(whole[:index]),
                _digits(int(digit) + 1, 9),
                regex.times(_DIGIT, *[len(whole) - index - 1] * 2),
            ]
        )
        for index, digit in enumerate(whole)
    ]
    above = regex.concat([regex.union([longer, *greater]), any_tail])
    tail = _tail_from(fraction, bound) if any_tail is not EPSILON else EPSILON
    return regex.union([above, regex.concat([regex.literal(whole), tail])])


def _tail_from(fraction: str, bound: Bound) -> Expr:
    """Return the tails ".ddd" (or none) that are at least .fraction."""
    if not fraction and not bound.is_open:
        return _ANY_TAIL
    found: Expr = _any_digits(0, MAX_DECIMALS)
    if bound.is_open:
        found = regex.concat([regex.times(_ZERO, 0, MAX_DECIMALS), _NONZERO, found])
    for digit in reversed(fraction):
        larger = regex.concat([_digits(int(digit) + 1, 9), _any_digits(0, MAX_DECIMALS)])
        found = regex.union([larger, regex.concat([regex.literal(digit), found])])
    return regex.concat([_DOT, found])


def _at_most(bound: Bound, any_tail: Expr) -> Expr:
    whole, fraction = _parts(bound.value)
    shorter = (
        regex.concat([_NONZERO, _any_digits(0, len(whole) - 2)]) if len(whole) > 1 else EMPTY_SET
    )
    smaller = [
        regex.concat(
            [
                regex.literal(whole[:index]),
                _digits(1 if index == 0 and len(whole) > 1 else 0, int(digit) - 1),
                regex.times(_DIGIT, *[len(whole) - index - 1] * 2),
            ]
        )
        for index, digit in enumerate(whole)
    ]
    zero = _ZERO if len(whole) > 1 else EMPTY_SET
    under = regex.concat([regex.union([zero, shorter, *smaller]), any_tail])
    tail = _tail_to(fraction, bound) if any_tail is not EPSILON else EPSILON
    return regex.union([under, regex.concat([regex.literal(whole), tail])])


def _tail_to(fraction: str, bound: Bound) -> Expr:
    """Return the tails ".ddd" (or none) that are at most .fraction."""
    zeros = EMPTY_SET if bound.is_open else regex.times(_ZERO, 1, MAX_DECIMALS)
    if not fraction:
        return EMPTY_SET if bound.is_open else regex.union([EPSILON, regex.concat([_DOT, zeros])])
    found = regex.union([EPSILON, zeros]) if not bound.is_open else EMPTY_SET
    for index in range(len(fraction) - 1, -1, -1):
        digit = fraction[index]
        less = regex.concat([_digits(0, int(digit) - 1), _any_digits(0, MAX_DECIMALS)])
        # Ending before the bound's own digits do is smaller, unless no digit was written at all.
        short = EPSILON if index else EMPTY_SET
        found = regex.union([short, less, regex.concat([regex.literal(digit), found])])
    return regex.union([EPSILON, regex.concat([_DOT, found])])


def _multiples(multiple: Decimal) -> Expr:
    """Return signless numbers that are multiples, where their last digits tell.

    Raises:
        NeedsRemainders: they don't.
    """
    step, places = unit_of(multiple)
    scale = 10**places
    while scale % step and scale < MAX_SCALE:
        scale *= 10
    if scale % step or places > MAX_DECIMALS:
        raise NeedsRemainders
    if step == 1:
        tail = regex.concat([_DOT, regex.times(_DIGIT, 1, places)]) if places else EMPTY_SET
        return regex.concat([_INTEGERS, regex.union([EPSILON, tail])])
    return _ending_in(range(0, scale, step), len(str(scale)) - 1, places)


def _ending_in(remainders: Iterable[int], width: int, places: int) -> Expr:
    """Return the numbers whose last `width` digits are among the remainders."""
    found = []
    for remainder in remainders:
        ending = f"{remainder:0{width}d}"
        whole, fraction = ending[: width - places], ending[width - places :].rstrip("0")
        tail = regex.literal("." + fraction) if fraction else EPSILON
        front = regex.concat([_NONZERO, _any_digits(0, MAX_INTEGER_DIGITS - 1 - len(whole))])
        if not whole:
            found.append(regex.concat([_INTEGERS, tail]))
            continue
        alone = regex.literal(str(int(whole)))
        found.append(
            regex.concat([regex.union([alone, regex.concat([front, regex.literal(whole)])]), tail])
        )
    return regex.union(found)


def _listed(facts: Facts) -> Expr | None:
    """Return the multiples between the bounds one by one, unless they are too many."""
    assert facts.low is not None and facts.high is not None
    step = max(facts.multiples)
    first = (facts.low.value / step).to_integral_value(ROUND_CEILING)
    last = (facts.high.value / step).to_integral_value(ROUND_FLOOR)
    if last - first > MAX_LISTED:
        return None
    values = [step * count for count in range(int(first), int(last) + 1)]
    return regex.union(regex.literal(_written(v)) for v in values if _is_inside(facts, v))


def _is_inside(facts: Facts, value: Decimal) -> bool:
    assert facts.low is not None and facts.high is not None
    if any(b.is_open and value == b.value for b in (facts.low, facts.high)):
        return False
    kind = "integer" if value == value.to_integral_value() else "fraction"
    if kind not in facts.kinds or any(value % other == 0 for other in facts.non_multiples):
        return False
    return all(value % multiple == 0 for multiple in facts.multiples)


def _written(value: Decimal) -> str:
    whole, fraction = _parts(value.copy_abs())
    return ("-" if value < 0 else "") + whole + ("." + fraction if fraction else "")
