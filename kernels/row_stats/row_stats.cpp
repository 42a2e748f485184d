// Statistics, log-probabilities and the constraint's mask over rows of scores; naive.py is the
// oracle, __init__.py the contract. Rows are worked on side by side, each by one thread in one
// order, so that a row's result depends on nothing but the row.

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "../noise/rows.h"

namespace plait {
namespace {

constexpr int64_t kChunk = 4096;  // tokens whose terms stay in the first-level cache; a power of 2
constexpr int64_t kStretch = 64;  // tokens passed over together when none is among the best
constexpr int64_t kWord = 32;     // tokens of a word of the bitmask
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();  // a statistic nobody asked for

// Rows that are worth waking a thread for.
constexpr int64_t kRowsToSum = 2, kRowsToMask = 16;

using Words = std::optional<at::Tensor>;

// e[i] = exp(x[i] - highest)
PLAIT_CLONES void exponentials(const float* __restrict x, int64_t n, float highest,
                               float* __restrict e) {
  for (int64_t i = 0; i < n; ++i) e[i] = exp_nonpositive(x[i] - highest);
}

// terms[i] = e[i] * (x[i] - highest), 0 where e[i] is 0 although the distance may be infinite
PLAIT_CLONES void weighted(const float* __restrict x, const float* __restrict e, int64_t n,
                           float highest, float* __restrict terms) {
  for (int64_t i = 0; i < n; ++i) {
    const float distance = x[i] - highest;
    terms[i] = e[i] * (distance < -87.0f ? -87.0f : distance);
  }
}

// Set what a bitmask of enough words forbids to `otherwise`; n is covered by the words.
PLAIT_CLONES void keep_legal(float* __restrict x, int64_t n, const int32_t* __restrict words,
                             float otherwise) {
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

// The same where the words may end before the tokens do.
void mask(float* x, int64_t begin, int64_t n, const int32_t* words, int64_t num_words,
          float otherwise) {
  const int64_t covered = std::clamp(num_words * kWord - begin, int64_t{0}, n);
  keep_legal(x, covered, words + begin / kWord, otherwise);
  std::fill(x + covered, x + n, otherwise);
}

// The sum of n <= kChunk terms, halves folded onto each other; overwrites all kChunk of them.
PLAIT_CLONES double fold(float* __restrict terms, int64_t n) {
  for (int64_t i = n; i < kChunk; ++i) terms[i] = 0.0f;
  for (int64_t half = kChunk / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) terms[i] += terms[half + i];
  }
  return terms[0];
}

// Sums over a row of e = exp(x - highest).
struct Sums {
  double all = 0.0;
  double weighted = 0.0;  // of e * (x - highest)
  double legal = 0.0;     // where the bitmask allows it
};

double sum_of(const float* x, int64_t vocab, float highest) {
  alignas(64) float e[kChunk];
  double sum = 0.0;
  for (int64_t begin = 0; begin < vocab; begin += kChunk) {
    const int64_t n = std::min(kChunk, vocab - begin);
    exponentials(x + begin, n, highest, e);
    sum += fold(e, n);
  }
  return sum;
}

Sums sums_of(const float* x, int64_t vocab, float highest, bool entropy, const int32_t* words,
             int64_t num_words) {
  alignas(64) float e[kChunk], terms[kChunk];
  Sums sums;
  for (int64_t begin = 0; begin < vocab; begin += kChunk) {
    const int64_t n = std::min(kChunk, vocab - begin);
    exponentials(x + begin, n, highest, e);
    if (entropy) {
      weighted(x + begin, e, n, highest, terms);
      sums.weighted += fold(terms, n);
    }
    if (words != nullptr) {
      std::copy_n(e, n, terms);
      mask(terms, begin, n, words, num_words, 0.0f);
      sums.legal += fold(terms, n);
    }
    sums.all += fold(e, n);
  }
  return sums;
}

// The k best tokens of a row as rank words, best first.
std::vector<uint64_t> best_of(const float* x, int64_t vocab, int64_t k) {
  std::vector<uint64_t> best;
  best.reserve(k + 1);
  for (int64_t begin = 0; begin < vocab && k > 0; begin += kStretch) {
    const int64_t n = std::min(kStretch, vocab - begin);
    const bool is_full = static_cast<int64_t>(best.size()) == k;
    // what ties with the worst has a higher token than it
    if (is_full && highest_order(x + begin, n) <= order_in(best.back())) continue;
    for (int64_t token = begin; token < begin + n; ++token) {
      const uint64_t word = rank_word(x[token], token);
      if (static_cast<int64_t>(best.size()) == k && word > best.back()) continue;
      best.insert(std::upper_bound(best.begin(), best.end(), word), word);
      if (static_cast<int64_t>(best.size()) > k) best.pop_back();
    }
  }
  return best;
}

// A bitmask's words, or none.
struct Bitmask {
  at::Tensor packed;
  const int32_t* words = nullptr;
  int64_t num_words = 0;

  explicit Bitmask(const Words& bitmask, int64_t rows) {
    if (!bitmask) return;
    TORCH_CHECK(bitmask->dim() == 2 && bitmask->size(0) == rows &&
                    bitmask->scalar_type() == at::kInt,
                "bitmask must be [", rows, ", words] int32");
    packed = bitmask->contiguous();
    words = packed.const_data_ptr<int32_t>();
    num_words = packed.size(1);
  }

