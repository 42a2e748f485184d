// Shortest spellings of what must still be written, counted in tokens.
//
// A tail is one byte and what follows it; equal tails are one entry, so that the fewest tokens for
// a text are computed once for each of its suffixes. Law: `tokens` is the length of the shortest
// segmentation into vocabulary tokens.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "vocabulary.h"

namespace plait::grammar {

constexpr int kUnreachable = 1 << 30;  // more tokens than any budget: it can't be spelled

struct Tail {
  int byte;  // -1: the end
  int rest;
  int tokens;
  int token = -1;  // first token of the shortest segmentation
  int after = -1;  // the tail behind that token
  uint64_t hash = 0;  // of the bytes: the same wherever they are spelled
};

class Tails {
 public:
  explicit Tails(const Vocabulary& vocabulary) : vocabulary_(vocabulary) {
    tails_.push_back({-1, -1, 0});
  }

  const Tail& operator[](int tail) const { return tails_[tail]; }
  size_t size() const { return tails_.size(); }

  // Return the tail that spells the text and then `tail`.
  int prepend(std::string_view text, int tail) {
    for (size_t at = text.size(); at-- > 0;) tail = one(static_cast<uint8_t>(text[at]), tail);
    return tail;
  }

  std::vector<int> token_ids(int tail) const {
    std::vector<int> found;
    for (; tails_[tail].after >= 0; tail = tails_[tail].after) found.push_back(tails_[tail].token);
    return found;
  }

  // Order by tokens, then in an order that is as good as any and costs nothing, however long the
  // tails are: for sorting many of them.
  bool is_nearer(int left, int right) const {
    const Tail &a = tails_[left], &b = tails_[right];
    return a.tokens != b.tokens ? a.tokens < b.tokens : a.hash < b.hash;
  }

  // Order by tokens, then by bytes: a choice between equally short ends must not depend on history.
  bool is_better(int left, int right) const {
    if (tails_[left].tokens != tails_[right].tokens) {
      return tails_[left].tokens < tails_[right].tokens;
    }
    while (left != right && tails_[left].byte == tails_[right].byte) {
      left = tails_[left].rest;
      right = tails_[right].rest;
    }
    return left != right && tails_[left].byte < tails_[right].byte;
  }

 private:
  int one(uint8_t byte, int rest) {
    const uint64_t key = static_cast<uint64_t>(rest) << 8 | byte;
    const auto [found, is_new] = known_.try_emplace(key, static_cast<int>(tails_.size()));
    if (is_new) tails_.push_back(segment(byte, rest));
    return found->second;
  }

  // Choose the best first token of byte + rest; the longest one among equals.
  Tail segment(uint8_t byte, int rest) const {
    Tail tail{byte, rest, kUnreachable};
    tail.hash = (tails_[rest].hash ^ (byte + 1u)) * 0x9E3779B97F4A7C15u;
    tail.hash ^= tail.hash >> 29;
    int at = rest;
    for (int node = vocabulary_.child(0, byte); node >= 0;) {
      const int token = vocabulary_.nodes[node].token;
      if (token >= 0 && tails_[at].tokens + 1 <= tail.tokens) {
        tail.tokens = tails_[at].tokens + 1;
        tail.token = token;
        tail.after = at;
      }
      if (tails_[at].byte < 0) break;
      node = vocabulary_.child(node, static_cast<uint8_t>(tails_[at].byte));
      at = tails_[at].rest;
    }
    return tail;
  }

  const Vocabulary& vocabulary_;
  std::vector<Tail> tails_;
  std::unordered_map<uint64_t, int> known_;
};

}  // namespace plait::grammar
