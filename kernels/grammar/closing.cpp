// The cheapest texts: of operations, of stacks, of states.

#include <algorithm>

#include "automaton.h"

namespace plait::grammar {

constexpr size_t kMaxCosted = 4096;  // listed texts that are compared by tokens, not by bytes

// Give every operation its cheapest text: the least fixed point, by a worklist (Knuth).
void Automaton::estimate() {
  const int size = static_cast<int>(operations_.size());
  std::vector<std::vector<int>> users(size);
  for (int op = 0; op < size; ++op) {
    for (int item : operations_[op].items) users[item].push_back(op);
    if (operations_[op].kind == Kind::kAnyOrder) users[operations_[op].separator].push_back(op);
  }
  std::vector<int> waiting(size);
  std::vector<bool> is_waiting(size, true);
  for (int op = 0; op < size; ++op) waiting[op] = op;
  for (size_t at = 0; at < waiting.size(); ++at) {
    const int op = waiting[at];
    is_waiting[op] = false;
    if (!improve(operations_[op])) continue;
    for (int user : users[op]) {
      if (!is_waiting[user]) {
        is_waiting[user] = true;
        waiting.push_back(user);
      }
    }
  }
  for (const Operation& operation : operations_) {
    if (operation.cost > kMaxClosingTokens && operation.cost < kUnreachable) {
      throw TooLarge("a part of it takes more than " + std::to_string(kMaxClosingTokens) +
                     " tokens to complete");
    }
  }
}

// Lower the cost if it can be; `best` changes only then, so it never runs in circles.
bool Automaton::improve(Operation& operation) {
  int64_t cost = kUnreachable;
  int best = 0;
  switch (operation.kind) {
    case Kind::kText:
      cost = cost_of_text(operation.text);
      break;
    case Kind::kMark:
      cost = 0;
      break;
    case Kind::kSet:
      for (int b = 255; b >= 0; --b) {
        if (operation.set[vocabulary_->preferred[b]]) best = vocabulary_->preferred[b];
      }
      cost = cost_of_text(std::string(1, static_cast<char>(best)));
      break;
    case Kind::kListed:
      operation.costs.clear();
      for (const std::string& text : operation.listed) {
        const bool is_costed = operation.listed.size() <= kMaxCosted;
        operation.costs.push_back(is_costed ? cost_of_text(text) : static_cast<int>(text.size()));
      }
      best = static_cast<int>(std::min_element(operation.costs.begin(), operation.costs.end()) -
                              operation.costs.begin());
      cost = cost_of_text(operation.listed[best]);
      break;
    case Kind::kLexeme:
      if (operation.lexeme->missing(0, 0) <= kMaxClosingTokens) {
        cost = cost_of_text(lexeme_rest(*operation.lexeme, 0, 0));
      } else {
        cost = kMaxClosingTokens + 1;
      }
      break;
    case Kind::kChoice:
      for (int item : operation.items) {
        if (operations_[item].cost < cost) {
          cost = operations_[item].cost;
          best = item;
        }
      }
      break;
    case Kind::kRepeat:
      cost = operation.least * static_cast<int64_t>(operations_[operation.items[0]].cost);
      break;
    case Kind::kAnyOrder: {
      const int op = static_cast<int>(&operation - operations_.data());
      const std::vector<int> taken = plan({op, 0, 0, 0, kBottom});
      cost = 0;
      for (int item : taken) cost += operations_[operation.items[item]].cost;
      if (taken.size() > 1) cost += (taken.size() - 1) * operations_[operation.separator].cost;
      break;
    }
    default:
      cost = 0;
      for (int item : operation.items) cost += operations_[item].cost;
  }
  const int bounded = static_cast<int>(std::min<int64_t>(cost, kUnreachable));
  if (bounded >= operation.cost) return false;
  operation.cost = bounded;
  operation.best = best;
  return true;
}

int Automaton::cost_of_text(const std::string& text) {
  return tails_[tails_.prepend(text, 0)].tokens;
}

std::string Automaton::cheapest(int op) const {
  std::string spelled;
  std::vector<int> todo{op};
  while (!todo.empty()) {
    const Operation& at = operations_[todo.back()];
    todo.pop_back();
    switch (at.kind) {
      case Kind::kText:
        spelled += at.text;
        break;
      case Kind::kMark:
        break;
      case Kind::kSet:
        spelled.push_back(static_cast<char>(at.best));
        break;
      case Kind::kListed:
        spelled += at.listed[at.best];
        break;
      case Kind::kLexeme:
        spelled += lexeme_rest(*at.lexeme, 0, 0);
        break;
      case Kind::kChoice:
        todo.push_back(at.best);
        break;
      case Kind::kRepeat:
        todo.insert(todo.end(), at.least, at.items[0]);
        break;
      case Kind::kAnyOrder: {
        const int number = static_cast<int>(&at - operations_.data());
        std::vector<int> taken = plan({number, 0, 0, 0, kBottom});
        for (size_t i = taken.size(); i-- > 0;) {
          todo.push_back(at.items[taken[i]]);
          if (i > 0) todo.push_back(at.separator);
        }
        break;
      }
      default:
        todo.insert(todo.end(), at.items.rbegin(), at.items.rend());
    }
  }
  return spelled;
}

// Return the cheapest text of a stack's own operation, from where it stands.
std::string Automaton::rest(const Stack& stack) const {
  const Operation& operation = operations_[stack.op];
  std::string spelled;
  switch (operation.kind) {
    case Kind::kText:
      return operation.text.substr(stack.a);
    case Kind::kMark:
      return spelled;
    case Kind::kSeq:
      for (size_t i = stack.a; i < operation.items.size(); ++i) {
        spelled += cheapest(operation.items[i]);
      }
      return spelled;
    case Kind::kRepeat: {
      const std::string once = stack.a > 0 ? cheapest(operation.items[0]) : "";
      for (int i = 0; i < stack.a; ++i) spelled += once;
      return spelled;
    }
    case Kind::kAnyOrder: {
      bool is_separated = stack.b == 0 || stack.c == 1;
      for (int item : plan(stack)) {
        if (!is_separated) spelled += cheapest(operation.separator);
        spelled += cheapest(operation.items[item]);
        is_separated = false;
      }
      return spelled;
    }
    case Kind::kListed: {
      const auto first = operation.costs.begin() + stack.a;
      const auto last = operation.costs.begin() + stack.b;
      const auto best = std::min_element(first, last) - operation.costs.begin();
      return operation.listed[best].substr(stack.c);
    }
    case Kind::kLexeme:
      return lexeme_rest(*operation.lexeme, stack.a, stack.b);
    default:
      return cheapest(stack.op);
  }
}

// Return a text of as few characters as can be. The choice of each byte depends on nothing but
// state and count, so what is left of a text is the text of what is left.
std::string Automaton::lexeme_rest(const Lexeme& lexeme, int state, int count) const {
  std::string spelled;
  int missing = lexeme.missing(state, count);
  while (missing > 0) {
    int next = -1, after = count;
    uint8_t chosen = 0;
    for (const uint8_t byte : vocabulary_->preferred) {
      next = lexeme.dfa.step(state, byte);
      if (next < 0) continue;
      const int length = lexeme.dfa.boundaries[next];
      after = lexeme.is_counted() ? count + length : 0;
      if (lexeme.missing(next, after) == missing - length) {
        chosen = byte;
        missing -= length;
        break;
      }
    }
    spelled.push_back(static_cast<char>(chosen));
    state = next;
    count = after;
  }
  return spelled;
}

// Return the cheapest text of a stack, from its deepest part upwards.
int Automaton::tail(int stack) {
  std::vector<int> path;
  while (known_[stack].tail < 0) {
    path.push_back(stack);
    stack = stacks_[stack].below;
  }
  int found = known_[stack].tail;
  for (size_t i = path.size(); i-- > 0;) {
    found = tails_.prepend(rest(stacks_[path[i]]), found);
    known_[path[i]].tail = found;
  }
  return found;
}

int Automaton::closing(int state) {
  if (states_[state]->closing < 0) {
    int best = -1;
    for (int stack : states_[state]->stacks) {
      const int found = tail(stack);
      if (best < 0 || tails_.is_better(found, best)) best = found;
    }
    states_[state]->closing = best;
  }
  return states_[state]->closing;
}

}  // namespace plait::grammar
