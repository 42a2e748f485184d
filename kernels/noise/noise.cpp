// Counter-based Gumbel noise and the draw made with it; naive.py is the oracle, __init__.py the
// contract. Noise is made in blocks that stay in the first-level cache, right beside the scores
// that it perturbs, and not at all for blocks that cannot win.

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "rows.h"

namespace plait {
namespace {

constexpr int64_t kLanes = 16;            // counters of a group, side by side in a vector
constexpr int64_t kGroup = 4 * kLanes;    // tokens served by a group: four words per counter
constexpr int64_t kBlock = 16 * kGroup;   // tokens whose noise is made at a time
constexpr int64_t kChunk = 8 * kBlock;    // tokens of one task
constexpr int64_t kChunksPerThread = 3;   // fewer are not worth waking a thread for
constexpr float kMaxNoise = 23.0f;        // above every value of the noise
constexpr float kWordUnit = 0x1.fffffep-33f;  // just below 2**-32: no word becomes 1
constexpr uint32_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;  // Philox4x32's

struct Key {
  uint32_t seed_low, seed_high, sequence, position;
};

Key key_of(const int64_t* row) {
  const auto seed = static_cast<uint64_t>(row[0]);
  return {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32),
          static_cast<uint32_t>(row[1]), static_cast<uint32_t>(row[2])};
}

PLAIT_INLINE uint32_t high_half(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>((static_cast<uint64_t>(a) * b) >> 32);
}

// Philox4x32-10 with counter words (index, position, sequence, 0).
PLAIT_INLINE void philox(const Key& key, uint32_t index, uint32_t* words, int64_t stride) {
  uint32_t c0 = index, c1 = key.position, c2 = key.sequence, c3 = 0;
  uint32_t k0 = key.seed_low, k1 = key.seed_high;
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const uint32_t high0 = high_half(c0, kMultiplier0), low0 = c0 * kMultiplier0;
    const uint32_t high1 = high_half(c2, kMultiplier1), low1 = c2 * kMultiplier1;
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  words[0] = c0;
  words[stride] = c1;
  words[2 * stride] = c2;
  words[3 * stride] = c3;
}

PLAIT_INLINE float gumbel_of(uint32_t word) {
  const float uniform = (static_cast<float>(word) + 0.5f) * kWordUnit;
  return -log_positive(-log1m(uniform));
}

// Write the noise of kBlock tokens, the first of which is a multiple of kGroup.
PLAIT_CLONES void make_noise(const Key& key, int64_t first_token, float* __restrict noise) {
  alignas(64) uint32_t words[kBlock];
  const auto first_index = static_cast<uint32_t>(first_token / kGroup * kLanes);
  for (int64_t group = 0; group < kBlock / kGroup; ++group) {
    const auto index = static_cast<uint32_t>(first_index + group * kLanes);
    for (uint32_t lane = 0; lane < kLanes; ++lane) {
      philox(key, index + lane, words + group * kGroup + lane, kLanes);
    }
  }
  for (int64_t i = 0; i < kBlock; ++i) noise[i] = gumbel_of(words[i]);
}

PLAIT_CLONES void divide(const float* __restrict x, float by, int64_t n, float* __restrict out) {
  for (int64_t i = 0; i < n; ++i) out[i] = x[i] / by;
}

PLAIT_CLONES void add(float* __restrict x, const float* __restrict y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = y[i] + x[i];
}

struct Best {
  int32_t order = order_of(-kInfinity);
  int64_t token = 0;
};

// The winner among tokens begin .. end - 1 of one row.
Best best_of(const float* scores, const Key& key, float temperature, int64_t begin, int64_t end) {
  alignas(64) float scaled[kBlock], perturbed[kBlock];
  Best best;
  for (int64_t token = begin; token < end; token += kBlock) {
    const int64_t n = std::min(kBlock, end - token);
    const float* block = scores + token;
    if (temperature > 0.0f) {
      if (temperature != 1.0f) {
        divide(block, temperature, n, scaled);
        block = scaled;
      }
      const int32_t bound = highest_order(block, n);
      const bool is_illegal = bound <= order_of(-kInfinity);
      if (is_illegal || from_order(bound) + kMaxNoise <= from_order(best.order)) continue;
      make_noise(key, token, perturbed);
      add(perturbed, block, n);
      block = perturbed;
    }
    const int32_t order = highest_order(block, n);
    if (order > best.order) best = {order, token + first_with(block, n, order)};
  }
  return best;
}

void check_keys(const at::Tensor& keys) {
  TORCH_CHECK(keys.dim() == 2 && keys.size(1) == 3 && keys.scalar_type() == at::kLong,
              "keys must be [b, 3] int64");
}

at::Tensor gumbel(const at::Tensor& keys, int64_t num_tokens) {
  check_keys(keys);
  const at::Tensor packed = keys.contiguous();
  const int64_t rows = keys.size(0), blocks = (num_tokens + kBlock - 1) / kBlock;
  at::Tensor out = at::empty({rows, num_tokens}, keys.options().dtype(at::kFloat));
  const int64_t* key_rows = packed.const_data_ptr<int64_t>();
  float* values = out.mutable_data_ptr<float>();
  at::parallel_for(0, rows * blocks, kChunk / kBlock, [&](int64_t begin, int64_t end) {
    alignas(64) float noise[kBlock];
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task / blocks, token = task % blocks * kBlock;
      make_noise(key_of(key_rows + 3 * row), token, noise);
      std::copy_n(noise, std::min(kBlock, num_tokens - token), values + row * num_tokens + token);
    }
  });
  return out;
}

