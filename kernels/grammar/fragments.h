// Fragments: what may follow inside a string, whatever the text around it is, kept for all grammars.
//
// Legal is what some stack of a state allows. Stacks that are the same down to some place allow the
// same tokens as long as those end above it; only tokens that go on below must be walked where they
// stand. Law: a mask that is put together so is the one that a walk through the vocabulary gives.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "automaton.h"
#include "rounds.h"

namespace plait::grammar {

// The tokens that end inside a fragment or with it, and the nodes of the vocabulary at which it may
// have ended and tokens go on.
struct Fragment {
  std::vector<uint32_t> mask;
  std::vector<int> exits;
};

class Fragments {
 public:
  // Beyond so many bytes they begin anew.
  Fragments(const Vocabulary& vocabulary, size_t most_bytes);

  // Begin anew if they have grown too large. What generation() was told before is then void.
  void trim();
  int generation() const { return generation_; }
  size_t num_bytes() const { return automaton_->num_bytes() + num_found_bytes_; }

  // Return the number of an operation whose items are numbers, too; equal ones are one.
  int number(Operation operation);
  int repeated(int item);

  // Return the stack that does an operation from some place on and goes on below.
  int push(int op, int a, int b, int c, int below);

  // Return what follows these stacks; nothing: that is too much work.
  const Fragment* find(std::vector<int> stacks);

 private:
  std::pair<int, int> settled(int op, int state);
  const Fragment& at(int state);
  bool search(int state, Fragment& fragment);
  int loop_of(int state);
  int usual_successor(int state);
  bool walk(int start, Fragment& fragment);
  bool differ(int start, int loop, const Fragment& known, Fragment& fragment);
  void allow(int node, int state, Fragment& fragment) const;
  void forbid(int node, Fragment& fragment) const;

  bool count(int state, Fragment& fragment);
  void allow(const Rounds& rounds, Bounds bounds, Fragment& fragment) const;
  const Rounds* rounds_of(int stack, Bounds& bounds);
  bool is_plain(int loop);
  bool is_prefix_free(int op);
  Side side_of(int state, int loop) const;
  void walk(int start, int loop, Rounds& rounds);
  void note(int node, const Place& here, bool is_met, Rounds& rounds) const;

  const Vocabulary& vocabulary_;
  size_t most_bytes_;
  std::unique_ptr<Automaton> automaton_;
  std::unordered_multimap<size_t, int> numbers_;  // of operations, by their hash
  std::unordered_map<uint64_t, std::pair<int, int>> settled_;  // by operation and state
  std::unordered_map<int, Fragment> found_;       // by state; an empty mask: too much work
  std::map<std::pair<int, int>, Rounds> rounds_;  // by stack and loop, both without bounds
  size_t num_found_bytes_ = 0;
  int generation_ = 0;
};

}  // namespace plait::grammar
