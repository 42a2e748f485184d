// Products of int4fixed weights. Included inside a namespace, after pack.h and tiles.h.
//
// A weight is W * step of its column, W = S * q + M of 15 bits with a nibble q and whole S and M of its
// group; an input is x * step of its row, x = 128 * high + low of 14 bits. Both sums over k,
//
//     high = sum of x.high * W, low = sum of x.low * W,
//
// are exact in 32 bits (weight.py bounds W for that), whatever is summed first: by groups here, in
// tiles of W in amx_fixed.h. An output is step of the column * (step of the row * (128 * high + low)).

constexpr float kMostFixed = 8127;  // 63 * 128 + 63

// How the packed rows lie: for each 64 k their high bytes, then their low ones.
inline size_t fixed_row_bytes(int groups) { return 128 * static_cast<size_t>(ceil_div(groups, 2)); }
inline size_t fixed_place(int group) { return 128 * static_cast<size_t>(group / 2) + 32 * (group % 2); }

inline const uint8_t* fixed_row(const Acts& acts, int row) {
  return static_cast<const uint8_t*>(acts.values) + row * fixed_row_bytes(acts.groups);
}

// The greatest magnitude of a row, or NaN where it holds one or an infinity.
inline float top_of(const float* x, int k) {
  Vec top = zero(), faults = zero();
  for (int i = 0; i < k; i += 16) {
    const Vec values = inputs_at(x, i, k);
    top = max(top, magnitude(values));
    faults = add(faults, sub(values, values));
  }
  return highest(top) + fault_of(faults, faults);
}

// 16 of a row's inputs, as whole numbers in two parts.
struct FixedInputs {
  Vec high, low;

  FixedInputs(Vec x, float inverse) {
    const Vec whole = nearest(mul(x, splat(inverse)));
    high = nearest(mul(whole, splat(1.0f / 128)));
    low = sub(whole, mul(high, splat(128)));
  }
};

// A whole number in the upper half of a word.
inline float upper_half(float whole) {
  const uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(whole)) << 16;
  float word;
  std::memcpy(&word, &bits, sizeof word);
  return word;
}

// Beside the rows: a group's sums of both parts, in the upper halves of words.
inline void pack_fixed(const float* x, int k, int row, const Acts& acts) {
  const float top = top_of(x, k);
  const float inverse = top >= kLeast ? kMostFixed / top : 0.0f;  // 0 for NaN, too
  acts.row_steps[row] = top == top ? (top >= kLeast ? top / kMostFixed : 0.0f) : top;
  auto* out = const_cast<uint8_t*>(fixed_row(acts, row));
  for (int g = 0; g < round_up(acts.groups, 2); ++g) {
    const FixedInputs first(top == top ? inputs_at(x, g * kGroup, k) : zero(), inverse);
    const FixedInputs second(top == top ? inputs_at(x, g * kGroup + 16, k) : zero(), inverse);
    auto* bytes = reinterpret_cast<int8_t*>(out + fixed_place(g));
    store(bytes, first.high);
    store(bytes + 16, second.high);
    store(bytes + 64, first.low);
    store(bytes + 80, second.low);
    if (g == acts.groups) break;
    const size_t at = static_cast<size_t>(row) * acts.groups + g;
    acts.steps[at] = upper_half(sum(add(first.high, second.high)));
    acts.sums[at] = upper_half(sum(add(first.low, second.low)));
  }
}

struct Fixed {
  static constexpr int kBytes = 640, kQuants = 128;

  // A panel's first block holds the steps of its columns.
  static const uint8_t* panel(const Matrix& m, int index) { return m.panels + index * m.panel_bytes(); }
  static const float* column_steps(const uint8_t* panel) { return reinterpret_cast<const float*>(panel); }
  static const uint8_t* blocks(const uint8_t* panel) { return panel + kBytes; }
};

inline Vec fixed_output(Vec high, Vec low, Vec column_steps, float row_step) {
  return mul(column_steps, mul(splat(row_step), fma(splat(128), high, low)));
}
