// From automata over characters to automata over bytes.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "lexeme.h"

namespace plait::grammar {

// States and, for each, the characters (sorted inclusive ranges) that lead to others.
struct Characters {
  std::vector<bool> accepts;
  std::vector<std::vector<std::pair<int, std::vector<std::pair<uint32_t, uint32_t>>>>> edges;
};

// Return the automaton over UTF-8, or over the inside of JSON strings: characters that may stand
// there plainly do, the others are written as the short escape or as \u00xx. None: no text at all.
std::optional<Dfa> encode(const Characters& characters, bool is_quoted);

}  // namespace plait::grammar
