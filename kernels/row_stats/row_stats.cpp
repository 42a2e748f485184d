// Statistics, log-probabilities and the constraint's mask over rows of scores; reference.py is the
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

#include "../noise/bitmask.h"
#include "../noise/rows.h"

namespace plait {
namespace {

constexpr int64_t kChunk = 4096;  // tokens whose terms stay in the first-level cache; a power of 2
constexpr int64_t kStretch = 64;  // tokens passed over together when none is among the best
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();  // a statistic nobody asked for

// Rows that are worth waking a thread for.
constexpr int64_t kRowsToSum = 2, kRowsToMask = 16;

// e[i] = exp((x[i] - highest) * inverse), of the inverse temperature
PLAIT_CLONES void exponentials(const float* __restrict x, int64_t n, float highest, float inverse,
                               float* __restrict e) {
  for (int64_t i = 0; i < n; ++i) e[i] = exp_nonpositive((x[i] - highest) * inverse);
}

// terms[i] = e[i] * (x[i] - highest), 0 where e[i] is 0 although the distance may be infinite
PLAIT_CLONES void weighted(const float* __restrict x, const float* __restrict e, int64_t n,
                           float highest, float* __restrict terms) {
  for (int64_t i = 0; i < n; ++i) {
    const float distance = x[i] - highest;
    terms[i] = e[i] * (distance < -87.0f ? -87.0f : distance);
  }
}

// The sum of n <= kChunk terms, halves folded onto each other; overwrites all kChunk of them.
PLAIT_CLONES double fold(float* __restrict terms, int64_t n) {
  for (int64_t i = n; i < kChunk; ++i) terms[i] = 0.0f;
  for (int64_t half = kChunk / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) terms[i] += terms[half + i];
  }
  return terms[0];
}

// The sum over a row of exp((x - highest) * inverse).
double sum_of(const float* x, int64_t vocab, float highest, float inverse = 1.0f) {
  alignas(64) float e[kChunk];
  double sum = 0.0;
  for (int64_t begin = 0; begin < vocab; begin += kChunk) {
    const int64_t n = std::min(kChunk, vocab - begin);
    exponentials(x + begin, n, highest, inverse, e);
    sum += fold(e, n);
  }
  return sum;
}

// Sums over a row of e = exp(x - highest) and of e * (x - highest).
struct Sums {
  double all = 0.0, weighted = 0.0;
};

Sums weighted_sums_of(const float* x, int64_t vocab, float highest) {
  alignas(64) float e[kChunk], terms[kChunk];
  Sums sums;
  for (int64_t begin = 0; begin < vocab; begin += kChunk) {
    const int64_t n = std::min(kChunk, vocab - begin);
    exponentials(x + begin, n, highest, 1.0f, e);
    weighted(x + begin, e, n, highest, terms);
    sums.weighted += fold(terms, n);
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

std::tuple<at::Tensor, at::Tensor, at::Tensor> row_stats(const at::Tensor& scores, bool entropy) {
  check_scores(scores);
  const int64_t rows = scores.size(0), vocab = scores.size(1), stride = scores.stride(0);
  TORCH_CHECK(vocab >= 2, "row_stats needs two tokens");
  at::Tensor top_ids = at::empty({rows, 2}, scores.options().dtype(at::kLong));
  at::Tensor top_scores = at::empty({rows, 2}, scores.options());
  at::Tensor stats = at::empty({rows, 2}, scores.options());
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
      float* stat = out + 2 * row;
      if (highest == -kInfinity) {
        stat[0] = -kInfinity;
        stat[1] = entropy ? 0.0f : kNaN;
        continue;
      }
      const Sums sums = entropy ? weighted_sums_of(x, vocab, highest)
                                : Sums{sum_of(x, vocab, highest)};
      stat[0] = static_cast<float>(highest + std::log(sums.all));
      stat[1] = entropy ? static_cast<float>(std::log(sums.all) - sums.weighted / sums.all) : kNaN;
    }
  });
  return {top_ids, top_scores, stats};
}

// Call use(block, n) for every block of a row that has a legal token; the others of it are -inf.
template <typename Use>
void each_legal_block(const float* x, int64_t vocab, const Legal& legal, Use use) {
  alignas(64) float block[kChunk];
  for (int64_t begin = 0; begin < vocab; begin += kChunk) {
    const int64_t n = std::min(kChunk, vocab - begin);
    if (legal.none(begin, n)) continue;
    std::copy_n(x + begin, n, block);
    legal.keep(block, begin, n, -kInfinity);
    use(block, n);
  }
}

// The highest score that the words allow; -inf if there is none.
float highest_legal(const float* x, int64_t vocab, const Legal& legal) {
  int32_t highest = order_of(-kInfinity);
  each_legal_block(x, vocab, legal, [&](const float* block, int64_t n) {
    highest = std::max(highest, highest_order(block, n));
  });
  return from_order(highest);
}

// The sum over a row's legal tokens of exp((x - highest) * inverse), highest being the best of them.
double legal_sum_of(const float* x, int64_t vocab, float highest, float inverse,
                    const Legal& legal) {
  alignas(64) float e[kChunk];
  double sum = 0.0;
  each_legal_block(x, vocab, legal, [&](const float* block, int64_t n) {
    exponentials(block, n, highest, inverse, e);
    sum += fold(e, n);
  });
  return sum;
}

at::Tensor legal_mass(const at::Tensor& scores, const at::Tensor& bitmask,
                      const at::Tensor& temperatures, const std::optional<at::Tensor>& rows) {
  check_scores(scores);
  const int64_t length = bitmask.size(0), vocab = scores.size(1), stride = scores.stride(0);
  const std::vector<int64_t> source = source_rows(rows, length, scores.size(0));
  const Bitmask mask(bitmask, length);
  const float* heat = vector_data<float>(temperatures, length, "temperatures");
  at::Tensor mass = at::empty({length}, scores.options());
  const float* values = scores.const_data_ptr<float>();
  float* out = mass.mutable_data_ptr<float>();
  at::parallel_for(0, length, kRowsToSum, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const float* x = values + source[i] * stride;
      const Legal legal = mask.row(i);
      const float best = highest_legal(x, vocab, legal), inverse = 1.0f / heat[i];
      if (best == -kInfinity) {
        out[i] = -kInfinity;
        continue;
      }
      const float highest = from_order(highest_order(x, vocab));
      const double part = legal_sum_of(x, vocab, best, inverse, legal);
      const double whole = sum_of(x, vocab, highest, inverse);
      out[i] = static_cast<float>((best - highest) * inverse + std::log(part / whole));
    }
  });
  return mass;
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
      packed.row(row).keep(values + row * stride, 0, vocab, -kInfinity);
    }
  });
}

}  // namespace
}  // namespace plait

TORCH_LIBRARY_FRAGMENT(plait_row_stats, library) {
  library.def("row_stats(Tensor scores, bool entropy=True) -> (Tensor, Tensor, Tensor)");
  library.def(
      "legal_mass(Tensor scores, Tensor bitmask, Tensor temperatures, Tensor? rows) -> Tensor");
  library.def(
      "logprobs(Tensor scores, Tensor token_ids, int k, Tensor? rows) -> (Tensor, Tensor, Tensor)");
  library.def("apply_bitmask_(Tensor(a!) scores, Tensor bitmask) -> ()");
}

TORCH_LIBRARY_IMPL(plait_row_stats, CPU, library) {
  library.impl("row_stats", &plait::row_stats);
  library.impl("legal_mass", &plait::legal_mass);
  library.impl("logprobs", &plait::logprobs);
  library.impl("apply_bitmask_", &plait::apply_bitmask_);
}
