// A grammar as a table of operations over bytes.
#pragma once

#include <bitset>
#include <memory>
#include <string>
#include <vector>

#include "lexeme.h"

namespace plait::grammar {

// Flags of the items of kAnyOrder.
constexpr char kRequired = 1, kMayRepeat = 2;

// The numbers are those of plait.decoders.constrained.table.Kind.
enum class Kind { kText, kSet, kSeq, kChoice, kRepeat, kRule, kListed, kLexeme, kAnyOrder, kMark };

struct Operation {
  Kind kind;
  std::string text;                 // kText
  std::bitset<256> set;             // kSet
  std::vector<int> items;           // kSeq, kChoice, kAnyOrder: all; kRepeat, kRule: the body
  int least = 0, most = 0;          // kRepeat, kAnyOrder; most -1: without end
  int mark = 0;                     // kMark
  std::string flags;                // kAnyOrder: of each item
  int separator = 0;                // kAnyOrder: what stands between two items
  std::vector<std::string> listed;  // kListed: sorted, each once
  std::shared_ptr<const Lexeme> lexeme;  // kLexeme
  // Filled by estimate(): the cheapest text.
  int cost = 1 << 30;  // in tokens, by itself
  int best = 0;        // kChoice: item; kSet: byte
  std::vector<int> costs;  // kListed: what its texts are compared by
};

}  // namespace plait::grammar
