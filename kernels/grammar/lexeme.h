// Deterministic automata over bytes whose texts have a bounded number of characters.
//
// The length of a text is counted, never unrolled: a window least..most costs two numbers, however
// wide it is. What must be known for that is which lengths a text can still have from a state.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <stdexcept>
#include <string>
#include <vector>

namespace plait::grammar {

class TooLarge : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// States are numbered; 0 is the start. Every state can reach an accepting one.
struct Dfa {
  std::string classes;      // [256] class of each byte
  int num_classes = 0;
  std::vector<int> next;    // [states, classes]; -1: dead
  std::string accepts;      // [states] 0 or 1
  std::string boundaries;   // [states] 1: reached when a character is complete

  int size() const { return static_cast<int>(accepts.size()); }
  int step(int state, uint8_t byte) const {
    return next[static_cast<size_t>(state) * num_classes + static_cast<uint8_t>(classes[byte])];
  }
};

// The numbers of characters that texts can have from each state on.
class Lengths {
 public:
  // Without a window only the least length of each state is ever asked for.
  Lengths(const Dfa& dfa, int least, int most) : dfa_(dfa) {
    bound();
    const bool is_counted = least > 0 || most >= 0;
    if (is_counted && !is_exact()) list(least, most);
  }

  // Return the least possible length that is `from` at least; -1: there is none.
  int next_from(int state, int from) const {
    if (bits_.empty()) {
      const int found = std::max(low_[state], from);
      return found <= high_[state] ? found : -1;
    }
    const std::vector<uint64_t>& bits = bits_[state];
    size_t word = static_cast<size_t>(from) / 64;
    if (word >= bits.size()) return -1;
    uint64_t left = bits[word] >> (from % 64) << (from % 64);
    while (left == 0 && ++word < bits.size()) left = bits[word];
    return left == 0 ? -1 : static_cast<int>(word * 64 + __builtin_ctzll(left));
  }

  // Whether from every state all lengths from its least one on are possible.
  bool is_endless() const { return is_endless_; }

  // Return the largest of the least lengths.
  int farthest() const { return farthest_; }

 private:
  static constexpr int kEndless = 1 << 30;
  static constexpr size_t kMaxBits = size_t{1} << 29;

  template <typename Visit>
  void edges(int state, Visit visit) const {
    const int* row = dfa_.next.data() + static_cast<size_t>(state) * dfa_.num_classes;
    for (int c = 0; c < dfa_.num_classes; ++c) {
      if (row[c] >= 0) visit(row[c], dfa_.boundaries[row[c]]);
    }
  }

  std::vector<std::vector<int>> sources() const {
    std::vector<std::vector<int>> found(dfa_.size());
    for (int s = 0; s < dfa_.size(); ++s) {
      edges(s, [&](int target, int) {
        if (found[target].empty() || found[target].back() != s) found[target].push_back(s);
      });
    }
    return found;
  }

  // Fill the least and the greatest length of each state.
  void bound() {
    const int size = dfa_.size();
    low_.assign(size, kEndless);
    high_.assign(size, -1);
    const auto before = sources();
    std::deque<int> todo;
    for (int s = 0; s < size; ++s) {
      if (dfa_.accepts[s]) {
        low_[s] = 0;
        todo.push_back(s);
      }
    }
    while (!todo.empty()) {  // 0-1 breadth first
      const int at = todo.front();
      todo.pop_front();
      for (int s : before[at]) {
        const int length = low_[at] + dfa_.boundaries[at];
        if (length >= low_[s]) continue;
        low_[s] = length;
        dfa_.boundaries[at] ? todo.push_back(s) : todo.push_front(s);
      }
    }
    longest(before);
    is_endless_ = true;
    for (int s = 0; s < size; ++s) {
      is_endless_ = is_endless_ && high_[s] >= kEndless;
      farthest_ = std::max(farthest_, low_[s]);
    }
  }