  const int32_t* row(int64_t i) const { return words ? words + i * num_words : nullptr; }
};

std::tuple<at::Tensor, at::Tensor, at::Tensor> row_stats(const at::Tensor& scores,
                                                         const Words& bitmask, bool entropy) {
  check_scores(scores);
  const int64_t rows = scores.size(0), vocab = scores.size(1), stride = scores.stride(0);
  TORCH_CHECK(vocab >= 2, "row_stats needs two tokens");
  const Bitmask mask(bitmask, rows);
  at::Tensor top_ids = at::empty({rows, 2}, scores.options().dtype(at::kLong));
  at::Tensor top_scores = at::empty({rows, 2}, scores.options());
  at::Tensor stats = at::empty({rows, 3}, scores.options());
  const float* values = scores.const_data_ptr<float>();
  int64_t* ids = top_ids.mutable_data_ptr<int64_t>();
  float* tops = top_scores.mutable_data_ptr<float>();
  float* out = stats.mutable_data_ptr<float>();
  at::parallel_for(0, rows, kRowsToSum, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      const float* x = values + row * stride;
      const std::vector<uint64_t> best = best_of(x, vocab, 2);
      for (int64_t i = 0; i < 2; ++i) {
        ids[2 * row + i] = token_of(best[i]);
        tops[2 * row + i] = x[token_of(best[i])];
      }
      const float highest = tops[2 * row];
      float* stat = out + 3 * row;
      if (highest == -kInfinity) {
        stat[0] = -kInfinity;
        stat[1] = entropy ? 0.0f : kNaN;
        stat[2] = mask.words ? -kInfinity : 0.0f;
        continue;
      }
      const Sums sums = sums_of(x, vocab, highest, entropy, mask.row(row), mask.num_words);
      stat[0] = static_cast<float>(highest + std::log(sums.all));
      stat[1] = entropy ? static_cast<float>(std::log(sums.all) - sums.weighted / sums.all) : kNaN;
      stat[2] = mask.words ? static_cast<float>(std::log(sums.legal / sums.all)) : 0.0f;
    }
  });
  return {top_ids, top_scores, stats};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> logprobs(const at::Tensor& scores,
                                                        const at::Tensor& token_ids, int64_t k,
                                                        const std::optional<at::Tensor>& rows) {
  check_scores(scores);
  const int64_t length = token_ids.numel(), vocab = scores.size(1), stride = scores.stride(0);
  TORCH_CHECK(0 <= k && k <= vocab, "k must be in 0..", vocab);
  const std::vector<int64_t> source = source_rows(rows, length, scores.size(0));
  const int64_t* tokens = vector_data<int64_t>(token_ids, length, "token_ids");
  for (int64_t i = 0; i < length; ++i) {
    TORCH_CHECK(0 <= tokens[i] && tokens[i] < vocab, "no such token: ", tokens[i]);
  }
  at::Tensor chosen = at::empty({length}, scores.options());
  at::Tensor top_ids = at::empty({length, k}, token_ids.options());
  at::Tensor top = at::empty({length, k}, scores.options());
  const float* values = scores.const_data_ptr<float>();
  float* chosen_out = chosen.mutable_data_ptr<float>();
  int64_t* ids_out = top_ids.mutable_data_ptr<int64_t>();
  float* top_out = top.mutable_data_ptr<float>();
  at::parallel_for(0, length, kRowsToSum, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const float* x = values + source[i] * stride;
      const float highest = from_order(highest_order(x, vocab));
      const double total = highest + std::log(sum_of(x, vocab, highest));
      chosen_out[i] = static_cast<float>(x[tokens[i]] - total);
      const std::vector<uint64_t> best = best_of(x, vocab, k);
      for (int64_t rank = 0; rank < k; ++rank) {
        const int64_t token = token_of(best[rank]);
        ids_out[i * k + rank] = token;
        top_out[i * k + rank] = static_cast<float>(x[token] - total);
      }
    }
  });
  return {chosen, top_ids, top};
}

void apply_bitmask_(const at::Tensor& scores, const at::Tensor& bitmask) {
  check_scores(scores);
  const int64_t rows = scores.size(0), vocab = scores.size(1), stride = scores.stride(0);
  const Bitmask packed(bitmask, rows);
  float* values = scores.mutable_data_ptr<float>();
  at::parallel_for(0, rows, kRowsToMask, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      mask(values + row * stride, 0, vocab, packed.row(row), packed.num_words, -kInfinity);
    }
  });
}

}  // namespace
}  // namespace plait

TORCH_LIBRARY_FRAGMENT(plait_row_stats, library) {
  library.def(
      "row_stats(Tensor scores, Tensor? bitmask, bool entropy=True) -> (Tensor, Tensor, Tensor)");
  library.def(
      "logprobs(Tensor scores, Tensor token_ids, int k, Tensor? rows) -> (Tensor, Tensor, Tensor)");
  library.def("apply_bitmask_(Tensor(a!) scores, Tensor bitmask) -> ()");
}

TORCH_LIBRARY_IMPL(plait_row_stats, CPU, library) {
  library.impl("row_stats", &plait::row_stats);
  library.impl("logprobs", &plait::logprobs);
  library.impl("apply_bitmask_", &plait::apply_bitmask_);
}
