// min_p, top_k and top_p without a full sort; reference.py is the oracle, __init__.py the contract.
//
// Tokens fall into buckets by their distance from the best score, which orders the buckets as the
// scores are ordered. Counts and masses of whole buckets lead to the one bucket that holds the cut;
// only that one is sorted. Masses are whole numbers, so no order of summation can move the cut.

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "../noise/rows.h"

namespace plait {
namespace {

constexpr int kBuckets = 1024;
constexpr float kPerNat = 32.0f;  // the last bucket holds everything from 32 nats on
constexpr int32_t kOutside = kBuckets;
constexpr uint64_t kKeepAll = std::numeric_limits<uint64_t>::max();

struct Cut {
  int64_t top_k;
  double top_p;
  float reach;  // -log(min_p)

  bool is_off() const { return top_k <= 0 && top_p >= 1.0 && reach == kInfinity; }
};

// Bucket and exp(score - best) of each token.
PLAIT_CLONES void classify(const float* __restrict scores, int64_t vocab, float best, float reach,
                           int32_t* __restrict bucket, float* __restrict value) {
  for (int64_t i = 0; i < vocab; ++i) {
    const float gap = best - scores[i];
    const float place = gap * kPerNat;
    const auto index = static_cast<int32_t>(place < kBuckets - 1 ? place : kBuckets - 1.0f);
    const int32_t is_inside = -static_cast<int32_t>(gap <= reach);
    bucket[i] = (index & is_inside) | (kOutside & ~is_inside);
    value[i] = exp_nonpositive(-gap);
  }
}

// Set what ranks behind the last kept token, and what min_p has excluded, to -inf.
PLAIT_CLONES void cut_behind(float* __restrict scores, int64_t vocab, int32_t last_order,
                             int32_t last_token, const int32_t* __restrict bucket) {
  for (int32_t i = 0; i < static_cast<int32_t>(vocab); ++i) {
    const int32_t order = order_of(scores[i]);
    const bool is_before = (order > last_order) | ((order == last_order) & (i <= last_token));
    scores[i] = is_before & (bucket[i] != kOutside) ? scores[i] : -kInfinity;
  }
}

// One row's buckets; kept from row to row for its memory.
class Histogram {
 public:
  void fill(const float* scores, int64_t vocab, float best, float reach) {
    bucket_.resize(vocab);
    value_.resize(vocab);
    // a score of -inf is outside whatever the reach
    reach = std::min(reach, std::numeric_limits<float>::max());
    classify(scores, vocab, best, reach, bucket_.data(), value_.data());
    std::fill_n(count_, kBuckets + 1, 0);
    std::fill_n(mass_, kBuckets + 1, 0);
    for (int64_t token = 0; token < vocab; ++token) {
      ++count_[bucket_[token]];
      mass_[bucket_[token]] += mass_of(token);
    }
    scores_ = scores;
  }

  // The rank word of the k-th best token inside; kKeepAll if there are no more than k.
  uint64_t last_by_count(int64_t k) const {
    const auto inside = static_cast<int64_t>(bucket_.size()) - count_[kOutside];
    if (k >= inside) return kKeepAll;
    int b = 0;
    for (; k > count_[b]; ++b) k -= count_[b];
    return members(b)[k - 1];
  }

  // The mass of everything up to and including `last`.
  int64_t mass_until(uint64_t last) const {
    int64_t mass = 0;
    const int end = last == kKeepAll ? kBuckets : bucket_[token_of(last)];
    for (int b = 0; b < end; ++b) mass += mass_[b];
    if (end == kBuckets) return mass;
    for (const uint64_t word : members(end)) mass += word <= last ? mass_of(token_of(word)) : 0;
    return mass;
  }

  // The rank word of the token with which the mass reaches `need`; `last` if none before does.
  uint64_t last_by_mass(double need, uint64_t last) const {
    int64_t mass = 0;
    int b = 0;
    for (; b < kBuckets && static_cast<double>(mass + mass_[b]) < need; ++b) mass += mass_[b];
    if (b == kBuckets) return last;
    for (const uint64_t word : members(b)) {
      mass += mass_of(token_of(word));
      if (static_cast<double>(mass) >= need) return std::min(word, last);
    }
    return last;
  }

  const int32_t* buckets() const { return bucket_.data(); }

 private:
  int64_t mass_of(int64_t token) const { return static_cast<int64_t>(value_[token] * 0x1p40f); }

  // The rank words of a bucket's tokens, best first.
  std::vector<uint64_t> members(int b) const {
    std::vector<uint64_t> words;
    words.reserve(count_[b]);
    for (size_t token = 0; token < bucket_.size(); ++token) {
      if (bucket_[token] == b) words.push_back(rank_word(scores_[token], token));
    }
    std::sort(words.begin(), words.end());
    return words;
  }

  const float* scores_ = nullptr;
  std::vector<int32_t> bucket_;
  std::vector<float> value_;
  int64_t count_[kBuckets + 1];
  int64_t mass_[kBuckets + 1];
};

void truncate_row(float* scores, int64_t vocab, const Cut& cut, Histogram& histogram) {
  if (cut.is_off()) return;
  const float best = from_order(highest_order(scores, vocab));
  if (best == -kInfinity) return;
  histogram.fill(scores, vocab, best, cut.reach);
  uint64_t last = cut.top_k > 0 ? histogram.last_by_count(cut.top_k) : kKeepAll;
  if (cut.top_p < 1.0) {
    const auto total = static_cast<double>(histogram.mass_until(last));
    last = histogram.last_by_mass(total * cut.top_p, last);
  }
  const bool keeps_all = last == kKeepAll;
  const int32_t last_order = keeps_all ? order_of(-kInfinity) : order_in(last);
  const auto last_token = static_cast<int32_t>(keeps_all ? vocab : token_of(last));
  cut_behind(scores, vocab, last_order, last_token, histogram.buckets());
}

void truncate_(const at::Tensor& scores, const at::Tensor& top_k, const at::Tensor& top_p,
               const at::Tensor& reach) {
  check_scores(scores);
  const int64_t rows = scores.size(0), vocab = scores.size(1), stride = scores.stride(0);
  TORCH_CHECK(vocab >= 1, "truncate needs a token");
  const int64_t* ks = vector_data<int64_t>(top_k, rows, "top_k");
  const double* ps = vector_data<double>(top_p, rows, "top_p");
  const float* reaches = vector_data<float>(reach, rows, "reach");
  float* values = scores.mutable_data_ptr<float>();
  at::parallel_for(0, rows, 1, [&](int64_t first, int64_t last) {
    Histogram histogram;
    for (int64_t row = first; row < last; ++row) {
      truncate_row(values + row * stride, vocab, {ks[row], ps[row], reaches[row]}, histogram);
    }
  });
}

}  // namespace
}  // namespace plait

TORCH_LIBRARY_FRAGMENT(plait_row_stats, library) {
  library.def(
      "truncate_(Tensor(a!) scores, Tensor top_k, Tensor top_p, Tensor reach) -> ()");
}

TORCH_LIBRARY_IMPL(plait_row_stats, CPU, library) {
  library.impl("truncate_", &plait::truncate_);
}
