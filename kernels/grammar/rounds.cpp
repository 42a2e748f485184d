#include "rounds.h"

#include <algorithm>

#include "fragments.h"

namespace plait::grammar {
namespace {

constexpr size_t kMaxItemStates = 64;  // of a loop's item whose texts are compared

}  // namespace

// Write what follows a state by what its stacks above bounded loops need; false: there are none, or
// it was given up.
bool Fragments::count(int state, Fragment& fragment) {
  std::vector<int> others;
  fragment.mask.assign((vocabulary_.tokens.size() + 31) / 32, 0);
  for (int stack : std::vector<int>(automaton_->states_[state]->stacks)) {
    Bounds bounds;
    const Rounds* rounds = rounds_of(stack, bounds);
    rounds != nullptr ? allow(*rounds, bounds, fragment) : others.push_back(stack);
  }
  if (others.size() == automaton_->states_[state]->stacks.size()) return false;
  if (!others.empty()) {
    const Fragment& rest = at(automaton_->intern(std::move(others)));
    if (rest.mask.empty()) return false;
    for (size_t i = 0; i < fragment.mask.size(); ++i) fragment.mask[i] |= rest.mask[i];
    fragment.exits.insert(fragment.exits.end(), rest.exits.begin(), rest.exits.end());
  }
  std::sort(fragment.exits.begin(), fragment.exits.end());
  const auto last = std::unique(fragment.exits.begin(), fragment.exits.end());
  fragment.exits.erase(last, fragment.exits.end());
  return true;
}

void Fragments::allow(const Rounds& rounds, Bounds bounds, Fragment& fragment) const {
  for (size_t begun = 0; begun < bounds.num_legal(rounds.inside.size()); ++begun) {
    for (int node : rounds.inside[begun]) automaton_->allow(node, fragment.mask);
  }
  for (const auto& [node, met] : rounds.behind) {
    if (bounds.may_leave(met)) automaton_->allow(node, fragment.mask);
  }
  for (const auto& [node, met] : rounds.exits) {
    if (bounds.may_leave(met)) fragment.exits.push_back(node);
  }
}

// Return what tokens need from a stack on, and the bounds of the next loop below that has any;
// nothing: there is none, or its rounds can be read in several ways.
const Rounds* Fragments::rounds_of(int stack, Bounds& bounds) {
  Automaton& automaton = *automaton_;
  std::vector<Automaton::Stack> above;
  for (int at = stack; at != Automaton::kBottom; at = above.back().below) {
    above.push_back(automaton.stacks_[at]);
    Automaton::Stack& top = above.back();
    if (automaton.operations_[top.op].kind != Kind::kRepeat || (top.a == 0 && top.b < 0)) continue;
    bounds = {top.a, top.b};
    top.a = 0;
    top.b = -1;
    const int loop = automaton.push(top);
    int free = loop;
    for (size_t i = above.size() - 1; i-- > 0;) {
      above[i].below = free;
      free = automaton.push(above[i]);
    }
    const auto [found, is_new] = rounds_.try_emplace({free, loop});
    if (is_new) {
      if (is_plain(loop)) walk(free, loop, found->second);
      if (!found->second.is_whole) found->second = {};
      num_found_bytes_ += 64 + found->second.num_bytes();
    }
    return found->second.is_whole ? &found->second : nullptr;
  }
  return nullptr;
}

// Tell whether the rounds of a loop can be read in one way only.
bool Fragments::is_plain(int loop) {
  Automaton& automaton = *automaton_;
  std::vector<int> ready;
  automaton.expand({loop}, ready);
  std::bitset<256> inside, behind;
  bool has_end = false;
  for (int stack : ready) {
    const bool is_inside = automaton.leads_to(stack, loop);
    (is_inside ? inside : behind) |= automaton.first_bytes(stack);
    has_end |= !is_inside;
  }
  const int item = automaton.operations_[automaton.stacks_[loop].op].items[0];
  return has_end && (inside & behind).none() && is_prefix_free(item);
}

// Tell whether no text of an operation is empty or begins another one; false, too, where that is
// much work.
bool Fragments::is_prefix_free(int op) {
  Automaton& automaton = *automaton_;
  std::vector<int> ready;
  automaton.expand({automaton.begin(op, Automaton::kBottom)}, ready);
  std::vector<int> states{automaton.intern(std::move(ready))};
  for (size_t i = 0; i < states.size(); ++i) {
    if (states[i] == Automaton::kDead || automaton.is_accepting(states[i])) return false;
    for (int byte = 0; byte < 256; ++byte) {
      const int after = automaton.step(states[i], static_cast<uint8_t>(byte));
      if (after == Automaton::kDead || automaton.is_final(after)) continue;
      if (std::find(states.begin(), states.end(), after) == states.end()) states.push_back(after);
      if (states.size() > kMaxItemStates) return false;
    }
  }
  return true;
}

// Tell whether the stacks of a state are inside a loop.
Side Fragments::side_of(int state, int loop) const {
  const std::vector<int>& stacks = automaton_->states_[state]->stacks;
  const auto is_inside = [&](int stack) { return automaton_->leads_to(stack, loop); };
  const auto found = std::count_if(stacks.begin(), stacks.end(), is_inside);
  if (found == 0) return Side::kBehind;
  return found == static_cast<std::ptrdiff_t>(stacks.size()) ? Side::kInside : Side::kBoth;
}

// Walk the vocabulary from a stack above a loop without bounds. Given up where a state is both in
// the loop and behind it: something above has texts that begin others.
void Fragments::walk(int start, int loop, Rounds& rounds) {
  using Way = Vocabulary::Way;
  Automaton& automaton = *automaton_;
  std::vector<int> ready;
  automaton.expand({loop}, ready);
  const int met = automaton.intern(std::move(ready));
  std::unordered_map<int, Side> sides{{met, Side::kInside}};
  const Place first{automaton.intern({start}), 0, Side::kInside};
  int64_t work = kMaxMaskWork;
  ++automaton.walk_;
  rounds.is_whole = vocabulary_.walk(0, first, [&](int at, const Place& before, Place& here) {
    const int after = automaton.walk_on(before.state, vocabulary_.nodes[at].byte, work);
    if (after == Automaton::kDead) return Way::kPast;
    const auto [side, is_new] = sides.try_emplace(after);
    if (is_new) side->second = side_of(after, loop);
    if (work < 0 || side->second == Side::kBoth) return Way::kEnd;
    here = {after, before.met + (after == met), side->second};
    note(at, here, after == met, rounds);
    return Way::kInto;
  });
}

// Write down what a node of the vocabulary needs; is_met: there, a round has just ended.
void Fragments::note(int node, const Place& here, bool is_met, Rounds& rounds) const {
  const bool is_token = vocabulary_.nodes[node].token >= 0;
  if (here.side == Side::kInside) {
    const auto begun = static_cast<size_t>(here.met - is_met);
    if (rounds.inside.size() <= begun) rounds.inside.resize(begun + 1);
    if (is_token) rounds.inside[begun].push_back(node);
  } else if (is_token) {
    rounds.behind.emplace_back(node, here.met);
  }
  if (automaton_->is_accepting(here.state) && vocabulary_.nodes[node].num_children > 0) {
    rounds.exits.emplace_back(node, here.met);
  }
}

}  // namespace plait::grammar
