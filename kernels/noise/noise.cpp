// Counter-based Gumbel noise and the draw made with it; reference.py is the oracle, __init__.py the
// contract. A draw makes noise only where it can win: groups of tokens that are too far behind the
// best so far get none, and of others the random words say at once that none of them is rare enough.

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "bitmask.h"
#include "noise.h"
#include "rows.h"

namespace plait {
namespace {

constexpr int64_t kLanes = 16;            // counters of a group, side by side in a vector
constexpr int64_t kGroup = 4 * kLanes;    // tokens served by a group: four words per counter
constexpr int64_t kBlock = 16 * kGroup;   // tokens whose noise is written at a time
constexpr int64_t kChunk = 128;           // groups of one task
constexpr int64_t kChunksPerThread = 3;   // fewer are not worth waking a thread for
constexpr float kMaxNoise = 23.0f;        // above every value of the noise
constexpr float kSlack = 1e-3f;           // above every error of rounding in the noise
constexpr float kWordUnit = 0x1.fffffep-33f;  // just below 2**-32: no word becomes 1
constexpr uint32_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;  // Philox4x32's

struct Key {
  uint32_t seed_low, seed_high, stream_low, stream_high, position;
};

Key key_of(const int64_t* row) {
  const auto seed = static_cast<uint64_t>(row[0]), stream = static_cast<uint64_t>(row[1]);
  return {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32),
          static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32),
          static_cast<uint32_t>(row[2])};
}

PLAIT_INLINE uint32_t high_half(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>((static_cast<uint64_t>(a) * b) >> 32);
}

// Philox4x32-10 with counter words (index, position, stream low, stream high).
PLAIT_INLINE void philox(const Key& key, uint32_t index, uint32_t* words, int64_t stride) {
  uint32_t c0 = index, c1 = key.position, c2 = key.stream_low, c3 = key.stream_high;
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

// The random words of a group's tokens.
PLAIT_INLINE void draw_words(const Key& key, int64_t group, uint32_t* __restrict words) {
  const auto first = static_cast<uint32_t>(group * kLanes);
  for (uint32_t lane = 0; lane < kLanes; ++lane) philox(key, first + lane, words + lane, kLanes);
}

// noise[i] = the Gumbel variate of words[i]. Two loops, as each is one long chain of operations.
template <int64_t n>
PLAIT_INLINE void to_noise(const uint32_t* __restrict words, float* __restrict noise) {
  for (int64_t i = 0; i < n; ++i) {
    noise[i] = -log1m((static_cast<float>(words[i]) + 0.5f) * kWordUnit);
  }
  for (int64_t i = 0; i < n; ++i) noise[i] = -log_positive(noise[i]);
}

// Write the noise of kBlock tokens, the first of which is a multiple of kGroup.
PLAIT_CLONES void make_noise(const Key& key, int64_t first_token, float* __restrict noise) {
  alignas(64) uint32_t words[kBlock];
  const int64_t first = first_token / kGroup;
  for (int64_t i = 0; i < kBlock / kGroup; ++i) draw_words(key, first + i, words + i * kGroup);
  to_noise<kBlock>(words, noise);
}

struct Best {
  int32_t order = order_of(-kInfinity);
  int64_t token = 0;

  void meet(const Best& other) {
    const bool is_tie = other.order == order && other.token < token;
    if (other.order > order || is_tie) *this = other;
  }
};

// One row to draw from.
struct Draw {
  const float* scores;
  int64_t vocab;
  Key key;
  float temperature;  // 0: no noise
  std::optional<Legal> legal;
};

// Copy a group's scores; what is illegal or behind the vocabulary's end gets -inf.
PLAIT_INLINE void load(const Draw& draw, int64_t group, float* __restrict x) {
  const int64_t token = group * kGroup, n = std::min(kGroup, draw.vocab - token);
  std::copy_n(draw.scores + token, n, x);
  std::fill(x + n, x + kGroup, -kInfinity);
  if (draw.legal) draw.legal->keep(x, token, n, -kInfinity);
}

// bounds[i] = the highest score of group first + i over the temperature, if that is not 0.
PLAIT_CLONES void bound_groups(const Draw& draw, int64_t first, int64_t count,
                               float* __restrict bounds) {
  alignas(64) float x[kGroup];
  for (int64_t i = 0; i < count; ++i) {
    const int64_t token = (first + i) * kGroup;
    const bool is_whole = token + kGroup <= draw.vocab && !draw.legal;
    int32_t highest = INT32_MIN;
    if (!draw.legal || !draw.legal->none(token, std::min(kGroup, draw.vocab - token))) {
      if (!is_whole) load(draw, first + i, x);
      highest = highest_order(is_whole ? draw.scores + token : x, kGroup);
    }
    const float score = highest < order_of(-kInfinity) ? -kInfinity : from_order(highest);
    bounds[i] = draw.temperature > 0.0f ? score / draw.temperature : score;
  }
}

// How much noise a group whose highest score is `bound` needs at least to win; what scores lose by
// rounding is allowed for, so that ties are seen.
PLAIT_INLINE float needed(const Best& best, float bound) {
  const float score = from_order(best.order);
  return score - bound - (kSlack + std::abs(score) * 0x1p-22f);
}

// Words from this on make a noise of `need` at most, but for rounding: P(noise > x) < exp(-x).
PLAIT_INLINE uint64_t rare_enough(float need) {
  if (!(need > 0.0f)) return uint64_t{1} << 32;
  return static_cast<uint64_t>(exp_nonpositive(-need) * 0x1p32f) + 1;
}

// The winner of one group, unless it is certain to stay below the best so far.
PLAIT_CLONES Best best_of_group(const Draw& draw, int64_t group, float bound, const Best& best) {
  alignas(64) float x[kGroup], noise[kGroup];
  alignas(64) uint32_t words[kGroup];
  if (draw.temperature > 0.0f) {
    draw_words(draw.key, group, words);
    uint32_t lowest = words[0];
    for (int64_t i = 0; i < kGroup; ++i) lowest = std::min(lowest, words[i]);
    if (lowest >= rare_enough(needed(best, bound))) return {};
    load(draw, group, x);
    to_noise<kGroup>(words, noise);
    for (int64_t i = 0; i < kGroup; ++i) x[i] = noise[i] + x[i] / draw.temperature;
  } else {
    load(draw, group, x);
  }
  const int32_t order = highest_order(x, kGroup);
  if (order <= order_of(-kInfinity)) return {};
  return {order, group * kGroup + first_with(x, kGroup, order)};
}

// The winner among groups first .. first + count - 1, or the best so far.
Best best_of(const Draw& draw, int64_t first, int64_t count, const float* bounds, Best best) {
  const float most = draw.temperature > 0.0f ? kMaxNoise : 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    if (bounds[i] == -kInfinity || needed(best, bounds[i]) > most) continue;
    best.meet(best_of_group(draw, first + i, bounds[i], best));
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

// The winners of rows of `vocab` scores.
std::vector<Best> winners(const std::vector<Draw>& todo, int64_t vocab) {
  const auto draws = static_cast<int64_t>(todo.size());
  const int64_t groups = (vocab + kGroup - 1) / kGroup, chunks = (groups + kChunk - 1) / kChunk;
  std::vector<float> bounds(draws * groups);
  const auto each_chunk = [&](const auto& work) {
    at::parallel_for(0, draws * chunks, kChunksPerThread, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t draw = task / chunks, first = task % chunks * kChunk;
        work(task, draw, first, std::min(kChunk, groups - first), &bounds[draw * groups + first]);
      }
    });
  };
  each_chunk([&](int64_t, int64_t draw, int64_t first, int64_t count, float* where) {
    bound_groups(todo[draw], first, count, where);
  });
  // the group with the best score first: what it gives lets most others be passed over
  std::vector<Best> bests(draws);
  for (int64_t draw = 0; draw < draws; ++draw) {
    const float* row = &bounds[draw * groups];
    const int64_t first = std::max_element(row, row + groups) - row;
    bests[draw] = best_of(todo[draw], first, 1, row + first, {});
  }
  std::vector<Best> found(draws * chunks);
  each_chunk([&](int64_t task, int64_t draw, int64_t first, int64_t count, const float* where) {
    found[task] = best_of(todo[draw], first, count, where, bests[draw]);
  });

  for (int64_t task = 0; task < draws * chunks; ++task) bests[task / chunks].meet(found[task]);
  return bests;
}

