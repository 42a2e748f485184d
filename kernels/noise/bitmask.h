// Which tokens a constraint allows: bit t % 32 of word t // 32 says that token t is legal.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>

#include "elementary.h"

namespace plait {

constexpr int64_t kWord = 32;  // tokens of a word

// Set what the words forbid to `otherwise`; n is covered by them.
PLAIT_CLONES static void keep_legal(float* __restrict x, int64_t n,
                                    const int32_t* __restrict words, float otherwise) {
  for (int64_t begin = 0; begin < n; begin += kWord) {
    const int32_t word = words[begin / kWord];
    const auto count = static_cast<int32_t>(std::min(kWord, n - begin));
    if (word == -1) continue;
    for (int32_t i = 0; i < count; ++i) {
      const float kept = x[begin + i];
      x[begin + i] = (word >> i) & 1 ? kept : otherwise;
    }
  }
}

// One row's words. Tokens behind the last of them are illegal.
struct Legal {
  const int32_t* words;
  int64_t num_words;

  // Whether none of n tokens is legal, the first of which begins a word.
  bool none(int64_t begin, int64_t n) const {
    const int64_t end = std::min((begin + n + kWord - 1) / kWord, num_words);
    for (int64_t i = begin / kWord; i < end; ++i) {
      if (words[i] != 0) return false;
    }
    return true;
  }

  // Set the illegal ones of n scores to `otherwise`; x is the score of token `begin`.
  void keep(float* x, int64_t begin, int64_t n, float otherwise) const {
    const int64_t covered = std::clamp(num_words * kWord - begin, int64_t{0}, n);
    keep_legal(x, covered, words + begin / kWord, otherwise);
    std::fill(x + covered, x + n, otherwise);
  }
};

// The words of several rows.
struct Bitmask {
  at::Tensor packed;

  Bitmask(const at::Tensor& bitmask, int64_t rows) {
    TORCH_CHECK(bitmask.dim() == 2 && bitmask.size(0) == rows && bitmask.scalar_type() == at::kInt,
                "bitmask must be [", rows, ", words] int32");
    packed = bitmask.contiguous();
  }

  Legal row(int64_t i) const {
    return {packed.const_data_ptr<int32_t>() + i * packed.size(1), packed.size(1)};
  }
};

}  // namespace plait