  // States are finished once all they lead to are; those on or before a cycle never are.
  void longest(const std::vector<std::vector<int>>& before) {
    const int size = dfa_.size();
    std::vector<int> open(size, 0), done;
    for (int s = 0; s < size; ++s) {
      std::vector<int> targets;
      edges(s, [&](int target, int) { targets.push_back(target); });
      std::sort(targets.begin(), targets.end());
      open[s] = static_cast<int>(std::unique(targets.begin(), targets.end()) - targets.begin());
      if (open[s] == 0) done.push_back(s);
    }
    while (!done.empty()) {
      const int at = done.back();
      done.pop_back();
      int& high = high_[at] = dfa_.accepts[at] ? 0 : -1;
      edges(at, [&](int target, int step) { high = std::max(high, high_[target] + step); });
      for (int s : before[at]) {
        if (--open[s] == 0) done.push_back(s);
      }
    }
    for (int s = 0; s < size; ++s) {
      if (open[s] > 0) high_[s] = kEndless;
    }
  }

  // Tell whether low..high is what each state's edges give; then, by induction, no gap is in it.
  bool is_exact() const {
    std::vector<std::pair<int, int>> parts;
    for (int s = 0; s < dfa_.size(); ++s) {
      parts.clear();
      if (dfa_.accepts[s]) parts.emplace_back(0, 0);
      edges(s, [&](int target, int step) {
        parts.emplace_back(low_[target] + step, high_[target] + step);
      });
      std::sort(parts.begin(), parts.end());
      int reached = parts.empty() ? -1 : parts.front().first - 1;
      for (const auto& [low, high] : parts) {
        if (low > reached + 1) return false;
        reached = std::max(reached, high);
      }
    }
    return true;
  }

  // Write the lengths down one by one, as far as the window may ask for them: what has `least`
  // characters or more goes on from where these lead, for `farthest` more at most.
  void list(int least, int most) {
    const size_t size = dfa_.size();
    const int last = least + farthest_;
    const size_t limit = static_cast<size_t>(most >= 0 ? std::min(most, last) : last) + 1;
    if (size * limit > kMaxBits) throw TooLarge("its possible lengths are too many to list");
    bits_.assign(size, std::vector<uint64_t>(limit / 64 + 1, 0));
    is_endless_ = false;
    const auto before = sources();
    std::vector<int> layer, todo;
    for (size_t length = 0; length < limit; ++length) {
      const auto add = [&](int state) {
        uint64_t& word = bits_[state][length / 64];
        const uint64_t bit = uint64_t{1} << (length % 64);
        if (!(word & bit)) {
          word |= bit;
          todo.push_back(state);
        }
      };
      if (length == 0) {
        for (size_t s = 0; s < size; ++s) {
          if (dfa_.accepts[s]) add(static_cast<int>(s));
        }
      }
      for (int at : layer) {
        if (dfa_.boundaries[at]) {
          for (int s : before[at]) add(s);
        }
      }
      layer.clear();
      while (!todo.empty()) {
        const int at = todo.back();
        todo.pop_back();
        layer.push_back(at);
        if (!dfa_.boundaries[at]) {
          for (int s : before[at]) add(s);
        }
      }
      if (layer.empty()) break;
    }
  }

  const Dfa& dfa_;
  std::vector<int> low_, high_;
  std::vector<std::vector<uint64_t>> bits_;
  bool is_endless_ = false;
  int farthest_ = 0;
};

// The texts of a dfa with least..most characters (most -1: without end).
struct Lexeme {
  Dfa dfa;
  int least, most;
  Lengths lengths;

  Lexeme(Dfa automaton, int low, int high)
      : dfa(std::move(automaton)), least(low), most(high), lengths(dfa, low, high) {}
  Lexeme(const Lexeme&) = delete;

  bool is_counted() const { return least > 0 || most >= 0; }

  // Return how many characters more the shortest text has after `count` of them; -1: none fits.
  int missing(int state, int count) const {
    const int found = lengths.next_from(state, std::max(least - count, 0));
    return found < 0 || (most >= 0 && count + found > most) ? -1 : found;
  }

  bool ends(int state, int count) const {
    return dfa.accepts[state] && count >= least && (most < 0 || count <= most);
  }
};

}  // namespace plait::grammar
