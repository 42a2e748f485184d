// The pushdown automaton over bytes that says what may come next, and how the text ends soonest.
//
// It is determinised while it runs: a state is a set of stacks, equal stacks and equal states are
// one entry, and each state remembers its successors, its mask and its end. Counts are numbers in
// the stacks. Laws and sources: plait/decoders/constrained/automaton.py, the oracle.
#pragma once

#include <array>
#include <bitset>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "table.h"
#include "tails.h"
#include "vocabulary.h"

namespace plait::grammar {

class Fragments;

constexpr int kMaxStacks = 4096;           // of one state; beyond, the dearest are given up
constexpr int kMaxMoves = 1 << 15;         // free moves of one byte; beyond, alternatives are, too
constexpr int kMaxClosingTokens = 8192;    // of any one operation
constexpr int kMaxForced = 256;            // bytes of one forced text
constexpr int64_t kMaxMaskWork = 1 << 19;  // free moves on one way through the vocabulary

class Automaton {
 public:
  static constexpr int kDead = -1;

  // Throws TooLarge where a part's shortest text has more than kMaxClosingTokens.
  Automaton(std::vector<Operation> operations, int root,
            std::shared_ptr<const Vocabulary> vocabulary);

  int start() const { return start_; }
  int size() const { return static_cast<int>(states_.size()); }
  int step(int state, uint8_t byte);
  int advance(int state, int token);
  bool is_accepting(int state) { return states_[state]->is_accepting; }
  bool is_final(int state) { return states_[state]->is_final; }
  // Return the marks that the last byte has led over, as bits.
  int marks(int state) { return states_[state]->marks; }

  // Return how many tokens the shortest end takes, and the tokens.
  int num_closing(int state) { return tails_[closing(state)].tokens; }
  std::vector<int> closing_tokens(int state) { return tails_.token_ids(closing(state)); }

  // Return the legal tokens, one bit each, [words of 32].
  const std::vector<uint32_t>& mask(int state);

  // Return the tokens of the text that must follow: those that leave only the spelling open, and
  // those that spell its rest, over whose end other legal tokens reach.
  std::pair<std::vector<int>, std::vector<int>> forced(int state);

  // Estimate of what has been remembered so far.
  size_t num_bytes() const;

 private:
  friend class Fragments;

  static constexpr int kUnknown = -2;
  static constexpr int kBottom = 0;  // the empty stack

  // What is still to be matched: a place in an operation, then the stack below. a, b, c depend on
  // the operation: kText: offset; kSeq: item; kRepeat: least and most that are left; kListed:
  // range of texts and offset; kLexeme: state and count; kAnyOrder: set of the items that are used,
  // their count as far as it matters, and 1 behind a separator.
  struct Stack {
    int op, a, b, c, below;
    bool operator==(const Stack&) const = default;
  };
  struct StackHash {
    size_t operator()(const Stack& s) const;
  };
  struct Known {  // about a stack
    int tail = -1;
    int canonical = -1;
  };
  struct Edge {
    int after;  // kUnknown: nobody has gone there yet
    int walk;   // the last walk through the vocabulary that did
  };
  struct State {
    std::vector<int> stacks;  // each begins with a byte, or is the empty one
    std::array<Edge, 256> edges;
    std::bitset<256> first;  // bytes that can follow
    bool is_accepting = false, is_final = false;
    int marks = 0;
    int closing = -1;
    int canonical = -1;
    std::array<uint16_t, 256> moves{};  // how many free moves each successor has taken
    std::vector<uint32_t> mask;
  };

  // What fragments are matched by: it has no root, and its operations are added as they are met.
  Automaton(std::shared_ptr<const Vocabulary> vocabulary, Fragments* owner);

  int push(const Stack& stack);
  int begin(int op, int below);
  int expand(std::vector<int> todo, std::vector<int>& ready);
  bool expand_up_to(int limit, std::vector<int> todo, std::vector<int>& ready);
  void move(int stack, std::vector<int>& todo, std::vector<int>& ready);
  void move_any_order(int stack, std::vector<int>& todo);
  bool may_take(const Stack& at, int item) const;
  bool is_used(int set, int item) const;
  int with_item(int set, int item);
  int num_missing(const Stack& at) const;
  std::vector<int> plan(const Stack& at) const;
  int consume(int stack, uint8_t byte);
  int intern(std::vector<int> ready);
  std::bitset<256> first_bytes(int stack) const;
  bool leads_to(int stack, int below) const;

  void estimate();
  bool improve(Operation& operation);
  int cost_of_text(const std::string& text);
  std::string cheapest(int op) const;
  std::string rest(const Stack& stack) const;
  std::string lexeme_rest(const Lexeme& lexeme, int state, int count) const;
  int tail(int stack);
  int closing(int state);

  int canonical_stack(int stack);
  int canonical_state(int state);
  void fill(int state, std::vector<uint32_t>& mask);
  bool fill_below(int node, int state, int64_t& work, std::vector<uint32_t>& mask);
  void allow(int node, std::vector<uint32_t>& mask) const;
  int walk_on(int state, uint8_t byte, int64_t& work);

  // Some stacks of a state as a fragment has them, with what is below all of them.
  struct Part {
    int base;
    std::vector<int> stacks;  // of this automaton
    std::vector<int> places;  // of the fragments' one: the same down to the base
  };
  std::vector<Part> parts_of(const std::vector<int>& stacks, std::vector<int>& others);
  std::pair<Stack, int> top_of(int stack);
  int base_of(int stack) const;
  bool take(int stack, int base, Part& part);
  int shared(int op, int levels);

  std::vector<Operation> operations_;
  std::shared_ptr<const Vocabulary> vocabulary_;
  Tails tails_;
  int reach_;                           // no token takes more steps of a count than this
  std::vector<Stack> stacks_;
  std::vector<Known> known_;
  std::vector<int> seen_;  // by stack: the last expansion that met it
  int expansion_ = 0, moves_ = 0, marks_ = 0;
  int walk_ = 0;
  std::unordered_map<Stack, int, StackHash> stack_ids_;
  std::vector<std::string> sets_{""};  // of items, as bits, without zero bytes at the end
  std::unordered_map<std::string, int> set_ids_{{"", 0}};
  std::vector<std::unique_ptr<State>> states_;
  struct SetHash {
    size_t operator()(const std::vector<int>& key) const;
  };
  std::unordered_map<std::vector<int>, int, SetHash> state_ids_;
  size_t num_stack_entries_ = 0, num_masks_ = 0;
  int start_ = kDead;
  Fragments* owner_ = nullptr;  // whose automaton it is; what is too ambiguous is an error then
  std::vector<int> shared_;  // by operation: its number among the fragments' ones
  int generation_ = 0;       // of the fragments that these numbers are of
};

// Return the state behind a byte. Its free moves are taken from the work that is left, once for
// each walk: how much a walk is depends on nothing that was computed before.
inline int Automaton::walk_on(int state, uint8_t byte, int64_t& work) {
  State& at = *states_[state];
  Edge& edge = at.edges[byte];
  if (edge.walk == walk_) return edge.after;
  edge.walk = walk_;
  if (edge.after == kUnknown) step(state, byte);
  work -= at.moves[byte];
  return edge.after;
}

}  // namespace plait::grammar
