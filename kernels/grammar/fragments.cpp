#include "fragments.h"

#include <algorithm>
#include <map>
#include <optional>
#include <string_view>
#include <tuple>

namespace plait::grammar {
namespace {

constexpr size_t kMaxSettled = 32;  // states of a lexeme that is compared by its texts
constexpr int kFirstLetter = 'A', kLastLetter = 'z';

using Way = Vocabulary::Way;

// Where a walk is, and one from the state of a known fragment along the same bytes.
struct Both {
  int state, known;
};

size_t hash_of(const Operation& operation) {
  size_t hash = static_cast<size_t>(operation.kind);
  const auto add = [&](size_t part) { hash = (hash ^ part) * 0x9E3779B97F4A7C15u ^ hash >> 29; };
  const auto text = [&](std::string_view bytes) { add(std::hash<std::string_view>{}(bytes)); };
  text(operation.text);
  add(std::hash<std::bitset<256>>{}(operation.set));
  for (int item : operation.items) add(static_cast<size_t>(item));
  for (const std::string& each : operation.listed) text(each);
  add(static_cast<size_t>(operation.least));
  add(static_cast<size_t>(operation.most));
  if (operation.lexeme) {
    const Dfa& dfa = operation.lexeme->dfa;
    text(dfa.classes);
    text({reinterpret_cast<const char*>(dfa.next.data()), dfa.next.size() * sizeof(dfa.next[0])});
  }
  return hash;
}

bool is_same(const Operation& left, const Operation& right) {
  if (left.kind != right.kind || left.text != right.text || left.set != right.set ||
      left.items != right.items || left.listed != right.listed || left.least != right.least || left.most != right.most) {
    return false;
  }
  if (left.lexeme == right.lexeme) return true;
  const Dfa &a = left.lexeme->dfa, &b = right.lexeme->dfa;
  return left.lexeme->least == right.lexeme->least && left.lexeme->most == right.lexeme->most &&
         a.classes == b.classes && a.next == b.next && a.accepts == b.accepts &&
         a.boundaries == b.boundaries;
}

// Tell whether most letters lead from a state to itself.
bool is_loop(const Dfa& dfa, int state) {
  int found = 0;
  for (int byte = kFirstLetter; byte <= kLastLetter; ++byte) {
    found += dfa.step(state, static_cast<uint8_t>(byte)) == state;
  }
  return 2 * found > kLastLetter - kFirstLetter;
}

// Return the automaton of the texts from a state on, its states and classes numbered as they are
// met; none: it has too many states.
std::optional<Dfa> rest_of(const Dfa& dfa, int start) {
  std::vector<int> order;  // one byte of each class, rising: what is met first depends on no class
  std::vector<bool> is_met(dfa.num_classes);
  for (int byte = 0; byte < 256; ++byte) {
    const size_t own = static_cast<uint8_t>(dfa.classes[byte]);
    if (!is_met[own]) order.push_back(byte);
    is_met[own] = true;
  }
  std::vector<int> states{start};
  std::vector<std::vector<int>> columns(dfa.num_classes);
  Dfa rest;
  for (size_t i = 0; i < states.size(); ++i) {
    for (int byte : order) {
      const int next = dfa.step(states[i], static_cast<uint8_t>(byte));
      const auto known = std::find(states.begin(), states.end(), next);
      const int number = next < 0 ? next : static_cast<int>(known - states.begin());
      columns[static_cast<uint8_t>(dfa.classes[byte])].push_back(number);
      if (next >= 0 && known == states.end()) states.push_back(next);
      if (states.size() > kMaxSettled) return std::nullopt;
    }
    rest.accepts.push_back(dfa.accepts[states[i]]);
    rest.boundaries.push_back(dfa.boundaries[states[i]]);
  }
  std::map<std::vector<int>, int> classes;
  for (char own : dfa.classes) {
    const std::vector<int>& column = columns[static_cast<uint8_t>(own)];
    const int number = classes.try_emplace(column, static_cast<int>(classes.size())).first->second;
    rest.classes.push_back(static_cast<char>(number));
  }
  rest.num_classes = static_cast<int>(classes.size());
  rest.next.resize(states.size() * classes.size());
  for (const auto& [column, number] : classes) {
    for (size_t i = 0; i < states.size(); ++i) rest.next[i * classes.size() + number] = column[i];
  }
  return rest;
}

}  // namespace

Fragments::Fragments(const Vocabulary& vocabulary, size_t most_bytes)
    : vocabulary_(vocabulary), most_bytes_(most_bytes) {
  trim();
}

void Fragments::trim() {
  if (automaton_ && num_bytes() <= most_bytes_) return;
  found_.clear();
  rounds_.clear();
  settled_.clear();
  numbers_.clear();
  num_found_bytes_ = 0;
  // The vocabulary owns the fragments: a pointer that counts would keep both for ever.
  const std::shared_ptr<const Vocabulary> unowned(std::shared_ptr<void>(), &vocabulary_);
  automaton_.reset(new Automaton(unowned, this));
  ++generation_;
}

int Fragments::number(Operation operation) {
  std::vector<Operation>& operations = automaton_->operations_;
  const size_t hash = hash_of(operation);
  const auto [first, last] = numbers_.equal_range(hash);
  for (auto at = first; at != last; ++at) {
    if (is_same(operations[at->second], operation)) return at->second;
  }
  const int found = static_cast<int>(operations.size());
  if (operation.lexeme) {
    const Dfa& dfa = operation.lexeme->dfa;
    num_found_bytes_ += dfa.next.size() * sizeof(dfa.next[0]) + dfa.accepts.size() * 10;
  }
  num_found_bytes_ += sizeof(Operation) + operation.text.size() + 64;
  for (const std::string& each : operation.listed) num_found_bytes_ += 32 + each.size();
  operations.push_back(std::move(operation));
  numbers_.emplace(hash, found);
  return found;
}

int Fragments::repeated(int item) {
  Operation operation{Kind::kRepeat};
  operation.items = {item};
  operation.most = -1;
  operation.best = item;
  return number(std::move(operation));
}

int Fragments::push(int op, int a, int b, int c, int below) {
  const Operation& operation = automaton_->operations_[op];
  if (operation.lexeme && !operation.lexeme->is_counted()) std::tie(op, a) = settled(op, a);
  return automaton_->push({op, a, b, c, below});
}

// Return a lexeme and a state in it from which the texts are the same as from the given one. Of a
// state that letters do not leave they are the same for the same texts: whatever keys an object
// must not have, a key that has become another one is like any string.
std::pair<int, int> Fragments::settled(int op, int state) {
  const uint64_t key = static_cast<uint64_t>(op) << 32 | static_cast<uint32_t>(state);
  const auto known = settled_.find(key);
  if (known != settled_.end()) return known->second;
  const Dfa& dfa = automaton_->operations_[op].lexeme->dfa;
  std::pair<int, int> found{op, state};
  if (std::optional<Dfa> rest = is_loop(dfa, state) ? rest_of(dfa, state) : std::nullopt) {
    Operation operation{Kind::kLexeme};
    operation.lexeme = std::make_shared<const Lexeme>(std::move(*rest), 0, -1);
    found = {number(std::move(operation)), 0};
  }
  num_found_bytes_ += 48;
  return settled_[key] = found;
}

const Fragment* Fragments::find(std::vector<int> stacks) {
  std::sort(stacks.begin(), stacks.end());
  stacks.erase(std::unique(stacks.begin(), stacks.end()), stacks.end());
  const Fragment& found = at(automaton_->intern(std::move(stacks)));
  return found.mask.empty() ? nullptr : &found;
}

// What is being made is empty until it is whole: others that it is put together from may ask for it.
const Fragment& Fragments::at(int state) {
  const auto [found, is_new] = found_.try_emplace(state);
  Fragment& fragment = found->second;
  if (!is_new) return fragment;
  Fragment made;
  try {
    if (count(state, made) || search(state, made)) fragment = std::move(made);
  } catch (const TooLarge&) {
  }
  num_found_bytes_ += 128 + 4 * (fragment.mask.size() + fragment.exits.size());
  return fragment;
}

// Walk the vocabulary, or as much as must be after what is known; false: it was given up.
bool Fragments::search(int state, Fragment& fragment) {
  fragment = {};
  const int loop = loop_of(state);
  const Fragment* known = loop < 0 || loop == state ? nullptr : &at(loop);
  return known != nullptr && !known->mask.empty() ? differ(state, loop, *known, fragment)
                                                  : walk(state, fragment);
}

// Return the state that most letters lead to, and to itself; kDead: there is none.
int Fragments::loop_of(int state) {
  const int found = usual_successor(state);
  return found >= 0 && usual_successor(found) == found ? found : Automaton::kDead;
}

int Fragments::usual_successor(int state) {
  std::unordered_map<int, int> counts;
  for (int byte = kFirstLetter; byte <= kLastLetter; ++byte) {
    const int after = automaton_->step(state, static_cast<uint8_t>(byte));
    if (2 * ++counts[after] > kLastLetter - kFirstLetter) return after;
  }
  return Automaton::kDead;
}

// Walk the vocabulary; false: it was given up.
bool Fragments::walk(int start, Fragment& fragment) {
  fragment.mask.assign((vocabulary_.tokens.size() + 31) / 32, 0);
  int64_t work = kMaxMaskWork;
  ++automaton_->walk_;
  return vocabulary_.walk(0, start, [&](int at, int before, int& after) {
    after = automaton_->walk_on(before, vocabulary_.nodes[at].byte, work);
    if (after == Automaton::kDead) return Way::kPast;
    if (work < 0) return Way::kEnd;
    allow(at, after, fragment);
    return Way::kInto;
  });
}

// Write what differs from a known fragment: where the two have come to one state, nothing does.
bool Fragments::differ(int start, int loop, const Fragment& known, Fragment& fragment) {
  const std::vector<Vocabulary::Node>& nodes = vocabulary_.nodes;
  fragment.mask = known.mask;
  int64_t work = kMaxMaskWork;
  ++automaton_->walk_;
  auto exit = known.exits.begin();
  const auto keep_exits = [&](int end) {
    while (exit != known.exits.end() && *exit < end) fragment.exits.push_back(*exit++);
  };
  const auto go = [&](int at, const Both& before, Both& after) {
    const uint8_t byte = nodes[at].byte;
    after.state = automaton_->walk_on(before.state, byte, work);
    after.known = before.known < 0 ? before.known : automaton_->step(before.known, byte);
    if (after.state == after.known) return Way::kPast;
    keep_exits(at);
    const bool is_dead = after.state < 0;
    const int end = is_dead ? nodes[at].end : at + 1;
    while (exit != known.exits.end() && *exit < end) ++exit;
    for (int node = at; is_dead && node < end; ++node) forbid(node, fragment);
    if (is_dead) return Way::kPast;
    if (work < 0) return Way::kEnd;
    allow(at, after.state, fragment);
    return Way::kInto;
  };
  if (!vocabulary_.walk(0, Both{start, loop}, go)) return false;
  keep_exits(nodes[0].end);
  return true;
}

// Allow the tokens that are spelled at a node where a state was reached; an exit, if it may end there.
void Fragments::allow(int node, int state, Fragment& fragment) const {
  automaton_->allow(node, fragment.mask);
  if (automaton_->is_accepting(state) && vocabulary_.nodes[node].num_children > 0) {
    fragment.exits.push_back(node);
  }
}

// Take back the tokens that are spelled at a node.
void Fragments::forbid(int node, Fragment& fragment) const {
  const auto clear = [&](int token) { fragment.mask[token / 32] &= ~(uint32_t{1} << token % 32); };
  if (vocabulary_.nodes[node].token < 0) return;
  clear(vocabulary_.nodes[node].token);
  if (vocabulary_.twin_of[node] < 0) return;
  for (int twin : vocabulary_.twins[vocabulary_.twin_of[node]]) clear(twin);
}

}  // namespace plait::grammar
