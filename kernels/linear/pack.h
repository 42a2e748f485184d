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

// What the 8 k of a group have in common, four times.
struct Factors {
  float whole[4], inverse[4];  // the factor; inputs become q by the inverse
};

// The least factors that reach magnitudes: at most 127 times each, in steps; `scale` steps are 1.
inline Factors factors_for(const float (&tops)[4], float scale) {
  Factors all;
  for (int i = 0; i < 4; ++i) {
    const float least = tops[i] * scale * (1.0f / kMostByte);
    const float down = static_cast<float>(static_cast<int>(least));
    const float up = down + (least > down ? 1.0f : 0.0f);
    all.whole[i] = std::min(std::max(up, 1.0f), kMostFactor);
    all.inverse[i] = scale * (1.0f / all.whole[i]);
  }
  return all;
}

inline void pack_bytes(const float* x, int k, int row, const Acts& acts) {
  constexpr float kMost = kMostByte * kMostFactor;
  for (int g = 0; g < acts.groups; ++g) {
    const Vec low = inputs_at(x, g * kGroup, k), high = inputs_at(x, g * kGroup + 16, k);
    float tops[4];
    highest_eights(magnitude(low), magnitude(high), tops);
    const float top = std::max(std::max(tops[0], tops[1]), std::max(tops[2], tops[3]));
    const float fault = fault_of(low, high);
    const size_t at = group_at(acts, kIntegerTile, row, g);
    uint8_t* out = static_cast<uint8_t*>(acts.values) + at * kByteInput;
    if (!(top >= kLeast) || fault != fault) {
      std::memset(out, 0, kByteInput);
      acts.steps[at] = acts.sums[at] = fault;
      continue;
    }
    const Factors by = factors_for(tops, kMost / top);
    const Vec q_low = nearest(mul(low, eights(by.inverse[0], by.inverse[1])));
    const Vec q_high = nearest(mul(high, eights(by.inverse[2], by.inverse[3])));
    auto* q = reinterpret_cast<int8_t*>(out);
    store(q, q_low);
    store(q + 16, q_high);
    auto* factors = reinterpret_cast<int32_t*>(out + kGroup);
    for (int i = 0; i < 4; ++i) factors[i] = factor_word(static_cast<int32_t>(by.whole[i]));
    const Vec steps_low = mul(q_low, eights(by.whole[0], by.whole[1]));
    const Vec steps_high = mul(q_high, eights(by.whole[2], by.whole[3]));
    acts.steps[at] = top * (1.0f / kMost);
    acts.sums[at] = acts.steps[at] * sum(add(steps_low, steps_high));  // whole numbers: exact
  }
}

// Packs row `row` of acts, x [k], for weights of the given mode.
inline void pack_row(const float* x, int k, int row, Mode mode, const Acts& acts) {
  switch (mode) {
    case Mode::fp32: return pack_floats<DotFp32>(x, k, row, acts);
    case Mode::bf16: return pack_floats<DotHalf>(x, k, row, acts);
    case Mode::int8: return pack_words(x, k, row, acts);
    case Mode::int4:
    case Mode::int4wide: return pack_bytes(x, k, row, acts);
  }
}
