// Packs rows as the products read them. Included inside a namespace, after the vectors.
//
// Rows lie in tiles, each [group][row of tile] of 32 k: fp32, or what the instruction set multiplies
// bf16 weights with, or integers, which have a step for the group beside them.
//
// For int8 weights x is step * q, q of -32767 .. 32767. For int4 weights each 8 k have a whole
// factor of 1 .. 63 in common, and x is step * factor * q, q of -127 .. 127; the factors stand
// behind the q. The greatest magnitude of a group has the greatest q and factor.

constexpr int kWordInput = 64, kByteInput = 48;  // bytes of a row's group
constexpr float kMostWord = 32767, kMostByte = 127, kMostFactor = 63;
constexpr float kLeast = 1e-30f;  // a group of smaller ones is zero: its inverse would overflow

// The place of a row's group among all groups of all rows.
inline size_t group_at(const Acts& acts, int most, int row, int group) {
  const int tile = row / most * most, size = std::min(most, acts.rows - tile);
  return static_cast<size_t>(tile) * acts.groups + static_cast<size_t>(group) * size + (row - tile);
}

// Inputs i .. i + 15 of n, zero beyond the last.
inline Vec inputs_at(const float* x, int i, int n) {
  if (i + 16 <= n) return load(x + i);
  return i < n ? load_first(x + i, n - i) : zero();
}

template <class Dot>
inline void pack_floats(const float* x, int k, int row, const Acts& acts) {
  for (int g = 0; g < acts.groups; ++g) {
    auto* out = static_cast<typename Dot::Act*>(acts.values) + group_at(acts, kTile, row, g) * kGroup;
    for (int i = 0; i < kGroup; i += 16) Dot::put(out + i, inputs_at(x, g * kGroup + i, k));
  }
}

inline Vec magnitude(Vec v) { return max(v, sub(zero(), v)); }

// 0, or NaN where one of 32 is infinite or NaN: added to a step, it spoils all that the group gives.
inline float fault_of(Vec low, Vec high) { return sum(add(sub(low, low), sub(high, high))); }

inline void pack_words(const float* x, int k, int row, const Acts& acts) {
  for (int g = 0; g < acts.groups; ++g) {
    const Vec low = inputs_at(x, g * kGroup, k), high = inputs_at(x, g * kGroup + 16, k);
    const float top = highest(max(magnitude(low), magnitude(high)));
    const Vec inverse = splat(top >= kLeast ? kMostWord / top : 0.0f);
    const Vec q_low = nearest(mul(low, inverse)), q_high = nearest(mul(high, inverse));
    const size_t at = group_at(acts, kIntegerTile, row, g);
    auto* out = reinterpret_cast<int16_t*>(static_cast<uint8_t*>(acts.values) + at * kWordInput);
    store(out, q_low);
    store(out + 16, q_high);
    acts.steps[at] = top / kMostWord + fault_of(low, high);
    acts.sums[at] = acts.steps[at] * sum(add(q_low, q_high));
  }
}

// 1 / factor for all factors.
struct Inverses {
  float of[static_cast<int>(kMostFactor) + 1];
  constexpr Inverses() : of() {
    for (int i = 1; i <= static_cast<int>(kMostFactor); ++i) of[i] = 1.0f / static_cast<float>(i);
  }
};
constexpr Inverses kInverses;

// The least factor that reaches a magnitude: at most 127 times it, in steps.
inline int factor_for(float steps) {
  const float least = steps * (1.0f / kMostByte);
  const int whole = static_cast<int>(least);
  return std::clamp(whole + (least > static_cast<float>(whole)), 1, static_cast<int>(kMostFactor));
}

// Packs 16 of a group with `scale` steps to 1, the greatest magnitude of each 8 given; returns
// their sum in steps.
inline float pack_half_group(
    Vec v, float scale, const float* tops, int8_t* q, int32_t* factors) {
  const int a = factor_for(tops[0] * scale), b = factor_for(tops[1] * scale);
  factors[0] = factor_word(a);
  factors[1] = factor_word(b);
  const Vec inverse = eights(scale * kInverses.of[a], scale * kInverses.of[b]);
  const Vec whole = nearest(mul(v, inverse));
  store(q, whole);
  return sum(mul(whole, eights(static_cast<float>(a), static_cast<float>(b))));
}

inline void pack_bytes(const float* x, int k, int row, const Acts& acts) {
  constexpr float kMost = kMostByte * kMostFactor;
  for (int g = 0; g < acts.groups; ++g) {
    const Vec low = inputs_at(x, g * kGroup, k), high = inputs_at(x, g * kGroup + 16, k);
    float tops[4];
    highest_eights(magnitude(low), tops);
    highest_eights(magnitude(high), tops + 2);
    const float top = std::max(std::max(tops[0], tops[1]), std::max(tops[2], tops[3]));
    const float fault = fault_of(low, high);
    const size_t at = group_at(acts, kIntegerTile, row, g);
    uint8_t* out = static_cast<uint8_t*>(acts.values) + at * kByteInput;
    if (!(top >= kLeast) || fault != fault) {
      std::memset(out, 0, kByteInput);
      acts.steps[at] = acts.sums[at] = fault;
      continue;
    }
    const float scale = kMost / top, step = top * (1.0f / kMost);
    auto* q = reinterpret_cast<int8_t*>(out);
    auto* factors = reinterpret_cast<int32_t*>(out + kGroup);
    const float steps = pack_half_group(low, scale, tops, q, factors) +
                        pack_half_group(high, scale, tops + 2, q + 16, factors + 2);
    acts.steps[at] = step;
    acts.sums[at] = step * steps;
  }
}

// Packs row `row` of acts, x [k], for weights of the given mode.
inline void pack_row(const float* x, int k, int row, Mode mode, const Acts& acts) {
  switch (mode) {
    case Mode::fp32: return pack_floats<DotFp32>(x, k, row, acts);
    case Mode::bf16: return pack_floats<DotHalf>(x, k, row, acts);
    case Mode::int8: return pack_words(x, k, row, acts);
    case Mode::int4: return pack_bytes(x, k, row, acts);
  }
}
