// Products with weights of floats. Included inside a namespace, after pack.h and tiles.h.
//
// One output is one chain of multiply-adds, the same for every tile size and every number of rows.
// fp32: over k in order. bf16: the 16 even k of a group of 32 are a chain that begins at 0, the odd
// ones another, and their sum is added to the total; an AMX tile sums in this order.

struct Fp32 {
  static constexpr int kBytes = 4096;

  static Vec even(const uint8_t* q, int vector, int pair) { return at(q, 2 * pair + vector, 0); }
  static Vec odd(const uint8_t* q, int vector, int pair) { return at(q, 2 * pair + vector, 16); }

 private:
  static Vec at(const uint8_t* q, int pair, int column) {
    return load(reinterpret_cast<const float*>(q) + 32 * pair + column);
  }
};

struct Bf16 {
  static constexpr int kBytes = 2048;

  static Vec even(const uint8_t* q, int vector, int pair) {
    return from_low_bf16(q + 64 * (2 * pair + vector));
  }
  static Vec odd(const uint8_t* q, int vector, int pair) {
    return from_high_bf16(q + 64 * (2 * pair + vector));
  }
};

// Rows `row` .. of a tile.
inline const float* floats_at(const Acts& acts, int row) {
  return static_cast<const float*>(acts.values) + static_cast<size_t>(row) * acts.groups * kGroup;
}

// acc[r][v] += the block's weights times 32 inputs of R rows.
template <int R>
inline void multiply(const uint8_t* q, const float* x, Vec (&acc)[R][2]) {
#pragma GCC unroll 4
  for (int four = 0; four < 16; four += 4) {
#pragma GCC unroll 4
    for (int p = four; p < four + 4; ++p) {
      const Vec even[2] = {Fp32::even(q, 0, p), Fp32::even(q, 1, p)};
      const Vec odd[2] = {Fp32::odd(q, 0, p), Fp32::odd(q, 1, p)};
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const float* pair = x + r * kGroup + 2 * p;
        const Vec first = splat(pair[0]), second = splat(pair[1]);
        acc[r][0] = fma(odd[0], second, fma(even[0], first, acc[r][0]));
        acc[r][1] = fma(odd[1], second, fma(even[1], first, acc[r][1]));
      }
    }
  }
}

// One tile of R rows times one panel.
template <int R>
void fp32_tile(const Matrix& m, int panel, const Acts& acts, int row, const Sink& sink) {
  const uint8_t* block = panel_at<Fp32>(m, panel);
  const float* x = floats_at(acts, row);
  Vec acc[R][2];
  clear(acc);
  for (int g = 0; g < acts.groups; ++g, block += Fp32::kBytes, x += R * kGroup) {
    if constexpr (R < kTile) prefetch_ahead<Fp32::kBytes>(block);
    ask_for_keys(acts);
    multiply<R>(block, x, acc);
  }
  emit<R>(m, panel, row, acc, sink);
}

void fp32_panels(const Matrix& m, int begin, int end, const Acts& acts, const Sink& sink) {
  each_tile<kTile>(begin, end, acts.rows, [&](int panel, int row, auto size) {
    fp32_tile<decltype(size)::value>(m, panel, acts, row, sink);
  });
}

// total[r] += one vector of a block's columns times 32 inputs of R rows.
template <int R>
inline void add_half_group(const uint8_t* q, int vector, const float* x, Vec (&total)[R][2]) {
  Vec even[R], odd[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) even[r] = odd[r] = zero();
#pragma GCC unroll 4
  for (int p = 0; p < 16; ++p) {
    const Vec first = Bf16::even(q, vector, p), second = Bf16::odd(q, vector, p);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      even[r] = fma(first, splat(x[r * kGroup + 2 * p]), even[r]);
      odd[r] = fma(second, splat(x[r * kGroup + 2 * p + 1]), odd[r]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) total[r][vector] = add(total[r][vector], add(even[r], odd[r]));
}

template <int R>
void bf16_tile(const Matrix& m, int panel, const Acts& acts, int row, const Sink& sink) {
  const uint8_t* block = panel_at<Bf16>(m, panel);
  const float* x = floats_at(acts, row);
  Vec total[R][2];
  clear(total);
  for (int g = 0; g < acts.groups; ++g, block += Bf16::kBytes, x += R * kGroup) {
    if constexpr (R < kHalfTile) prefetch_ahead<Bf16::kBytes>(block);
    ask_for_keys(acts);
    add_half_group<R>(block, 0, x, total);
    add_half_group<R>(block, 1, x, total);
  }
  emit<R>(m, panel, row, total, sink);
}

void bf16_panels(const Matrix& m, int begin, int end, const Acts& acts, const Sink& sink) {
  each_tile<kHalfTile>(begin, end, acts.rows, [&](int panel, int row, auto size) {
    bf16_tile<decltype(size)::value>(m, panel, acts, row, sink);
  });
}

constexpr LinearKernel kFp32{pack_floats<FloatRows>, fp32_panels};
constexpr LinearKernel kBf16{pack_floats<HalfRows>, bf16_panels};
