// Whether a text with gaps can be filled to a text of a grammar: see saturation.py, the reference.
#pragma once

#include <bitset>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "vocabulary.h"

namespace plait::grammar {

// Automata that call each other; the states of all of them are numbered together.
struct Network {
  struct Edge {
    int kind;  // 0: reads nothing, 1: a byte of set `value`, 2: calls nonterminal `value`
    int value;
    int target;
  };
  std::vector<int> first;  // [states + 1] into edges
  std::vector<Edge> edges;
  std::vector<int> starts, finals;  // by nonterminal
  std::vector<std::bitset<256>> sets;
  int root;
};

class Saturation {
 public:
  enum Found { kEmpty, kFilled, kLimit };
  // What leaves a position of the line, beside given bytes; what is inserted at one.
  static constexpr int kAnyByte = 256, kToken = 257, kTokenOrNothing = 258;
  static constexpr int kNothing = 0, kBytes = 1, kTokens = 2;

  // byte_costs: [256] of filled-in bytes; 0: never filled in. The vocabulary may be missing.
  Saturation(Network network, const std::vector<int>& byte_costs,
             std::shared_ptr<const Vocabulary> vocabulary);

  bool has_tokens() const { return vocabulary_ != nullptr; }

  // Answer one question; on kFilled, `filling` holds (position, byte) in the order of the text.
  Found fill(const std::vector<int>& leave, const std::vector<int>& loops, size_t max_items,
             std::vector<std::pair<int, int>>& filling);

 private:
  // The cheapest way to a triple: from the item `before` by a byte, a call or nothing.
  struct Item {
    int state, origin, at, cost;
    int before, callee;  // items; -1: none
    int16_t byte;        // filled in; -1: given, or none
    bool is_settled;
  };
  // A nonterminal entered at a position: who waits for its ends, and those found.
  struct Call {
    std::vector<std::pair<int, int>> waiting;  // item, and the state behind the call
    std::vector<int> ends;
  };

  void push(const Item& item);
  void complete(int index);
  void follow(int index, const Network::Edge& edge);
  void read(int index, const Network::Edge& edge);
  void read_token(int index, const Network::Edge& edge, int first, int node);
  int& call_at(int number, int at);
  int length() const { return static_cast<int>(leave_->size()); }
  // Positions up to the length are those of the line; behind them are the nodes of the vocabulary's
  // trie, once for each position that begins tokens: they stand inside of one.
  int inside(int first, int node) const {
    return length() + 1 + ordinal_[first] * static_cast<int>(vocabulary_->nodes.size()) + node;
  }
  int begin_of(int at) const;
  size_t slot_of(int state, int origin, int at) const;
  void grow();
  std::vector<std::pair<int, int>> filling_of(int index) const;

  Network network_;
  std::shared_ptr<const Vocabulary> vocabulary_;
  std::vector<int> final_of_;  // by state: the nonterminal that ends there, or -1
  std::vector<int> best_, price_;  // by set: the cheapest byte to fill in (-1: none), its cost

  // Of the question that is being answered.
  const std::vector<int>* leave_ = nullptr;
  const std::vector<int>* loops_ = nullptr;
  std::vector<int> ordinal_;  // by position of the line: how many before it begin tokens
  std::vector<int> token_places_;  // those that are
  std::vector<Item> items_;
  std::vector<int> slots_;  // open addressing: items by (state, origin, at), -1: free
  std::vector<Call> calls_;
  std::vector<int> call_of_;  // by nonterminal and position of the line: its call, -1: not entered
  std::unordered_map<uint64_t, int> call_inside_;  // by nonterminal and position inside a token
  std::vector<std::vector<int>> buckets_;  // items by cost, the latest first
  size_t cheapest_ = 0;
};

}  // namespace plait::grammar
