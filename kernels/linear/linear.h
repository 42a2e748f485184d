// Products of packed rows with weight panels. Included inside a namespace, after the vectors.
//
// One output is one chain of operations, the same for every tile size and every number of rows:
// over the groups of 32 k in order, and in a group over the pairs of k in order. In the integer
// modes a group's sum is exact, and then total = scale * (the input's step * sum) + total and
// total = minimum * (sum of the group's inputs) + total.

// Where the 16 pairs of a block's weights come from; `quants` is their offset in the block.
template <class D>
struct Plain {  // pairs stored as they are multiplied
  using Dot = D;
  static constexpr int kBytes = 32 * sizeof(typename D::Pair);
  static typename D::Pair pair(const uint8_t* q, int vector, int p) {
    return D::read(q + sizeof(typename D::Pair) * (2 * p + vector));
  }
};
struct Bf16 {
  using Dot = DotHalf;
  static constexpr int kBytes = 2048;
  static Dot::Pair pair(const uint8_t* q, int vector, int p) { return Dot::bf16(q, vector, p); }
};
struct Int8 {
  static constexpr int kBytes = 1088, kQuants = 64;
  static constexpr bool kMinimum = false;
  static Ints pair(const uint8_t* q, int vector, int eight, int p) {
    return widen(q + 32 * (2 * (4 * eight + p) + vector));
  }
};
struct Int4 {
  static constexpr int kBytes = 640, kQuants = 128;
  static constexpr bool kMinimum = true;
  static Ints pair(const uint8_t* q, int vector, int eight, int p) {
    return nibbles(q + 64 * (2 * eight + vector), 4 * p);
  }
};

using Fp32 = Plain<DotFp32>;

// Where a product goes: out[row * stride + column], in place of what is there or on top of it.
struct Sink {
  float* out;
  int stride;
  bool accumulate;
};

constexpr int kClaim = 8;  // panels taken at once: their weights fit a core's L2 cache

// Asks for one block's bytes, some blocks ahead of the stream of weights.
template <int kBytes>
inline void prefetch_ahead(const uint8_t* block) {
  constexpr int kAhead = 4096;
#pragma GCC unroll 64
  for (int i = 0; i < kBytes; i += 64) prefetch(block + kAhead + i);
}

template <class W>
inline const uint8_t* panel_at(const Matrix& m, int panel) {
  return m.panels + static_cast<size_t>(panel) * m.groups() * W::kBytes;
}

// acc[r][v] += the block's weights times 32 inputs of R rows.
template <int R, class W>
inline void multiply(const uint8_t* q, const typename W::Dot::Act* x, Vec (&acc)[R][2]) {
#pragma GCC unroll 4
  for (int four = 0; four < 16; four += 4) {
#pragma GCC unroll 4
    for (int p = four; p < four + 4; ++p) {
      const auto w0 = W::pair(q, 0, p), w1 = W::pair(q, 1, p);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const auto pair = W::Dot::spread(x + r * kGroup + 2 * p);
        acc[r][0] = W::Dot::dot(acc[r][0], w0, pair);
        acc[r][1] = W::Dot::dot(acc[r][1], w1, pair);
      }
    }
  }
}

template <int R>
inline void clear(Vec (&acc)[R][2]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = zero();
}

inline void emit_row(const Matrix& m, int panel, const Vec (&total)[2], float* out,
                     bool accumulate) {
  const int first = panel * kPanel;
  for (int v = 0; v < 2; ++v) {
    const int column = first + 16 * v, columns = std::min(16, m.n - column);
    if (columns <= 0) return;
    Vec y = total[v];
    if (columns == 16) {
      if (m.bias) y = add(y, load(m.bias + column));
      if (accumulate) y = add(y, load(out + column));
      store(out + column, y);
    } else {
      if (m.bias) y = add(y, load_first(m.bias + column, columns));
      if (accumulate) y = add(y, load_first(out + column, columns));
      store_first(out + column, y, columns);
    }
  }
}

template <int R>
inline void emit(const Matrix& m, int panel, int row, const Vec (&total)[R][2], const Sink& sink) {
  for (int r = 0; r < R; ++r) {
    float* out = sink.out + static_cast<size_t>(row + r) * sink.stride;
    emit_row(m, panel, total[r], out, sink.accumulate);
  }
}

// One tile of R rows times one panel, weights decoded on the way to the multiplier.
template <int R, class W>
void plain_tile(const Matrix& m, int panel, const Acts& acts, int row, const Sink& sink) {
  const uint8_t* block = panel_at<W>(m, panel);
  const auto* x = static_cast<const typename W::Dot::Act*>(acts.values) +
                  static_cast<size_t>(row) * acts.groups * kGroup;
  Vec acc[R][2];
  clear(acc);
  for (int g = 0; g < acts.groups; ++g, block += W::kBytes, x += R * kGroup) {
    if constexpr (R < kTile) prefetch_ahead<W::kBytes>(block);
    multiply<R, W>(block, x, acc);
  }
  emit<R>(m, panel, row, acc, sink);
}

