// Rounds of a loop that tokens need, found in one walk for all bounds of the loop.
//
// From a stack above a loop that has least..most rounds left, the vocabulary is walked as if it had
// any number. How often each token comes back to the loop, and whether it has left it, tells for
// which bounds it is legal. That holds where rounds are read in one way: no text of the item begins
// another one, and no byte both begins a round and goes on behind the loop.
// Law: what is allowed is what a walk with those bounds allows.
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

namespace plait::grammar {

// How many rounds are left; most -1: without end.
struct Bounds {
  int least, most;

  // Tell whether a loop that was come back to so often, the first time without a round, may be left.
  bool may_leave(int met) const { return met > least && (most < 0 || met <= most + 1); }
  // Return how many numbers of rounds, from none on, are few enough, of so many.
  size_t num_legal(size_t numbers) const {
    return most < 0 ? numbers : std::min(numbers, static_cast<size_t>(most) + 1);
  }
};

enum class Side { kInside, kBehind, kBoth };  // of a loop

// Where a walk through the vocabulary is, and how often it has come to the loop.
struct Place {
  int state, met;
  Side side;
};

// Nodes of the vocabulary at which a token may end or go on, and what they need.
struct Rounds {
  std::vector<std::vector<int>> inside;     // [rounds that have begun] in the loop, or above it
  std::vector<std::pair<int, int>> behind;  // and how often the loop was met
  std::vector<std::pair<int, int>> exits;   // behind the fragment, likewise
  bool is_whole = false;                    // false: it was given up

  size_t num_bytes() const {
    size_t found = sizeof(Rounds) + 8 * (behind.size() + exits.size());
    for (const std::vector<int>& nodes : inside) found += sizeof(nodes) + 4 * nodes.size();
    return found;
  }
};

}  // namespace plait::grammar
