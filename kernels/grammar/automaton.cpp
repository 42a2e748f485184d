#include "automaton.h"

#include <algorithm>

#include "fragments.h"

namespace plait::grammar {
namespace {

size_t mix(size_t hash, int part) {
  return (hash ^ static_cast<size_t>(static_cast<uint32_t>(part))) * 0x9E3779B97F4A7C15u;
}

}  // namespace

size_t Automaton::StackHash::operator()(const Stack& s) const {
  const size_t hash = mix(mix(mix(mix(mix(7, s.op), s.a), s.b), s.c), s.below);
  return hash ^ hash >> 29;
}

size_t Automaton::SetHash::operator()(const std::vector<int>& key) const {
  size_t hash = key.size();
  for (int part : key) hash = mix(hash, part);
  return hash ^ hash >> 29;
}

Automaton::Automaton(std::vector<Operation> operations, int root,
                     std::shared_ptr<const Vocabulary> vocabulary)
    : operations_(std::move(operations)),
      vocabulary_(std::move(vocabulary)),
      tails_(*vocabulary_),
      reach_(vocabulary_->longest + 1) {
  estimate();
  push({-1, 0, 0, 0, -1});
  known_[kBottom] = {0, kBottom};
  std::vector<int> ready;
  expand({begin(root, kBottom)}, ready);
  start_ = intern(std::move(ready));
}


Automaton::Automaton(std::shared_ptr<const Vocabulary> vocabulary, Fragments* owner)
    : vocabulary_(std::move(vocabulary)),
      tails_(*vocabulary_),
      reach_(vocabulary_->longest + 1),
      owner_(owner) {
  push({-1, 0, 0, 0, -1});
  known_[kBottom] = {0, kBottom};
}

int Automaton::push(const Stack& stack) {
  const auto [found, is_new] = stack_ids_.try_emplace(stack, static_cast<int>(stacks_.size()));
  if (is_new) {
    stacks_.push_back(stack);
    known_.emplace_back();
    seen_.push_back(0);
  }
  return found->second;
}

// Return the stack that does an operation from its beginning.
int Automaton::begin(int op, int below) {
  const Operation& operation = operations_[op];
  switch (operation.kind) {
    case Kind::kRepeat:
      return push({op, operation.least, operation.most, 0, below});
    case Kind::kListed:
      return push({op, 0, static_cast<int>(operation.listed.size()), 0, below});
    default:
      return push({op, 0, 0, 0, below});
  }
}

// Make all free moves, and return how many were made; what is left begins with a byte, or is empty.
//
// Where a grammar is so ambiguous that they are too many, the way to the nearest end is gone first,
// and then others until the limit: what is left out does not depend on what was computed before.
int Automaton::expand(std::vector<int> todo, std::vector<int>& ready) {
  moves_ = 0;
  if (!expand_up_to(kMaxMoves, todo, ready)) {
    if (owner_ != nullptr) throw TooLarge("it can be read in too many ways");
    ready.clear();
    for (int stack : todo) tail(stack);
    std::sort(todo.begin(), todo.end(), [&](int a, int b) {
      return tails_.is_nearer(known_[b].tail, known_[a].tail);
    });
    expand_up_to(kMaxMoves, std::move(todo), ready);
  }
  return moves_;
}

bool Automaton::expand_up_to(int limit, std::vector<int> todo, std::vector<int>& ready) {
  ++expansion_;
  const int last = moves_ + limit;
  while (!todo.empty()) {
    const int stack = todo.back();
    todo.pop_back();
    if (seen_[stack] == expansion_) continue;
    if (moves_ == last) return false;
    seen_[stack] = expansion_;
    move(stack, todo, ready);
    ++moves_;
  }
  return true;
}

// The way to the nearest end is the last one added to `todo`.
void Automaton::move(int stack, std::vector<int>& todo, std::vector<int>& ready) {
  if (stack == kBottom) {
    ready.push_back(stack);
    return;
  }
  const Stack at = stacks_[stack];
  const Operation& operation = operations_[at.op];
  switch (operation.kind) {
    case Kind::kText:
      if (at.a == static_cast<int>(operation.text.size())) {
        todo.push_back(at.below);
      } else {
        ready.push_back(stack);
      }
      return;
    case Kind::kSet:
      ready.push_back(stack);
      return;
    case Kind::kSeq: {
      const bool is_last = at.a + 1 == static_cast<int>(operation.items.size());
      const int below = is_last ? at.below : push({at.op, at.a + 1, 0, 0, at.below});
      todo.push_back(begin(operation.items[at.a], below));
      return;
    }
    case Kind::kRepeat: {
      if (at.b != 0) {
        const Stack again{at.op, std::max(at.a - 1, 0), at.b < 0 ? -1 : at.b - 1, 0, at.below};
        todo.push_back(begin(operation.items[0], push(again)));
      }
      if (at.a == 0) todo.push_back(at.below);
      return;
    }
    case Kind::kListed: {
      // The texts are sorted: one that ends here comes first.
      const bool ends = static_cast<int>(operation.listed[at.a].size()) == at.c;
      if (ends) todo.push_back(at.below);
      if (at.b - at.a > ends) ready.push_back(stack);
      return;
    }
    case Kind::kLexeme:
      if (operation.lexeme->ends(at.a, at.b)) todo.push_back(at.below);
      if (first_bytes(stack).any()) ready.push_back(stack);
      return;
    case Kind::kRule:
      todo.push_back(begin(operation.items[0], at.below));
      return;
    case Kind::kAnyOrder:
      move_any_order(stack, todo);
      return;
    case Kind::kMark:
      marks_ |= operation.mark;
      todo.push_back(at.below);
      return;
    default:
      for (int item : operation.items) {
        if (item != operation.best) todo.push_back(begin(item, at.below));
      }
      todo.push_back(begin(operation.best, at.below));
  }
}

// Return the stack behind a byte; kDead: it does not begin so.
int Automaton::consume(int stack, uint8_t byte) {
  if (stack == kBottom) return kDead;
  const Stack at = stacks_[stack];
  const Operation& operation = operations_[at.op];
  switch (operation.kind) {
    case Kind::kText:
      if (static_cast<uint8_t>(operation.text[at.a]) != byte) return kDead;
      return push({at.op, at.a + 1, 0, 0, at.below});
    case Kind::kSet:
      return operation.set[byte] ? at.below : kDead;
    case Kind::kListed: {
      const auto begin = operation.listed.begin();
      const size_t depth = static_cast<size_t>(at.c);
      const auto is_before = [&](const std::string& text, int wanted) {
        return text.size() <= depth || static_cast<uint8_t>(text[depth]) < wanted;
      };
      const auto first = std::lower_bound(begin + at.a, begin + at.b, int{byte}, is_before);
      const auto last = std::lower_bound(first, begin + at.b, byte + 1, is_before);
      if (first == last) return kDead;
      return push({at.op, static_cast<int>(first - begin), static_cast<int>(last - begin),
                   at.c + 1, at.below});
    }
    default: {
      const Lexeme& lexeme = *operation.lexeme;
      const int next = lexeme.dfa.step(at.a, byte);
      if (next < 0) return kDead;
      int count = lexeme.is_counted() ? at.b + lexeme.dfa.boundaries[next] : 0;
      if (lexeme.most < 0) count = std::min(count, lexeme.least);
      if (lexeme.missing(next, count) < 0) return kDead;
      if (owner_ != nullptr) return owner_->push(at.op, next, count, 0, at.below);
      return push({at.op, next, count, 0, at.below});
    }
  }
}

std::bitset<256> Automaton::first_bytes(int stack) const {
  std::bitset<256> found;
  if (stack == kBottom) return found;
  const Stack& at = stacks_[stack];
  const Operation& operation = operations_[at.op];
  switch (operation.kind) {
    case Kind::kText:
      found.set(static_cast<uint8_t>(operation.text[at.a]));
      return found;
    case Kind::kSet:
      return operation.set;
    case Kind::kListed:
      for (int i = at.a; i < at.b; ++i) {
        const std::string& text = operation.listed[i];
        if (static_cast<int>(text.size()) > at.c) found.set(static_cast<uint8_t>(text[at.c]));
      }
      return found;
    default: {
      const Lexeme& lexeme = *operation.lexeme;
      for (int b = 0; b < 256; ++b) {
        const int next = lexeme.dfa.step(at.a, static_cast<uint8_t>(b));
        if (next < 0) continue;
        const int count = lexeme.is_counted() ? at.b + lexeme.dfa.boundaries[next] : 0;
        if (lexeme.missing(next, count) >= 0) found.set(b);
      }
      return found;
    }
  }
}

// Tell whether one stack is another with something above.
bool Automaton::leads_to(int stack, int below) const {
  while (stack != below && stack != kBottom) stack = stacks_[stack].below;
  return stack == below;
}

int Automaton::step(int state, uint8_t byte) {
  const int known = states_[state]->edges[byte].after;
  if (known != kUnknown) return known;
  std::vector<int> moved;
  for (int stack : states_[state]->stacks) {
    const int after = consume(stack, byte);
    if (after != kDead) moved.push_back(after);
  }
  std::vector<int> ready;
  marks_ = 0;
  const int moves = expand(std::move(moved), ready);
  const int after = intern(std::move(ready));
  if (after != kDead) states_[after]->marks |= marks_;
  State& at = *states_[state];
  at.moves[byte] = static_cast<uint16_t>(moves);
  return at.edges[byte].after = after;
}

int Automaton::advance(int state, int token) {
  if (token < 0 || static_cast<size_t>(token) >= vocabulary_->tokens.size()) return kDead;
  for (char c : vocabulary_->tokens[token]) {
    state = step(state, static_cast<uint8_t>(c));
    if (state == kDead) break;
  }
  return state;
}

int Automaton::intern(std::vector<int> ready) {
  if (ready.empty()) return kDead;
  if (static_cast<int>(ready.size()) > kMaxStacks) {
    if (owner_ != nullptr) throw TooLarge("it can be read in too many ways");
    for (int stack : ready) tail(stack);
    std::sort(ready.begin(), ready.end(), [&](int a, int b) {
      return tails_.is_nearer(known_[a].tail, known_[b].tail);
    });
    ready.resize(kMaxStacks);
  }
  std::sort(ready.begin(), ready.end());
  const auto [found, is_new] = state_ids_.try_emplace(ready, static_cast<int>(states_.size()));
  if (!is_new) return found->second;
  State& state = *states_.emplace_back(std::make_unique<State>());
  for (int stack : ready) state.first |= first_bytes(stack);
  for (int b = 0; b < 256; ++b) state.edges[b] = {state.first[b] ? kUnknown : kDead, 0};
  state.is_accepting = ready[0] == kBottom;
  state.is_final = state.is_accepting && ready.size() == 1;
  num_stack_entries_ += 2 * ready.size();
  state.stacks = std::move(ready);
  return found->second;
}

std::pair<std::vector<int>, std::vector<int>> Automaton::forced(int state) {
  std::string text;
  while (!states_[state]->is_accepting && text.size() < kMaxForced &&
         states_[state]->first.count() == 1) {
    const int byte = static_cast<int>(states_[state]->first._Find_first());
    text.push_back(static_cast<char>(byte));
    state = step(state, static_cast<uint8_t>(byte));
  }
  const std::vector<int> tokens = tails_.token_ids(tails_.prepend(text, 0));
  size_t sure = 0, at = 0;
  while (sure < tokens.size() && !vocabulary_->outgrows(text, at)) {
    at += vocabulary_->tokens[tokens[sure++]].size();
  }
  return {{tokens.begin(), tokens.begin() + sure}, {tokens.begin() + sure, tokens.end()}};
}

size_t Automaton::num_bytes() const {
  return stacks_.size() * (sizeof(Stack) + sizeof(Known) + 64) + tails_.size() * 80 +
         states_.size() * (sizeof(State) + 64) + num_stack_entries_ * sizeof(int) +
         num_masks_ * (vocabulary_->tokens.size() / 8);
}

}  // namespace plait::grammar
