#include "determinise.h"

#include <algorithm>
#include <tuple>

#include "encode.h"

namespace plait::grammar {
namespace {

constexpr uint32_t kEnd = 0x110000;
using Bits = std::vector<uint64_t>;  // a set of character classes

struct Hash {
  size_t operator()(const std::vector<int64_t>& key) const {
    uint64_t hash = key.size();
    for (int64_t part : key) {
      hash ^= static_cast<uint64_t>(part) + 0x9E3779B97F4A7C15u + (hash << 6) + (hash >> 2);
    }
    return hash;
  }
};

// Expressions, each once.
class Pool {
 public:
  static constexpr int kVoid = 0, kEmpty = 1;  // no text, the empty text

  struct Part {
    Expression::Kind kind;
    std::vector<int> items;
    int set = -1;
    int least = 0, most = 0;
    bool is_nullable = false;
  };

  Pool(size_t num_classes, int64_t steps) : words_((num_classes + 63) / 64), steps_(steps) {
    make({Expression::kSet, {}, set_id(Bits(words_, 0)), 0, 0, false});
    make({Expression::kCat, {}, -1, 0, 0, true});
    Bits all(words_, 0);
    for (size_t c = 0; c < num_classes; ++c) all[c / 64] |= uint64_t{1} << (c % 64);
    all_ = make({Expression::kRepeat, {set(all)}, -1, 0, -1, true});
  }

  const Part& operator[](int part) const { return parts_[part]; }

  int set(const Bits& bits) {
    return make({Expression::kSet, {}, set_id(bits), 0, 0, false});
  }

  int cat(int head, int tail) {
    if (head == kVoid || tail == kVoid) return kVoid;
    if (head == kEmpty) return tail;
    if (tail == kEmpty) return head;
    if (parts_[head].kind == Expression::kCat) {
      const int first = parts_[head].items[0], second = parts_[head].items[1];
      return cat(first, cat(second, tail));
    }
    return make({Expression::kCat, {head, tail}, -1, 0, 0,
                 parts_[head].is_nullable && parts_[tail].is_nullable});
  }

  int times(int item, int least, int most) {
    if (most == 0 || item == kEmpty) return kEmpty;
    if (item == kVoid) return least == 0 ? kEmpty : kVoid;
    if (least == 1 && most == 1) return item;
    return make({Expression::kRepeat, {item}, -1, least, most,
                 least == 0 || parts_[item].is_nullable});
  }

  int both(std::vector<int> items) { return meet(Expression::kAnd, std::move(items), all_, kVoid); }
  int either(std::vector<int> items) { return meet(Expression::kOr, std::move(items), kVoid, all_); }

  int negation(int item) {
    if (item == kVoid) return all_;
    if (item == all_) return kVoid;
    if (parts_[item].kind == Expression::kNot) return parts_[item].items[0];
    return make({Expression::kNot, {item}, -1, 0, 0, !parts_[item].is_nullable});
  }

  // Return what may follow a character of the class.
  int derivative(int part, int c) {
    const uint64_t key = static_cast<uint64_t>(part) << 20 | static_cast<uint64_t>(c);
    if (const auto found = derived_.find(key); found != derived_.end()) return found->second;
    spend(1);
    const Part at = parts_[part];
    const int result = derive(at, c);
    derived_.emplace(key, result);
    return result;
  }

  // Collect the sets that the first character is told apart by.
  void first_sets(int part, std::vector<int>& found) {
    spend(1);
    const Part& at = parts_[part];
    if (at.kind == Expression::kSet) {
      found.push_back(at.set);
    } else if (at.kind == Expression::kCat) {
      for (int item : at.items) {
        first_sets(item, found);
        if (!parts_[item].is_nullable) break;
      }
    } else {
      for (int item : at.items) first_sets(item, found);
    }
  }

  bool holds(int set, int c) const { return sets_[set][c / 64] >> (c % 64) & 1; }

 private:
  int derive(const Part& at, int c) {
    if (at.kind == Expression::kSet) return holds(at.set, c) ? kEmpty : kVoid;
    if (at.kind == Expression::kCat) {
      if (at.items.empty()) return kVoid;
      const int head = cat(derivative(at.items[0], c), at.items[1]);
      if (!parts_[at.items[0]].is_nullable) return head;
      return either({head, derivative(at.items[1], c)});
    }
    if (at.kind == Expression::kRepeat) {
      const int less = at.most < 0 ? -1 : at.most - 1;
      const int again = times(at.items[0], std::max(at.least - 1, 0), less);
      return cat(derivative(at.items[0], c), again);
    }
    std::vector<int> items;
    items.reserve(at.items.size());
    for (int item : at.items) items.push_back(derivative(item, c));
    if (at.kind == Expression::kNot) return negation(items[0]);
    return at.kind == Expression::kOr ? either(std::move(items)) : both(std::move(items));
  }