at::Tensor gumbel_argmax(const at::Tensor& scores, const at::Tensor& keys,
                         const std::optional<at::Tensor>& temperatures,
                         const std::optional<at::Tensor>& rows) {
  check_keys(keys);
  check_scores(scores);
  const int64_t draws = keys.size(0), vocab = scores.size(1), stride = scores.stride(0);
  const std::vector<int64_t> source = source_rows(rows, draws, scores.size(0));
  const at::Tensor packed = keys.contiguous();
  const at::Tensor heat = temperatures.value_or(at::ones({draws}, scores.options()));
  const float* degrees = vector_data<float>(heat, draws, "temperatures");
  const int64_t chunks = (vocab + kChunk - 1) / kChunk;
  std::vector<Best> bests(draws * chunks);
  const float* values = scores.const_data_ptr<float>();
  const int64_t* key_rows = packed.const_data_ptr<int64_t>();
  at::parallel_for(0, draws * chunks, kChunksPerThread, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t draw = task / chunks, begin = task % chunks * kChunk;
      bests[task] = best_of(values + source[draw] * stride, key_of(key_rows + 3 * draw),
                            degrees[draw], begin, std::min(begin + kChunk, vocab));
    }
  });

  at::Tensor tokens = at::empty({draws}, keys.options());
  int64_t* out = tokens.mutable_data_ptr<int64_t>();
  for (int64_t draw = 0; draw < draws; ++draw) {
    const auto first = bests.begin() + draw * chunks;
    // max_element keeps the first of equals, so the lowest id wins
    out[draw] = std::max_element(first, first + chunks, [](const Best& a, const Best& b) {
                  return a.order < b.order;
                })->token;
  }
  return tokens;
}

}  // namespace
}  // namespace plait

TORCH_LIBRARY_FRAGMENT(plait_noise, library) {
  library.def("gumbel(Tensor keys, int num_tokens) -> Tensor");
  library.def(
      "gumbel_argmax(Tensor scores, Tensor keys, Tensor? temperatures, Tensor? rows) -> Tensor");
}

TORCH_LIBRARY_IMPL(plait_noise, CPU, library) {
  library.impl("gumbel", &plait::gumbel);
  library.impl("gumbel_argmax", &plait::gumbel_argmax);
}
