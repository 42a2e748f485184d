// The pushdown automaton over bytes that says what may come next, and how the text ends soonest.
//
// It is determinised while it runs: a state is a set of stacks, equal stacks and equal states are
// one entry, and each state remembers its successors, its mask and its end. Counts are numbers in
// the stacks. Laws and sources: plait/decoders/constrained/automaton.py, the oracle.
#pragma once

#include <array>
#include <bitset>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "table.h"
#include "tails.h"
#include "vocabulary.h"

namespace plait::grammar {

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
  bool is_accepting(int state) { return states_[state].is_accepting; }
  bool is_final(int state) { return states_[state].is_final; }
  // Return the marks that the last byte has led over, as bits.
  int marks(int state) { return states_[state].marks; }

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
  struct State {
    std::vector<int> stacks;  // each begins with a byte, or is the empty one
    std::array<int32_t, 256> next;
    std::bitset<256> first;  // bytes that can follow
    bool is_accepting = false, is_final = false;
    int marks = 0;
    int closing = -1;
    int canonical = -1;
    std::array<int32_t, 256> moves{};  // how many free moves each successor has taken
    int walk = 0;                       // the last walk through the vocabulary that met it
    std::bitset<256> walked;            // and the bytes that it went on with
    std::vector<uint32_t> mask;
  };

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
  int64_t work_of(int state, uint8_t byte);

  std::vector<Operation> operations_;
  std::shared_ptr<const Vocabulary> vocabulary_;
  Tails tails_;
  std::array<uint8_t, 256> preferred_;  // bytes in the order in which ends are written with them
  int reach_;                           // no token takes more steps of a count than this
  std::vector<Stack> stacks_;
  std::vector<Known> known_;
  std::vector<int> seen_;  // by stack: the last expansion that met it
  int expansion_ = 0, moves_ = 0, marks_ = 0;
  int walk_ = 0;
  std::unordered_map<Stack, int, StackHash> stack_ids_;
  std::vector<std::string> sets_{""};  // of items, as bits, without zero bytes at the end
  std::unordered_map<std::string, int> set_ids_{{"", 0}};
  std::deque<State> states_;
  struct SetHash {
    size_t operator()(const std::vector<int>& key) const;
  };
  std::unordered_map<std::vector<int>, int, SetHash> state_ids_;
  size_t num_stack_entries_ = 0, num_masks_ = 0;
  int start_ = kDead;
};

}  // namespace plait::grammar