at::Tensor gumbel_argmax(const at::Tensor& scores, const at::Tensor& keys,
                         const std::optional<at::Tensor>& temperatures,
                         const std::optional<at::Tensor>& rows,
                         const std::optional<at::Tensor>& bitmask) {
  check_keys(keys);
  check_scores(scores);
  const int64_t draws = keys.size(0), vocab = scores.size(1), stride = scores.stride(0);
  const std::vector<int64_t> source = source_rows(rows, draws, scores.size(0));
  const at::Tensor packed = keys.contiguous();
  const at::Tensor heat = temperatures.value_or(at::ones({draws}, scores.options()));
  const float* degrees = vector_data<float>(heat, draws, "temperatures");
  const std::optional<Bitmask> mask =
      bitmask ? std::optional<Bitmask>(std::in_place, *bitmask, draws) : std::nullopt;
  std::vector<Draw> todo;
  for (int64_t i = 0; i < draws; ++i) {
    todo.push_back({scores.const_data_ptr<float>() + source[i] * stride, vocab,
                    key_of(packed.const_data_ptr<int64_t>() + 3 * i), degrees[i],
                    mask ? std::optional<Legal>(mask->row(i)) : std::nullopt});
  }
  at::Tensor tokens = at::empty({draws}, keys.options());
  int64_t* out = tokens.mutable_data_ptr<int64_t>();
  for (const Best& best : winners(todo, vocab)) *out++ = best.token;
  return tokens;
}

}  // namespace

std::vector<int64_t> draw_rows(const at::Tensor& scores, const std::vector<NoiseRow>& keys,
                               const std::vector<float>& temperatures) {
  check_scores(scores);
  const size_t draws = keys.size();
  TORCH_CHECK_VALUE(static_cast<size_t>(scores.size(0)) == draws && temperatures.size() == draws,
                    draws, " keys and ", temperatures.size(), " temperatures for ", scores.size(0),
                    " rows of scores");
  std::vector<Draw> todo;
  for (size_t i = 0; i < draws; ++i) {
    todo.push_back({scores.const_data_ptr<float>() + i * scores.stride(0), scores.size(1),
                    key_of(keys[i].data()), temperatures[i], std::nullopt});
  }
  std::vector<int64_t> tokens;
  for (const Best& best : winners(todo, scores.size(1))) tokens.push_back(best.token);
  return tokens;
}

}  // namespace plait

TORCH_LIBRARY_FRAGMENT(plait_noise, library) {
  library.def("gumbel(Tensor keys, int num_tokens) -> Tensor");
  library.def(
      "gumbel_argmax(Tensor scores, Tensor keys, Tensor? temperatures, Tensor? rows, "
      "Tensor? bitmask) -> Tensor");
}

TORCH_LIBRARY_IMPL(plait_noise, CPU, library) {
  library.impl("gumbel", &plait::gumbel);
  library.impl("gumbel_argmax", &plait::gumbel_argmax);
}
