// From regular expressions with intersection and complement to automata over bytes.
//
// Source: Brzozowski 1964, "Derivatives of regular expressions" (differences: repetition counters
// stay numbers, and counters of alternatives that differ in nothing else are merged; characters come
// in classes of equal behaviour).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "lexeme.h"

namespace plait::grammar {

using Range = std::pair<uint32_t, uint32_t>;  // inclusive code points

// An expression as it is handed over: items are indices of earlier entries.
struct Expression {
  enum Kind { kSet, kCat, kOr, kRepeat, kAnd, kNot } kind;
  std::vector<int> items;
  std::vector<Range> ranges;  // kSet
  int least = 0, most = 0;    // kRepeat; most -1: without end
};

struct Limits {
  int states;     // of characters
  int64_t steps;  // parts of expressions looked at
};

// Return the automaton of the last expression, with characters as UTF-8 or as JSON strings have
// them; none: it holds no text. Throws TooLarge beyond the limits.
std::optional<Dfa> determinise(const std::vector<Expression>& expressions, bool is_quoted,
                               Limits limits);

}  // namespace plait::grammar
