#include "saturation.h"

#include <algorithm>

namespace plait::grammar {

Saturation::Saturation(Network network, const std::vector<int>& byte_costs,
                       std::shared_ptr<const Vocabulary> vocabulary)
    : network_(std::move(network)),
      vocabulary_(std::move(vocabulary)),
      final_of_(network_.first.size() - 1, -1) {
  for (size_t i = 0; i < network_.finals.size(); ++i) {
    final_of_[network_.finals[i]] = static_cast<int>(i);
  }
  for (const auto& members : network_.sets) {
    int best = -1;
    for (int byte = 0; byte < 256; ++byte) {
      if (!members[byte] || !byte_costs[byte]) continue;
      if (best < 0 || byte_costs[byte] < byte_costs[best]) best = byte;
    }
    best_.push_back(best);
    price_.push_back(best < 0 ? 0 : byte_costs[best]);
  }
}

Saturation::Found Saturation::fill(const std::vector<int>& leave, const std::vector<int>& loops,
                                   size_t max_items, std::vector<std::pair<int, int>>& filling) {
  leave_ = &leave;
  loops_ = &loops;
  ordinal_.clear();
  token_places_.clear();
  for (size_t i = 0; i <= leave.size(); ++i) {
    ordinal_.push_back(static_cast<int>(token_places_.size()));
    const bool is_left_by_token = i < leave.size() && leave[i] > kAnyByte;
    if (is_left_by_token || loops[i] == kTokens) token_places_.push_back(static_cast<int>(i));
  }
  items_.clear();
  slots_.assign(1 << 12, -1);
  calls_.clear();
  call_inside_.clear();
  call_of_.assign(network_.starts.size() * (leave.size() + 1), -1);
  buckets_.clear();
  cheapest_ = 0;
  const int goal = network_.finals[network_.root], last = static_cast<int>(leave.size());
  call_of_[network_.root * (leave.size() + 1)] = 0;
  calls_.emplace_back();
  push({network_.starts[network_.root], 0, 0, 0, -1, -1, -1, false});
  while (items_.size() <= max_items) {
    while (cheapest_ < buckets_.size() && buckets_[cheapest_].empty()) ++cheapest_;
    if (cheapest_ == buckets_.size()) return kEmpty;
    const int index = buckets_[cheapest_].back();
    buckets_[cheapest_].pop_back();
    Item& item = items_[index];
    if (item.is_settled || item.cost != static_cast<int>(cheapest_)) continue;
    item.is_settled = true;
    if (item.state == goal && item.origin == 0 && item.at == last) {
      filling = filling_of(index);
      return kFilled;
    }
    const int state = item.state, at = item.at;  // items move when one is added
    complete(index);
    for (int e = network_.first[state]; e < network_.first[state + 1]; ++e) {
      follow(index, network_.edges[e]);
    }
    if (at < last && leave[at] == kTokenOrNothing) {
      const Item& own = items_[index];
      push({state, own.origin, at + 1, own.cost, index, -1, -1, false});
    }
  }
  return kLimit;
}

void Saturation::push(const Item& item) {
  size_t slot = slot_of(item.state, item.origin, item.at);
  int index = slots_[slot];
  if (index < 0) {
    if (2 * (items_.size() + 1) > slots_.size()) {
      grow();
      slot = slot_of(item.state, item.origin, item.at);
    }
    index = slots_[slot] = static_cast<int>(items_.size());
    items_.push_back(item);
  } else if (items_[index].is_settled || items_[index].cost <= item.cost) {
    return;
  } else {
    items_[index] = item;
  }
  const size_t cost = static_cast<size_t>(item.cost);
  if (cost >= buckets_.size()) buckets_.resize(cost + 1);
  buckets_[cost].push_back(index);
  cheapest_ = std::min(cheapest_, cost);  // a call begins at cost 0 again
}

// Go on behind the calls of a nonterminal that has ended.
void Saturation::complete(int index) {
  const Item item = items_[index];
  const int number = final_of_[item.state];
  if (number < 0) return;
  const int which = call_at(number, item.origin);
  calls_[which].ends.push_back(index);
  for (size_t i = 0; i < calls_[which].waiting.size(); ++i) {
    const auto [caller, target] = calls_[which].waiting[i];
    push({target, items_[caller].origin, item.at, items_[caller].cost + item.cost, caller, index,
          -1, false});
  }
}

void Saturation::follow(int index, const Network::Edge& edge) {
  const Item item = items_[index];
  if (edge.kind == 0) {
    push({edge.target, item.origin, item.at, item.cost, index, -1, -1, false});
  } else if (edge.kind == 1) {
    read(index, edge);
  } else {
    int& which = call_at(edge.value, item.at);
    const int start = network_.starts[edge.value];
    if (which < 0) {
      which = static_cast<int>(calls_.size());
      calls_.emplace_back();
      push({start, item.at, item.at, 0, -1, -1, -1, false});
    }
    Call& call = calls_[which];
    call.waiting.emplace_back(index, edge.target);
    for (int end : call.ends) {
      push({edge.target, item.origin, items_[end].at, item.cost + items_[end].cost, index, end, -1,
            false});
    }
  }
}

void Saturation::read(int index, const Network::Edge& edge) {
  const Item item = items_[index];
  const int best = best_[edge.value], price = price_[edge.value];
  if (item.at > length()) {
    const int first = begin_of(item.at);
    read_token(index, edge, first, item.at - inside(first, 0));
    return;
  }
  const int given = item.at < length() ? (*leave_)[item.at] : -1;
  if (given == kToken || given == kTokenOrNothing) {
    read_token(index, edge, item.at, 0);
  } else if (given == kAnyByte) {
    if (best >= 0) {
      push({edge.target, item.origin, item.at + 1, item.cost + price - 1, index, -1,
            static_cast<int16_t>(best), false});
    }
  } else if (given >= 0 && given < kAnyByte && network_.sets[edge.value][given]) {
    push({edge.target, item.origin, item.at + 1, item.cost, index, -1, -1, false});
  }
  if ((*loops_)[item.at] == kTokens) {
    read_token(index, edge, item.at, 0);
  } else if ((*loops_)[item.at] == kBytes && best >= 0) {
    push({edge.target, item.origin, item.at, item.cost + price, index, -1,
          static_cast<int16_t>(best), false});
  }
}

// Go on with the bytes of a token that begins at a position and has come to a node of the trie.
void Saturation::read_token(int index, const Network::Edge& edge, int first, int node) {
  const Item item = items_[index];
  const auto& own = vocabulary_->nodes[node];
  const bool is_inserted = (*loops_)[first] == kTokens;  // such a position is left by a given byte
  const int cost = item.cost + (is_inserted && node == 0);
  for (int i = own.first_child; i < own.first_child + own.num_children; ++i) {
    const uint8_t byte = vocabulary_->child_bytes[i];
    if (!network_.sets[edge.value][byte]) continue;
    const int child = vocabulary_->child_nodes[i];
    if (vocabulary_->nodes[child].num_children) {
      push({edge.target, item.origin, inside(first, child), cost, index, -1, byte, false});
    }
    if (vocabulary_->nodes[child].token >= 0) {
      push({edge.target, item.origin, first + !is_inserted, cost, index, -1, byte, false});
    }
  }
}

int& Saturation::call_at(int number, int at) {
  if (at <= length()) return call_of_[number * (leave_->size() + 1) + at];
  const uint64_t key = static_cast<uint64_t>(number) << 32 | static_cast<uint32_t>(at);
  return call_inside_.try_emplace(key, -1).first->second;
}

// Return the position of the line, or that at which the token began.
int Saturation::begin_of(int at) const {
  if (at <= length()) return at;
  return token_places_[(at - length() - 1) / static_cast<int>(vocabulary_->nodes.size())];
}

size_t Saturation::slot_of(int state, int origin, int at) const {
  uint64_t hash = static_cast<uint64_t>(state) * 0x9e3779b97f4a7c15u;
  hash = (hash ^ static_cast<uint64_t>(origin)) * 0xbf58476d1ce4e5b9u;
  hash = (hash ^ static_cast<uint64_t>(at)) * 0x94d049bb133111ebu;
  size_t slot = (hash ^ hash >> 29) & (slots_.size() - 1);
  while (slots_[slot] >= 0) {
    const Item& item = items_[slots_[slot]];
    if (item.state == state && item.origin == origin && item.at == at) break;
    slot = (slot + 1) & (slots_.size() - 1);
  }
  return slot;
}

void Saturation::grow() {
  slots_.assign(4 * slots_.size(), -1);
  for (size_t i = 0; i < items_.size(); ++i) {
    slots_[slot_of(items_[i].state, items_[i].origin, items_[i].at)] = static_cast<int>(i);
  }
}

// Read what was filled in from the end of the text to its start.
std::vector<std::pair<int, int>> Saturation::filling_of(int index) const {
  std::vector<std::pair<int, int>> found;
  std::vector<int> todo{index};
  while (!todo.empty()) {
    int at = todo.back();
    todo.pop_back();
    while (at >= 0) {
      const Item& item = items_[at];
      if (item.byte >= 0) found.emplace_back(begin_of(items_[item.before].at), item.byte);
      if (item.callee >= 0) todo.push_back(item.before);
      at = item.callee >= 0 ? item.callee : item.before;
    }
  }
  std::reverse(found.begin(), found.end());
  return found;
}

}  // namespace plait::grammar
