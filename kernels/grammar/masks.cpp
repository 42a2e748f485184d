// Masks: walks through the vocabulary, and what they leave to fragments.

#include <algorithm>

#include "automaton.h"
#include "fragments.h"

namespace plait::grammar {
namespace {

using Way = Vocabulary::Way;

constexpr size_t kWide = 32;    // first bytes of a stack from which on a fragment is looked for
constexpr int kMaxPlaces = 16;  // of a stack in a fragment
constexpr int kMaxLevels = 9;   // of operations in a fragment
constexpr int kTooDeep = -3;    // less those that were left
constexpr size_t kMaxItems = 64;
constexpr int kBehindText = -3, kBehindLoop = -4, kBehindQuoted = -5;  // bases yet to be found

}  // namespace

const std::vector<uint32_t>& Automaton::mask(int state) {
  const int canonical = canonical_state(state);
  if (states_[canonical]->mask.empty()) {
    std::vector<uint32_t> mask((vocabulary_->tokens.size() + 31) / 32, 0);
    fill(canonical, mask);
    states_[canonical]->mask = std::move(mask);
    ++num_masks_;
  }
  return states_[canonical]->mask;
}

// Put the mask together: fragments, where tokens go on behind them, and what is in no fragment.
void Automaton::fill(int state, std::vector<uint32_t>& mask) {
  int64_t work = kMaxMaskWork;
  bool is_whole = true;
  ++walk_;
  std::vector<int> others;
  for (const Part& part : parts_of(states_[state]->stacks, others)) {
    const Fragment* fragment = vocabulary_->fragments->find(part.places);
    if (fragment == nullptr) {
      others.insert(others.end(), part.stacks.begin(), part.stacks.end());
      continue;
    }
    for (size_t i = 0; i < mask.size(); ++i) mask[i] |= fragment->mask[i];
    std::vector<int> ready;
    expand({part.base}, ready);
    const int behind = intern(std::move(ready));
    if (states_[behind]->is_final) continue;
    for (int node : fragment->exits) is_whole = is_whole && fill_below(node, behind, work, mask);
  }
  if (others.size() == states_[state]->stacks.size()) {
    is_whole = fill_below(0, state, work, mask);
  } else if (!others.empty()) {
    std::sort(others.begin(), others.end());
    is_whole = is_whole && fill_below(0, intern(std::move(others)), work, mask);
  }
  if (is_whole) return;
  // Where the work was given up, the way to the end stays open.
  const std::vector<int> way = closing_tokens(state);
  if (!way.empty()) mask[way[0] / 32] |= uint32_t{1} << (way[0] % 32);
}

// Walk the vocabulary below a node depth first; what lies behind a dead byte is passed over.
bool Automaton::fill_below(int root, int state, int64_t& work, std::vector<uint32_t>& mask) {
  return vocabulary_->walk(root, state, [&](int at, int before, int& after) {
    after = walk_on(before, vocabulary_->nodes[at].byte, work);
    if (after == kDead) return Way::kPast;
    if (work < 0) return Way::kEnd;
    allow(at, mask);
    return Way::kInto;
  });
}

// Allow the tokens that are spelled at a node.
void Automaton::allow(int node, std::vector<uint32_t>& mask) const {
  const auto set = [&](int token) { mask[token / 32] |= uint32_t{1} << (token % 32); };
  const int token = vocabulary_->nodes[node].token;
  if (token < 0) return;
  set(token);
  if (vocabulary_->twin_of[node] >= 0) {
    for (int twin : vocabulary_->twins[vocabulary_->twin_of[node]]) set(twin);
  }
}

// Divide stacks into parts with a base of their own, and others. A part begins with a stack that
// many bytes can follow, and ends behind the next text that must come.
std::vector<Automaton::Part> Automaton::parts_of(const std::vector<int>& stacks,
                                                 std::vector<int>& others) {
  std::vector<Part> parts;
  others = stacks;
  if (!vocabulary_->fragments || owner_ != nullptr) return parts;
  vocabulary_->fragments->trim();
  if (generation_ != vocabulary_->fragments->generation()) {
    generation_ = vocabulary_->fragments->generation();
    shared_.assign(operations_.size(), kUnknown);
  }
  const auto join = [&](int wanted) {
    const auto is_taken = [&](int stack) {
      const int found = base_of(stack);
      if (found != wanted) return false;
      for (Part& part : parts) {
        if (take(stack, part.base, part)) return true;
      }
      Part part{kUnknown, {}, {}};
      if (!take(stack, wanted, part)) return false;
      parts.push_back(std::move(part));
      return true;
    };
    others.erase(std::remove_if(others.begin(), others.end(), is_taken), others.end());
  };
  for (int wanted : {kBehindText, kBehindLoop, kBehindQuoted}) join(wanted);
  return parts;
}

// Return where a part that begins with a stack ends: what many bytes can follow, behind the text
// that ends it; a few, as digits or blanks, behind their loop; a text, behind the next one.
int Automaton::base_of(int stack) const {
  if (stack != kBottom && operations_[stacks_[stack].op].kind == Kind::kText) return kBehindQuoted;
  return first_bytes(stack).count() >= kWide ? kBehindText : kBehindLoop;
}

// Add a stack to a part, down to a base that is known, or one that is still to be found.
bool Automaton::take(int stack, int base, Part& part) {
  std::vector<Stack> places;
  int at = stack;
  for (bool is_end = false; !is_end && at != base && at != kBottom;) {
    if (places.size() == kMaxPlaces) return false;
    const auto [top, below] = top_of(at);
    const Kind kind = operations_[top.op].kind;
    const bool is_loop = kind == Kind::kRepeat || kind == Kind::kLexeme;
    if (base <= kBehindLoop && places.size() == 1 && !is_loop) return false;
    is_end = base == kBehindLoop ? is_loop : base < 0 && kind == Kind::kText && !places.empty();
    places.push_back(top);
    at = below;
  }
  if (base >= 0 && at != base) return false;
  for (Stack& place : places) {
    const Operation& own = operations_[place.op];
    const bool is_counted = own.kind == Kind::kRepeat;  // by the place, so that all are one
    const int item = shared(is_counted ? own.items[0] : place.op, kMaxLevels);
    if (item < 0) return false;
    place.op = is_counted ? vocabulary_->fragments->repeated(item) : item;
  }
  int made = kBottom;
  for (size_t i = places.size(); i-- > 0;) {
    made = vocabulary_->fragments->push(places[i].op, places[i].a, places[i].b, places[i].c, made);
  }
  part.base = at;
  part.stacks.push_back(stack);
  part.places.push_back(made);
  return true;
}

// Return what a stack does next and the stack below it; sequences are taken item by item.
std::pair<Automaton::Stack, int> Automaton::top_of(int stack) {
  const Stack at = stacks_[stack];
  const Operation& operation = operations_[at.op];
  if (operation.kind != Kind::kSeq) return {at, at.below};
  const bool is_last = at.a + 1 == static_cast<int>(operation.items.size());
  const int below = is_last ? at.below : push({at.op, at.a + 1, 0, 0, at.below});
  int item = operation.items[at.a];
  while (operations_[item].kind == Kind::kRule) item = operations_[item].items[0];
  return {stacks_[begin(item, below)], below};
}

// Return the number of an operation among those of fragments; kDead: it is none of them, as it is
// large or recursive; less than that: so many levels are too few, though more may do.
int Automaton::shared(int op, int levels) {
  const int too_deep = kTooDeep - levels;
  if (shared_[op] >= kDead || shared_[op] <= too_deep) return shared_[op];
  if (levels == 0) return shared_[op] = too_deep;
  shared_[op] = kDead;  // while its items are looked at: none of them may lead back to it
  const Operation& own = operations_[op];
  const bool is_apart = own.kind == Kind::kAnyOrder || own.kind == Kind::kMark;
  const bool is_large = own.items.size() > kMaxItems || own.listed.size() > kMaxItems;
  if (is_apart || is_large) return kDead;
  std::vector<int> items;
  for (int item : own.items) {
    items.push_back(shared(item, levels - 1));
    if (items.back() <= kTooDeep) return shared_[op] = too_deep;
    if (items.back() < 0) return kDead;
  }
  if (own.kind == Kind::kRule) return shared_[op] = items[0];
  Operation copy{own.kind};
  copy.text = own.text;
  copy.set = own.set;
  copy.best = items.empty() ? 0 : items[0];
  copy.items = std::move(items);
  copy.listed = own.listed;
  copy.least = own.least;
  copy.most = own.most;
  copy.lexeme = own.lexeme;
  return shared_[op] = vocabulary_->fragments->number(std::move(copy));
}

// Return the stack that goes on alike for as long as a token is, its counts cut to that reach.
int Automaton::canonical_stack(int stack) {
  std::vector<int> path;
  while (known_[stack].canonical < 0) {
    path.push_back(stack);
    stack = stacks_[stack].below;
  }
  int found = known_[stack].canonical;
  for (size_t i = path.size(); i-- > 0;) {
    Stack at = stacks_[path[i]];
    at.below = found;
    const Operation& operation = operations_[at.op];
    if (operation.kind == Kind::kRepeat) {
      at.a = std::min(at.a, reach_);
      if (at.b > reach_) at.b = -1;
    } else if (operation.kind == Kind::kLexeme && operation.lexeme->is_counted()) {
      const Lexeme& lexeme = *operation.lexeme;
      const int room = reach_ + lexeme.lengths.farthest();
      if (lexeme.lengths.is_endless() && (lexeme.most < 0 || lexeme.most - at.b >= room)) {
        if (lexeme.least - at.b > reach_) {
          at.b = 0;
        } else if (at.b > lexeme.least &&
                   (lexeme.most < 0 || lexeme.most - lexeme.least >= room)) {
          at.b = lexeme.least;
        }
      }
    }
    found = push(at);
    known_[path[i]].canonical = found;
  }
  return found;
}

int Automaton::canonical_state(int state) {
  if (states_[state]->canonical < 0) {
    std::vector<int> stacks;
    for (int stack : states_[state]->stacks) stacks.push_back(canonical_stack(stack));
    std::sort(stacks.begin(), stacks.end());
    stacks.erase(std::unique(stacks.begin(), stacks.end()), stacks.end());
    states_[state]->canonical = intern(std::move(stacks));
  }
  return states_[state]->canonical;
}

}  // namespace plait::grammar
