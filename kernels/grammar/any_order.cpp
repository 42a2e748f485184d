// Items in any order: each at most once, unless it may repeat; required ones are never left out.

#include <algorithm>

#include "automaton.h"

namespace plait::grammar {

bool Automaton::is_used(int set, int item) const {
  const std::string& bits = sets_[set];
  const size_t byte = static_cast<size_t>(item) / 8;
  return byte < bits.size() && (bits[byte] >> item % 8 & 1);
}

int Automaton::with_item(int set, int item) {
  std::string bits = sets_[set];
  const size_t byte = static_cast<size_t>(item) / 8;
  if (bits.size() <= byte) bits.resize(byte + 1, 0);
  bits[byte] = static_cast<char>(bits[byte] | 1 << item % 8);
  const auto [found, is_new] = set_ids_.try_emplace(bits, static_cast<int>(sets_.size()));
  if (is_new) sets_.push_back(std::move(bits));
  return found->second;
}

// Return how many required items are still due.
int Automaton::num_missing(const Stack& at) const {
  const Operation& operation = operations_[at.op];
  int missing = 0;
  for (size_t i = 0; i < operation.items.size(); ++i) {
    missing += (operation.flags[i] & kRequired) && !is_used(at.a, static_cast<int>(i));
  }
  return missing;
}

// Tell whether an item may come next, so that there is room for the required ones behind it.
bool Automaton::may_take(const Stack& at, int item) const {
  const Operation& operation = operations_[at.op];
  const char flags = operation.flags[item];
  const bool is_used_up = is_used(at.a, item);
  if (is_used_up && !(flags & kMayRepeat)) return false;
  const bool is_due = (flags & kRequired) && !is_used_up;
  return operation.most < 0 || at.b + 1 + num_missing(at) - is_due <= operation.most;
}

// Return the items that end it soonest: the required ones in their order, then the cheapest ones
// until there are enough. What is left of a plan is the plan of what is left.
std::vector<int> Automaton::plan(const Stack& at) const {
  const Operation& operation = operations_[at.op];
  const int size = static_cast<int>(operation.items.size());
  std::vector<int> taken, others;
  for (int i = 0; i < size; ++i) {
    const bool is_used_up = is_used(at.a, i);
    if ((operation.flags[i] & kRequired) && !is_used_up) {
      taken.push_back(i);
    } else if (!is_used_up || (operation.flags[i] & kMayRepeat)) {
      others.push_back(i);
    }
  }
  const int wanted = std::max(operation.least - at.b, at.c);
  const auto cost = [&](int i) { return operations_[operation.items[i]].cost; };
  std::stable_sort(others.begin(), others.end(), [&](int i, int j) { return cost(i) < cost(j); });
  for (size_t next = 0; static_cast<int>(taken.size()) < wanted && next < others.size();) {
    taken.push_back(others[next]);
    if (!(operation.flags[others[next]] & kMayRepeat)) ++next;
  }
  return taken;
}

void Automaton::move_any_order(int stack, std::vector<int>& todo) {
  const Stack at = stacks_[stack];
  const int size = static_cast<int>(operations_[at.op].items.size());
  const int least = operations_[at.op].least, most = operations_[at.op].most;
  const bool may_end = at.c == 0 && at.b >= least && num_missing(at) == 0;
  std::vector<int> open;
  for (int i = 0; i < size; ++i) {
    if (may_take(at, i)) open.push_back(i);
  }
  if (at.c == 0 && at.b > 0) {
    if (!open.empty()) {
      const int behind = push({at.op, at.a, at.b, 1, at.below});
      todo.push_back(begin(operations_[at.op].separator, behind));
    }
    if (may_end) todo.push_back(at.below);
    return;
  }
  const int count = most < 0 ? std::min(at.b + 1, std::max(least, 1)) : at.b + 1;
  const std::vector<int> ahead = may_end ? std::vector<int>{} : plan(at);
  const int nearest = ahead.empty() ? -1 : ahead[0];
  const auto take = [&](int i) {
    const int after = push({at.op, with_item(at.a, i), count, 0, at.below});
    todo.push_back(begin(operations_[at.op].items[i], after));
  };
  for (int i : open) {
    if (i != nearest) take(i);
  }
  if (may_end) todo.push_back(at.below);
  if (nearest >= 0) take(nearest);
}

}  // namespace plait::grammar