  // Return the union or the intersection of the items: flat, sorted, each once.
  int meet(Expression::Kind kind, std::vector<int> items, int neutral, int absorbing) {
    std::vector<int> flat;
    for (int item : items) {
      if (item == absorbing) return absorbing;
      if (parts_[item].kind == kind) {
        flat.insert(flat.end(), parts_[item].items.begin(), parts_[item].items.end());
      } else if (item != neutral) {
        flat.push_back(item);
      }
    }
    if (kind == Expression::kOr && flat.size() > 1) merge_counters(flat);
    join_sets(kind, flat);
    std::sort(flat.begin(), flat.end());
    flat.erase(std::unique(flat.begin(), flat.end()), flat.end());
    spend(static_cast<int64_t>(flat.size()));
    if (flat.empty()) return neutral;
    if (flat.size() == 1) return flat[0];
    if (std::find(flat.begin(), flat.end(), absorbing) != flat.end()) return absorbing;
    bool nullable = kind == Expression::kAnd;
    for (int item : flat) {
      nullable = kind == Expression::kAnd ? nullable && parts_[item].is_nullable
                                          : nullable || parts_[item].is_nullable;
    }
    return make({kind, std::move(flat), -1, 0, 0, nullable});
  }

  void join_sets(Expression::Kind kind, std::vector<int>& flat) {
    Bits joined;
    size_t kept = 0, sets = 0;
    for (int item : flat) {
      if (parts_[item].kind != Expression::kSet) {
        flat[kept++] = item;
        continue;
      }
      const Bits& bits = sets_[parts_[item].set];
      if (sets++ == 0) {
        joined = bits;
        continue;
      }
      for (size_t w = 0; w < words_; ++w) {
        joined[w] = kind == Expression::kOr ? joined[w] | bits[w] : joined[w] & bits[w];
      }
    }
    flat.resize(kept);
    if (sets > 0) flat.push_back(set(joined));
  }

  // Alternatives X{a,b}T and X{c,d}T whose counts meet or overlap are one: X{min,max}T.
  void merge_counters(std::vector<int>& flat) {
    std::map<std::pair<int, int>, std::vector<std::pair<int, int>>> counters;
    size_t kept = 0;
    for (int item : flat) {
      const bool is_cat = parts_[item].kind == Expression::kCat && !parts_[item].items.empty();
      const Part& head = parts_[is_cat ? parts_[item].items[0] : item];
      const int tail = is_cat ? parts_[item].items[1] : static_cast<int>(kEmpty);
      if (head.kind != Expression::kRepeat) {
        flat[kept++] = item;
        continue;
      }
      counters[{head.items[0], tail}].emplace_back(head.least, head.most);
    }
    flat.resize(kept);
    for (auto& [key, spans] : counters) {
      std::sort(spans.begin(), spans.end());
      auto [low, high] = spans.front();
      for (size_t i = 1; i <= spans.size(); ++i) {
        if (i < spans.size() && (high < 0 || spans[i].first <= high + 1)) {
          high = high < 0 || spans[i].second < 0 ? -1 : std::max(high, spans[i].second);
          continue;
        }
        flat.push_back(cat(times(key.first, low, high), key.second));
        if (i < spans.size()) std::tie(low, high) = spans[i];
      }
    }
  }

  int set_id(const Bits& bits) {
    const auto [found, is_new] = set_ids_.try_emplace(bits, static_cast<int>(sets_.size()));
    if (is_new) sets_.push_back(bits);
    return found->second;
  }

  int make(Part part) {
    std::vector<int64_t> key{part.kind, part.set, part.least, part.most};
    key.insert(key.end(), part.items.begin(), part.items.end());
    const auto [found, is_new] = known_.try_emplace(std::move(key), static_cast<int>(parts_.size()));
    if (is_new) {
      spend(1 + static_cast<int64_t>(part.items.size()));
      parts_.push_back(std::move(part));
    }
    return found->second;
  }

  void spend(int64_t steps) {
    steps_ -= steps;
    if (steps_ < 0) throw TooLarge("its automaton takes too much work");
  }

  size_t words_;
  int64_t steps_;
  int all_ = -1;  // every text
  std::vector<Part> parts_;
  std::vector<Bits> sets_;
  std::map<Bits, int> set_ids_;
  std::unordered_map<std::vector<int64_t>, int, Hash> known_;
  std::unordered_map<uint64_t, int> derived_;
};

// Which characters behave alike, by all sets of an expression.
struct Classes {
  std::vector<std::vector<Range>> ranges;           // of each class
  std::vector<std::vector<int>> of_set;             // classes of each entry that is a set

