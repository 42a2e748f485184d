// Packs rows as the products read them. Included inside a namespace, after the vectors.
//
// Rows lie in tiles, each [group][row of tile] of 32 k: floats, for bf16 weights rounded to bf16, or
// integers, which have a step for the group beside them.
//
// For int8 weights x is step * q, q of -32767 .. 32767. For int4 weights each 8 k have a whole
// factor of 1 .. 16 in common, and x is step * factor * q, q of -127 .. 127; the factors stand
// behind the q. The greatest magnitude of a group has the greatest q and factor.

constexpr float kMostWord = 32767, kMostByte = 127, kMostFactor = 16;
constexpr float kLeast = 1e-30f;  // a group of smaller ones is zero: its inverse would overflow

// How the rows of a tile lie: at most kRows, of kBytes a group.
template <int kMost, int kSize>
struct Rows {
  static constexpr int kRows = kMost, kBytes = kSize;
  // Rows that a tile takes, where so many are left.
  static int taken(int left) { return std::min(kMost, left); }
};

struct FloatRows : Rows<kTile, 128> {
  static void put(uint8_t* out, Vec low, Vec high) {
    store(reinterpret_cast<float*>(out), low);
    store(reinterpret_cast<float*>(out) + 16, high);
  }
};

struct HalfRows : Rows<kHalfTile, 128> {
  static void put(uint8_t* out, Vec low, Vec high) {
    uint16_t rounded[32];
    store(rounded, low);
    store(rounded + 16, high);
    FloatRows::put(out, load(rounded), load(rounded + 16));
  }
};

struct WordRows : Rows<kIntegerTile, 64> {
  static void put(uint8_t* out, Vec low, Vec high) {
    store(reinterpret_cast<int16_t*>(out), low);
    store(reinterpret_cast<int16_t*>(out) + 16, high);
  }
};

// The q of a group's 32 k, and the factors that each 8 of them have in common.
struct ByteGroup {
  Vec low, high, low_factors, high_factors;

  Vec steps_low() const { return mul(low, low_factors); }
  Vec steps_high() const { return mul(high, high_factors); }
};

struct ByteRows : Rows<kIntegerTile, 48> {
  static void put(uint8_t* out, const ByteGroup& group) {
    int32_t factors[4];
    put_quants(out, group, factors);
    auto* words = reinterpret_cast<int32_t*>(out + kGroup);
    for (int i = 0; i < 4; ++i) words[i] = factor_word(factors[i]);
  }

  static void put_quants(uint8_t* out, const ByteGroup& group, int32_t (&factors)[4]) {
    store(reinterpret_cast<int8_t*>(out), group.low);
    store(reinterpret_cast<int8_t*>(out) + 16, group.high);
    store_each_eighth(group.low_factors, factors);
    store_each_eighth(group.high_factors, factors + 2);
  }
};

// The place of a row's group among all groups of all rows.
template <class Layout>
inline size_t group_at(const Acts& acts, int row, int group) {
  const int tile = row / Layout::kRows * Layout::kRows;
  const int size = Layout::taken(acts.rows - tile);
  return static_cast<size_t>(tile) * acts.groups + static_cast<size_t>(group) * size + (row - tile);
}

template <class Layout>
inline uint8_t* place_of(const Acts& acts, size_t at) {
  return static_cast<uint8_t*>(acts.values) + at * Layout::kBytes;
}

// Inputs i .. i + 15 of n, zero beyond the last.
inline Vec inputs_at(const float* x, int i, int n) {
  if (i + 16 <= n) return load(x + i);
  return i < n ? load_first(x + i, n - i) : zero();
}

template <class Layout>
void pack_floats(const float* x, int k, int row, const Acts& acts) {
  for (int g = 0; g < acts.groups; ++g) {
    uint8_t* out = place_of<Layout>(acts, group_at<Layout>(acts, row, g));
    Layout::put(out, inputs_at(x, g * kGroup, k), inputs_at(x, g * kGroup + 16, k));
  }
}

inline Vec magnitude(Vec v) { return max(v, sub(zero(), v)); }

// 0, or NaN where one of 32 is infinite or NaN: added to a step, it spoils all that the group gives.
inline float fault_of(Vec low, Vec high) {
  const bool is_faulty = has_nan(add(sub(low, low), sub(high, high)));
  return is_faulty ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
}

template <class Layout>
void pack_words(const float* x, int k, int row, const Acts& acts) {
  for (int g = 0; g < acts.groups; ++g) {
    const Vec low = inputs_at(x, g * kGroup, k), high = inputs_at(x, g * kGroup + 16, k);
    const float top = highest(max(magnitude(low), magnitude(high)));
    const Vec inverse = splat(top >= kLeast ? kMostWord / top : 0.0f);
    const Vec q_low = nearest(mul(low, inverse)), q_high = nearest(mul(high, inverse));
    const size_t at = group_at<Layout>(acts, row, g);
    Layout::put(place_of<Layout>(acts, at), q_low, q_high);
    acts.steps[at] = top / kMostWord + fault_of(low, high);
    acts.sums[at] = acts.steps[at] * sum(add(q_low, q_high));
  }
}

// The least factors that reach magnitudes at most 127 times; `scale` steps are 1.
inline Vec factors_for(Vec tops, float scale) {
  const Vec least = mul(mul(tops, splat(scale)), splat(1.0f / kMostByte));
  return min(max(ceil(least), splat(1.0f)), splat(kMostFactor));
}

inline Vec quotients(Vec x, Vec factors, float scale) {
  return nearest(mul(x, mul(splat(scale), inverse_of(factors))));
}

template <class Layout>
void pack_bytes(const float* x, int k, int row, const Acts& acts) {
  constexpr float kMost = kMostByte * kMostFactor;
  for (int g = 0; g < acts.groups; ++g) {
    const Vec low = inputs_at(x, g * kGroup, k), high = inputs_at(x, g * kGroup + 16, k);
    const Vec low_tops = highest_eights(magnitude(low)), high_tops = highest_eights(magnitude(high));
    const float top = highest_of_halves(max(low_tops, high_tops));
    const float fault = fault_of(low, high);
    const size_t at = group_at<Layout>(acts, row, g);
    uint8_t* out = place_of<Layout>(acts, at);
    if (!(top >= kLeast) || fault != fault) {
      std::memset(out, 0, Layout::kBytes);
      acts.steps[at] = acts.sums[at] = fault;
      continue;
    }
    const float scale = kMost / top;
    ByteGroup group;
    group.low_factors = factors_for(low_tops, scale);
    group.high_factors = factors_for(high_tops, scale);
    group.low = quotients(low, group.low_factors, scale);
    group.high = quotients(high, group.high_factors, scale);
    Layout::put(out, group);
    acts.steps[at] = top * (1.0f / kMost);
    const float whole = sum(add(group.steps_low(), group.steps_high()));  // exact
    acts.sums[at] = acts.steps[at] * whole;
  }
}
