// Packs rows as the products read them. Included inside a namespace, after the vectors.
//
// Rows lie in tiles, each [group][row of tile][32 k]: fp32, or what the instruction set multiplies
// bf16 weights with, or, for integer weights, 16-bit integers with a step for the group: x is
// step * q, for the nearest q of -32767 .. 32767. A group's products then have an exact sum in
// 32 bits.

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
    for (int i = 0; i < kGroup; i += 16) {
      Dot::put(out + i, inputs_at(x, g * kGroup + i, k));
    }
  }
}

inline float highest_magnitude(Vec v, Vec w) {
  return highest(max(max(v, sub(zero(), v)), max(w, sub(zero(), w))));
}

// Where an input is infinite or NaN, the step is NaN, and with it all that the group adds to.
inline void pack_integers(const float* x, int k, int row, const Acts& acts) {
  constexpr float kMost = 32767, kLeast = 1e-30f;  // smaller ones have no finite inverse: all 0
  for (int g = 0; g < acts.groups; ++g) {
    const Vec low = inputs_at(x, g * kGroup, k), high = inputs_at(x, g * kGroup + 16, k);
    const float nothing = sum(add(sub(low, low), sub(high, high)));  // 0, or NaN
    const float top = highest_magnitude(low, high);
    const Vec inverse = splat(top >= kLeast ? kMost / top : 0.0f);
    const Vec q_low = nearest(mul(low, inverse)), q_high = nearest(mul(high, inverse));
    const size_t at = group_at(acts, kIntegerTile, row, g);
    int16_t* out = static_cast<int16_t*>(acts.values) + at * kGroup;
    store(out, q_low);
    store(out + 16, q_high);
    acts.steps[at] = top / kMost + nothing;
    acts.sums[at] = acts.steps[at] * sum(add(q_low, q_high));
  }
}

// Packs row `row` of acts, x [k], for weights of the given mode.
inline void pack_row(const float* x, int k, int row, Mode mode, const Acts& acts) {
  switch (packing(mode)) {
    case kFloats: return pack_floats<DotFp32>(x, k, row, acts);
    case kHalves: return pack_floats<DotHalf>(x, k, row, acts);
    default: return pack_integers(x, k, row, acts);
  }
}
