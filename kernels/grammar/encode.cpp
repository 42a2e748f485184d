#include "encode.h"

#include <algorithm>
#include <map>
#include <string>

namespace plait::grammar {
namespace {

using Bytes = std::vector<std::pair<uint8_t, uint8_t>>;  // a range for each byte
// What is left of a spelling, and the state behind it.
using Spelling = std::pair<Bytes, int>;

void append_utf8(uint32_t code, uint8_t* out, int length) {
  if (length == 1) {
    out[0] = static_cast<uint8_t>(code);
    return;
  }
  for (int i = length - 1; i > 0; --i) {
    out[i] = static_cast<uint8_t>(0x80 | (code & 0x3F));
    code >>= 6;
  }
  out[0] = static_cast<uint8_t>((0xF00 >> length & 0xFF) | code);
}

// Split encodings of one length into products of byte ranges.
void split(const uint8_t* low, const uint8_t* high, int left, Bytes& front, int target,
           std::vector<Spelling>& found) {
  if (left == 1) {
    front.emplace_back(*low, *high);
    found.emplace_back(front, target);
    front.pop_back();
    return;
  }
  static const uint8_t least[] = {0x80, 0x80, 0x80}, most[] = {0xBF, 0xBF, 0xBF};
  const auto recurse = [&](uint8_t first, uint8_t last, const uint8_t* from, const uint8_t* to) {
    front.emplace_back(first, last);
    split(from, to, left - 1, front, target, found);
    front.pop_back();
  };
  if (*low == *high) return recurse(*low, *low, low + 1, high + 1);
  int first = *low, last = *high;
  if (!std::equal(low + 1, low + left, least)) recurse(*low, *low, low + 1, most), ++first;
  const bool is_cut = !std::equal(high + 1, high + left, most);
  if (is_cut) --last;
  if (first <= last) {
    front.emplace_back(static_cast<uint8_t>(first), static_cast<uint8_t>(last));
    for (int i = 1; i < left; ++i) front.emplace_back(0x80, 0xBF);
    found.emplace_back(front, target);
    front.resize(front.size() - left);
  }
  if (is_cut) recurse(*high, *high, least, high + 1);
}

void spell_plain(uint32_t first, uint32_t last, int target, std::vector<Spelling>& found) {
  static const std::pair<uint32_t, uint32_t> bounds[] = {
      {0, 0x7F}, {0x80, 0x7FF}, {0x800, 0xFFFF}, {0x10000, 0x10FFFF}};
  for (int length = 1; length <= 4; ++length) {
    const auto [from, to] = bounds[length - 1];
    if (first > to || last < from) continue;
    uint8_t low[4], high[4];
    append_utf8(std::max(first, from), low, length);
    append_utf8(std::min(last, to), high, length);
    Bytes front;
    split(low, high, length, front, target, found);
  }
}

std::string escape(uint32_t code) {
  static const std::map<uint32_t, char> shorts{{'"', '"'},  {'\\', '\\'}, {'\b', 'b'}, {'\f', 'f'},
                                               {'\n', 'n'}, {'\r', 'r'},  {'\t', 't'}};
  if (const auto found = shorts.find(code); found != shorts.end()) {
    return std::string("\\") + found->second;
  }
  const char* digits = "0123456789abcdef";
  return std::string("\\u00") + digits[code >> 4] + digits[code & 15];
}

void spell_quoted(uint32_t first, uint32_t last, int target, std::vector<Spelling>& found) {
  const auto is_plain = [](uint32_t code) { return code >= 0x20 && code != '"' && code != '\\'; };
  for (uint32_t code = first; code <= last && code < 0x60; ++code) {
    if (is_plain(code)) continue;
    Bytes bytes;
    for (char c : escape(code)) bytes.emplace_back(c, c);
    found.emplace_back(std::move(bytes), target);
  }
  static const std::pair<uint32_t, uint32_t> plain[] = {
      {0x20, 0x21}, {0x23, 0x5B}, {0x5D, 0x10FFFF}};
  for (const auto& [from, to] : plain) {
    if (first <= to && last >= from) {
      spell_plain(std::max(first, from), std::min(last, to), target, found);
    }
  }
}

struct Edge {
  uint8_t first, last;
  int target;
};

class Encoder {
 public:
  explicit Encoder(const Characters& characters, bool is_quoted) {
    const size_t size = characters.edges.size();
    for (size_t s = 0; s < size; ++s) add(characters.accepts[s], true);
    for (size_t s = 0; s < size; ++s) {
      std::vector<Spelling> found;
      for (const auto& [target, ranges] : characters.edges[s]) {
        for (const auto& [first, last] : ranges) {
          is_quoted ? spell_quoted(first, last, target, found)
                    : spell_plain(first, last, target, found);
        }
      }
      auto rows = branch(std::move(found));
      edges_[s] = std::move(rows);
    }
  }