  explicit Classes(const std::vector<Expression>& expressions) {
    std::vector<uint32_t> cuts{0, 0xD800, 0xE000, kEnd};
    for (const Expression& e : expressions) {
      for (const Range& range : e.ranges) {
        cuts.push_back(range.first);
        cuts.push_back(range.second + 1);
      }
    }
    std::sort(cuts.begin(), cuts.end());
    cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
    std::vector<std::vector<int>> members(cuts.size());  // the sets that an interval is in
    for (size_t e = 0; e < expressions.size(); ++e) {
      for (const Range& range : expressions[e].ranges) {
        auto at = std::lower_bound(cuts.begin(), cuts.end(), range.first) - cuts.begin();
        for (; cuts[at] <= range.second; ++at) members[at].push_back(static_cast<int>(e));
      }
    }
    std::map<std::vector<int>, int> known;
    of_set.resize(expressions.size());
    for (size_t i = 0; i + 1 < cuts.size(); ++i) {
      if (cuts[i] == 0xD800) continue;  // halves of surrogate pairs are no characters
      const auto [found, is_new] =
          known.try_emplace(members[i], static_cast<int>(ranges.size()));
      if (is_new) {
        ranges.emplace_back();
        for (int e : members[i]) of_set[e].push_back(found->second);
      }
      ranges[found->second].emplace_back(cuts[i], cuts[i + 1] - 1);
    }
  }
};

int build(Pool& pool, const std::vector<Expression>& expressions, const Classes& classes) {
  std::vector<int> made;
  for (size_t i = 0; i < expressions.size(); ++i) {
    const Expression& e = expressions[i];
    std::vector<int> items;
    for (int item : e.items) items.push_back(made[item]);
    switch (e.kind) {
      case Expression::kSet: {
        Bits bits((classes.ranges.size() + 63) / 64, 0);
        for (int c : classes.of_set[i]) bits[c / 64] |= uint64_t{1} << (c % 64);
        made.push_back(pool.set(bits));
        break;
      }
      case Expression::kCat:
        made.push_back(items.empty() ? static_cast<int>(Pool::kEmpty)
                                     : pool.cat(items[0], items[1]));
        break;
      case Expression::kOr:
        made.push_back(pool.either(std::move(items)));
        break;
      case Expression::kAnd:
        made.push_back(pool.both(std::move(items)));
        break;
      case Expression::kRepeat:
        made.push_back(pool.times(items[0], e.least, e.most));
        break;
      default:
        made.push_back(pool.negation(items[0]));
    }
  }
  return made.back();
}

// Moves of a state: target and classes.
using Moves = std::vector<std::pair<int, std::vector<int>>>;

Moves moves(Pool& pool, int part, int num_classes) {
  std::vector<int> sets;
  pool.first_sets(part, sets);
  std::sort(sets.begin(), sets.end());
  sets.erase(std::unique(sets.begin(), sets.end()), sets.end());
  std::map<std::vector<bool>, std::vector<int>> alike;
  for (int c = 0; c < num_classes; ++c) {
    std::vector<bool> signature;
    for (int set : sets) signature.push_back(pool.holds(set, c));
    alike[std::move(signature)].push_back(c);
  }
  std::map<int, std::vector<int>> found;
  for (const auto& [signature, members] : alike) {
    const int target = pool.derivative(part, members[0]);
    if (target == Pool::kVoid) continue;
    std::vector<int>& all = found[target];
    all.insert(all.end(), members.begin(), members.end());
  }
  return {found.begin(), found.end()};
}

}  // namespace

std::optional<Dfa> determinise(const std::vector<Expression>& expressions, bool is_quoted,
                               Limits limits) {
  const Classes classes(expressions);
  const int num_classes = static_cast<int>(classes.ranges.size());
  Pool pool(num_classes, limits.steps);
  std::vector<int> order{build(pool, expressions, classes)};
  std::unordered_map<int, int> numbers{{order[0], 0}};
  std::vector<Moves> all;
  for (size_t at = 0; at < order.size(); ++at) {
    Moves found = moves(pool, order[at], num_classes);
    for (auto& [target, members] : found) {
      const auto [number, is_new] = numbers.try_emplace(target, static_cast<int>(order.size()));
      if (is_new) order.push_back(target);
      target = number->second;
    }
    if (static_cast<int>(order.size()) > limits.states) {
      throw TooLarge("its automaton has more than " + std::to_string(limits.states) + " states");
    }
    all.push_back(std::move(found));
  }
  Characters characters;
  for (size_t s = 0; s < order.size(); ++s) {
    characters.accepts.push_back(pool[order[s]].is_nullable);
    auto& edges = characters.edges.emplace_back();
    for (const auto& [target, members] : all[s]) {
      std::vector<Range> ranges;
      for (int c : members) {
        ranges.insert(ranges.end(), classes.ranges[c].begin(), classes.ranges[c].end());
      }
      std::sort(ranges.begin(), ranges.end());
      edges.emplace_back(target, std::move(ranges));
    }
  }
  return encode(characters, is_quoted);
}

}  // namespace plait::grammar
