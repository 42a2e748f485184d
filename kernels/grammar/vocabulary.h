// The tokens of a model as a trie over bytes: for masks and for the shortest spelling of a text.
#pragma once

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdint>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

namespace plait::grammar {

class Fragments;

// Nodes are numbered in depth-first order, so that what shares a prefix is one range.
struct Vocabulary {
  struct Node {
    int end;          // one past the node's subtree
    int token = -1;   // lowest token that is spelled here; -1: none
    int first_child;  // into child_bytes and child_nodes, in the order of the bytes
    int num_children;
    uint8_t byte;
    uint8_t depth;  // length of the spelling
  };

  std::vector<std::string> tokens;  // by id; "": never legal in a constrained text
  std::vector<Node> nodes;          // [0] is the root
  std::vector<uint8_t> child_bytes;
  std::vector<int> child_nodes;
  std::vector<std::vector<int>> twins;  // further tokens of a spelling; [k] belongs to twin_of
  std::vector<int> twin_of;             // by node: index into twins, -1: none
  int longest = 1;
  std::array<uint8_t, 256> preferred;  // bytes in the order in which ends are written with them
  std::shared_ptr<Fragments> fragments;  // none: nothing is kept for several grammars

  explicit Vocabulary(std::vector<std::string> spelled) : tokens(std::move(spelled)) {
    std::vector<int> order;
    for (size_t i = 0; i < tokens.size(); ++i) {
      if (!tokens[i].empty()) order.push_back(static_cast<int>(i));
      longest = std::max(longest, static_cast<int>(tokens[i].size()));
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return tokens[a] < tokens[b]; });
    std::vector<int> path{0};
    nodes.push_back({0, -1, 0, 0, 0, 0});
    twin_of.push_back(-1);
    const std::string* previous = nullptr;
    for (int id : order) {
      const std::string& text = tokens[id];
      size_t shared = 0;
      while (previous && shared < previous->size() && shared < text.size() &&
             (*previous)[shared] == text[shared]) {
        ++shared;
      }
      close(path, shared);
      for (size_t at = path.size() - 1; at < text.size(); ++at) {
        path.push_back(static_cast<int>(nodes.size()));
        nodes.push_back({0, -1, 0, 0, static_cast<uint8_t>(text[at]),
                         static_cast<uint8_t>(at + 1)});
        twin_of.push_back(-1);
      }
      spell(path.back(), id);
      previous = &text;
    }
    close(path, 0);
    nodes[0].end = static_cast<int>(nodes.size());
    link();
    prefer();
  }

  enum class Way { kInto, kPast, kEnd };  // below a node, on to the next one, or no further

  // Look at the nodes below a root depth first: go(node, before, here) reads what its parent's call
  // wrote, the start's at first, and writes what its children read. False: some call said kEnd.
  template <class Place, class Go>
  bool walk(int root, const Place& start, Go&& go) const {
    std::vector<Place> path(longest + 1, start);
    for (int at = root + 1; at < nodes[root].end;) {
      const Node& node = nodes[at];
      const Way way = go(at, path[node.depth - 1], path[node.depth]);
      if (way == Way::kEnd) return false;
      at = way == Way::kInto ? at + 1 : node.end;
    }
    return true;
  }

  // Return the child of a node along a byte; -1: no token goes on that way.
  int child(int node, uint8_t byte) const {
    const Node& at = nodes[node];
    const uint8_t* first = child_bytes.data() + at.first_child;
    const uint8_t* last = first + at.num_children;
    const uint8_t* found = std::lower_bound(first, last, byte);
    return found == last || *found != byte ? -1 : child_nodes[found - child_bytes.data()];
  }

  // Tell whether some token begins with the text and goes on.
  bool outgrows(const std::string& text, size_t from) const {
    int node = 0;
    for (size_t at = from; at < text.size(); ++at) {
      node = child(node, static_cast<uint8_t>(text[at]));
      if (node < 0) return false;
    }
    return nodes[node].num_children > 0;
  }

 private:
  void close(std::vector<int>& path, size_t depth) {
    while (path.size() > depth + 1) {
      nodes[path.back()].end = static_cast<int>(nodes.size());
      path.pop_back();
    }
  }

  void spell(int node, int id) {
    if (nodes[node].token < 0) {
      nodes[node].token = id;
      return;
    }
    if (twin_of[node] < 0) {
      twin_of[node] = static_cast<int>(twins.size());
      twins.emplace_back();
    }
    twins[twin_of[node]].push_back(id);
  }

  void prefer() {
    const auto order = [&](int byte) {
      const int node = child(0, static_cast<uint8_t>(byte));
      const bool is_spelled = node >= 0 && nodes[node].token >= 0;
      return std::make_tuple(!is_spelled, byte >= 128 || !std::isalnum(byte), byte);
    };
    for (int b = 0; b < 256; ++b) preferred[b] = static_cast<uint8_t>(b);
    std::sort(preferred.begin(), preferred.end(),
              [&](int a, int b) { return order(a) < order(b); });
  }

  void link() {
    for (size_t i = 0; i < nodes.size(); ++i) {
      nodes[i].first_child = static_cast<int>(child_bytes.size());
      for (int at = static_cast<int>(i) + 1; at < nodes[i].end; at = nodes[at].end) {
        child_bytes.push_back(nodes[at].byte);
        child_nodes.push_back(at);
      }
      nodes[i].num_children = static_cast<int>(child_bytes.size()) - nodes[i].first_child;
    }
  }
};

}  // namespace plait::grammar