// acc[r] += the products of 8 k of 16 columns and R rows.
template <int R, class W>
inline void multiply_eight(
    const uint8_t* q, int vector, int eight, const int16_t* x, Ints (&acc)[R]) {
#pragma GCC unroll 4
  for (int p = 0; p < 4; ++p) {
    Ints w = W::pair(q, vector, eight, p);
    keep_order(w);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      acc[r] = dot(acc[r], w, spread_pair(x + r * kGroup + 8 * eight + 2 * p));
      keep_order(acc[r]);
    }
  }
}

// acc[r] = the sums of one group's products for 16 columns and R rows.
template <int R, class W>
inline void multiply_integers(const uint8_t* q, int vector, const int16_t* x, Ints (&acc)[R]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) acc[r] = no_ints();
  if constexpr (R <= 2) {
#pragma GCC unroll 4
    for (int eight = 0; eight < 4; ++eight) multiply_eight<R, W>(q, vector, eight, x, acc);
  } else {  // longer code would not keep everything in registers
#pragma GCC unroll 1
    for (int eight = 0; eight < 4; ++eight) multiply_eight<R, W>(q, vector, eight, x, acc);
  }
}

// One tile of R rows times one panel of integers.
template <int R, class W>
[[gnu::noinline]] void integer_tile(const Matrix& m, int panel, const Acts& acts, int row, const Sink& sink) {
  const uint8_t* block = panel_at<W>(m, panel);
  const size_t start = static_cast<size_t>(row) * acts.groups;
  const auto* x = static_cast<const int16_t*>(acts.values) + start * kGroup;
  const float *steps = acts.steps + start, *sums = acts.sums + start;
  Vec total[R][2];
  clear(total);
  for (int g = 0; g < acts.groups; ++g) {
    prefetch_ahead<W::kBytes>(block);
#pragma GCC unroll 1
    for (int v = 0; v < 2; ++v) {
      Ints acc[R];
      multiply_integers<R, W>(block + W::kQuants, v, x, acc);
      const Vec scale = load_fp16(block + 32 * v);
      for (int r = 0; r < R; ++r) {
        total[r][v] = fma(scale, mul(splat(steps[r]), to_floats(acc[r])), total[r][v]);
      }
      if constexpr (W::kMinimum) {
        const Vec minimum = load_fp16(block + 64 + 32 * v);
        for (int r = 0; r < R; ++r) total[r][v] = fma(minimum, splat(sums[r]), total[r][v]);
      }
    }
    block += W::kBytes;
    x += R * kGroup;
    steps += R;
    sums += R;
  }
  emit<R>(m, panel, row, total, sink);
}

// Calls f(std::integral_constant<int, rows>()) for 1 to kMost rows.
template <int kMost, int R = 1, class F>
inline void with_rows(int rows, const F& f) {
  if constexpr (R < kMost) {
    if (rows != R) return with_rows<kMost, R + 1>(rows, f);
  }
  f(std::integral_constant<int, R>());
}

// Calls tile(panel, row, size) for every tile, in an order that finds its inputs in the cache.
template <int kMost, class F>
inline void each_tile(int begin, int end, int rows, const F& tile) {
  constexpr int kRows = 128 / kMost * kMost;  // of inputs and weights, half of a core's L2 cache
  for (int first = 0; first < rows; first += kRows) {
    const int last = std::min(first + kRows, rows);
    for (int panel = begin; panel < end; ++panel) {
      for (int row = first; row < last; row += kMost) {
        with_rows<kMost>(std::min(kMost, last - row), [&](auto size) { tile(panel, row, size); });
      }
    }
  }
}

template <class W>
inline void plain_panels(const Matrix& m, int begin, int end, const Acts& acts, const Sink& sink) {
  each_tile<kTile>(begin, end, acts.rows, [&](int panel, int row, auto size) {
    plain_tile<decltype(size)::value, W>(m, panel, acts, row, sink);
  });
}

template <class W>
inline void integer_panels(
    const Matrix& m, int begin, int end, const Acts& acts, const Sink& sink) {
  each_tile<kIntegerTile>(begin, end, acts.rows, [&](int panel, int row, auto size) {
    integer_tile<decltype(size)::value, W>(m, panel, acts, row, sink);
  });
}

// Panels begin .. end - 1 of the product; acts are packed for the matrix's mode.
void linear_panels(const Matrix& m, int begin, int end, const Acts& acts, const Sink& sink) {
  switch (m.mode) {
    case Mode::fp32: return plain_panels<Fp32>(m, begin, end, acts, sink);
    case Mode::bf16: return plain_panels<Bf16>(m, begin, end, acts, sink);
    case Mode::int8: return integer_panels<Int8>(m, begin, end, acts, sink);
    case Mode::int4: return integer_panels<Int4>(m, begin, end, acts, sink);
  }
}

void linear(Team& team, int thread, const LinearCall& call) {
  const Matrix& m = call.matrix;
  Acts acts = call.acts;
  acts.rows = call.rows;
  acts.groups = m.groups();
  int begin, end;
  while (team.claim(acts.rows, 64, &begin, &end)) {
    for (int row = begin; row < end; ++row) {
      pack_row(call.x + static_cast<size_t>(row) * m.k, m.k, row, m.mode, acts);
    }
  }
  team.meet();
  const Sink sink{call.out, m.n, false};
  while (team.claim(m.panel_count(), kClaim, &begin, &end)) {
    linear_panels(m, begin, end, acts, sink);
  }
}