  std::optional<Dfa> finish() {
    const std::vector<int> numbers = number(alive());
    if (numbers[0] != 0) return std::nullopt;
    Dfa dfa;
    class_bytes(dfa);
    size_t size = 0;
    for (int n : numbers) size += n >= 0;
    dfa.accepts.resize(size);
    dfa.boundaries.resize(size);
    dfa.next.assign(size * dfa.num_classes, -1);
    for (size_t s = 0; s < edges_.size(); ++s) {
      if (numbers[s] < 0) continue;
      dfa.accepts[numbers[s]] = accepts_[s];
      dfa.boundaries[numbers[s]] = boundaries_[s];
      for (const Edge& edge : edges_[s]) {
        if (numbers[edge.target] < 0) continue;
        for (int b = edge.first; b <= edge.last; ++b) {
          const size_t row = static_cast<size_t>(numbers[s]) * dfa.num_classes;
          dfa.next[row + static_cast<uint8_t>(dfa.classes[b])] = numbers[edge.target];
        }
      }
    }
    return dfa;
  }

 private:
  int add(bool accepts, bool is_boundary) {
    edges_.emplace_back();
    accepts_.push_back(accepts);
    boundaries_.push_back(is_boundary);
    return static_cast<int>(edges_.size()) - 1;
  }

  // Return the edges of a state from which the spellings go out; none is a prefix of another.
  std::vector<Edge> branch(std::vector<Spelling> spellings) {
    std::vector<int> cuts;
    for (const auto& [bytes, target] : spellings) {
      cuts.push_back(bytes[0].first);
      cuts.push_back(bytes[0].second + 1);
    }
    std::sort(cuts.begin(), cuts.end());
    cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
    std::vector<std::vector<Spelling>> behind(cuts.size());
    for (const auto& [bytes, target] : spellings) {
      size_t at = std::lower_bound(cuts.begin(), cuts.end(), bytes[0].first) - cuts.begin();
      for (; cuts[at] <= bytes[0].second; ++at) {
        behind[at].emplace_back(Bytes(bytes.begin() + 1, bytes.end()), target);
      }
    }
    std::vector<Edge> edges;
    for (size_t i = 0; i + 1 < cuts.size(); ++i) {
      if (behind[i].empty()) continue;
      const int target = behind[i][0].first.empty() ? behind[i][0].second : inside(behind[i]);
      if (!edges.empty() && edges.back().target == target && edges.back().last + 1 == cuts[i]) {
        edges.back().last = static_cast<uint8_t>(cuts[i + 1] - 1);
      } else {
        edges.push_back({static_cast<uint8_t>(cuts[i]), static_cast<uint8_t>(cuts[i + 1] - 1),
                         target});
      }
    }
    return edges;
  }

  // Return the state inside a character that these spellings lead on from.
  int inside(std::vector<Spelling> spellings) {
    std::sort(spellings.begin(), spellings.end());
    if (const auto found = inside_.find(spellings); found != inside_.end()) return found->second;
    auto edges = branch(spellings);
    const int state = add(false, false);
    edges_[state] = std::move(edges);
    inside_.emplace(std::move(spellings), state);
    return state;
  }

  std::vector<bool> alive() const {
    std::vector<std::vector<int>> before(edges_.size());
    std::vector<bool> found(edges_.size(), false);
    std::vector<int> todo;
    for (size_t s = 0; s < edges_.size(); ++s) {
      for (const Edge& edge : edges_[s]) before[edge.target].push_back(static_cast<int>(s));
      if (accepts_[s]) {
        found[s] = true;
        todo.push_back(static_cast<int>(s));
      }
    }
    while (!todo.empty()) {
      const int at = todo.back();
      todo.pop_back();
      for (int s : before[at]) {
        if (!found[s]) {
          found[s] = true;
          todo.push_back(s);
        }
      }
    }
    return found;
  }

  // Number the states that are alive and reached, by breadth; -1: the others.
  std::vector<int> number(const std::vector<bool>& alive) const {
    std::vector<int> numbers(edges_.size(), -1), order;
    const auto visit = [&](int s) {
      if (!alive[s] || numbers[s] >= 0) return;
      numbers[s] = static_cast<int>(order.size());
      order.push_back(s);
    };
    visit(0);
    for (size_t i = 0; i < order.size(); ++i) {
      for (const Edge& edge : edges_[order[i]]) visit(edge.target);
    }
    return numbers;
  }

  // Give bytes that no edge tells apart the same class.
  void class_bytes(Dfa& dfa) const {
    std::vector<bool> cut(257, false);
    for (const auto& edges : edges_) {
      for (const Edge& edge : edges) {
        cut[edge.first] = true;
        cut[edge.last + 1] = true;
      }
    }
    dfa.classes.assign(256, 0);
    int current = 0;
    for (int b = 1; b < 256; ++b) {
      current += cut[b];
      dfa.classes[b] = static_cast<char>(current);
    }
    dfa.num_classes = current + 1;
  }

  std::vector<std::vector<Edge>> edges_;
  std::vector<bool> accepts_, boundaries_;
  std::map<std::vector<Spelling>, int> inside_;
};

}  // namespace

std::optional<Dfa> encode(const Characters& characters, bool is_quoted) {
  return Encoder(characters, is_quoted).finish();
}

}  // namespace plait::grammar
