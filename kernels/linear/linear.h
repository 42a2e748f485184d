// Products of packed rows with weight panels. Included inside a namespace, after the vectors.
//
// One output is one chain of operations, the same for every tile size and every number of rows:
// over the groups of 32 k in order, and in a group over the pairs of k in order. Modes with scales
// start a new chain in each group and then do total = scale * chain + total and
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
  using Dot = DotHalf;
  static constexpr int kBytes = 1088, kQuants = 64;
  static constexpr bool kMinimum = false;
  static Dot::Pair pair(const uint8_t* q, int vector, int p) { return Dot::int8(q, vector, p); }
};
struct Int4 {
  using Dot = DotHalf;
  static constexpr int kBytes = 640, kQuants = 128;
  static constexpr bool kMinimum = true;
  static Dot::Pair pair(const uint8_t* q, int vector, int p) { return Dot::int4(q, vector, p); }
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
  constexpr int kAhead = 2048;
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

// total = scale * acc + total, then + minimum * sum, with the scales at the head of a block.
template <int R, bool kMinimum>
inline void scale_up(const uint8_t* block, const float* sums, const Vec (&acc)[R][2],
                     Vec (&total)[R][2]) {
  const Vec s0 = load_fp16(block), s1 = load_fp16(block + 32);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    total[r][0] = fma(s0, acc[r][0], total[r][0]);
    total[r][1] = fma(s1, acc[r][1], total[r][1]);
  }
  if constexpr (kMinimum) {
    const Vec m0 = load_fp16(block + 64), m1 = load_fp16(block + 96);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec sum = splat(sums[r]);
      total[r][0] = fma(m0, sum, total[r][0]);
      total[r][1] = fma(m1, sum, total[r][1]);
    }
  }
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

// The same with scales. `quants` holds the block's pairs in the form of W, `step` bytes apart: the
// blocks themselves, or what decode_panel made of them.
template <int R, class Scales, class W>
void scaled_tile(const Matrix& m, int panel, const Acts& acts, int row, const Sink& sink,
                 const uint8_t* quants, int step) {
  const uint8_t* block = panel_at<Scales>(m, panel);
  const auto* x = static_cast<const typename W::Dot::Act*>(acts.values) +
                  static_cast<size_t>(row) * acts.groups * kGroup;
  const float* sums = acts.sums + static_cast<size_t>(row) * acts.groups;
  Vec total[R][2];
  clear(total);
  for (int g = 0; g < acts.groups; ++g) {
    if constexpr (std::is_same_v<W, Scales>) prefetch_ahead<W::kBytes>(block);
    Vec acc[R][2];
    clear(acc);
    multiply<R, W>(quants, x, acc);
    scale_up<R, Scales::kMinimum>(block, sums, acc, total);
    block += Scales::kBytes;
    quants += step;
    x += R * kGroup;
    sums += R;
  }
  emit<R>(m, panel, row, total, sink);
}

// Calls f(std::integral_constant<int, rows>()).
template <int R = 1, class F>
inline void with_rows(int rows, const F& f) {
  if constexpr (R < kTile) {
    if (rows != R) return with_rows<R + 1>(rows, f);
  }
  f(std::integral_constant<int, R>());
}

// Writes all pairs of a panel as they are multiplied.
template <class W>
inline void decode_panel(const uint8_t* block, int groups, uint8_t* pairs) {
  using Dot = typename W::Dot;
  constexpr size_t kPair = sizeof(typename Dot::Pair);
  for (int g = 0; g < groups; ++g, block += W::kBytes, pairs += 32 * kPair) {
    prefetch_ahead<W::kBytes>(block);
#pragma GCC unroll 4
    for (int p = 0; p < 16; ++p) {
      Dot::write(pairs + kPair * (2 * p), W::pair(block + W::kQuants, 0, p));
      Dot::write(pairs + kPair * (2 * p + 1), W::pair(block + W::kQuants, 1, p));
    }
  }
}

// Calls tile(panel, row, size) for every tile, in an order that finds its inputs in the cache.
template <class F>
inline void each_tile(int begin, int end, int rows, const F& tile) {
  constexpr int kRows = 128 / kTile * kTile;  // of inputs and weights, half of a core's L2 cache
  for (int first = 0; first < rows; first += kRows) {
    const int last = std::min(first + kRows, rows);
    for (int panel = begin; panel < end; ++panel) {
      for (int row = first; row < last; row += kTile) {
        with_rows(std::min(kTile, last - row), [&](auto size) { tile(panel, row, size); });
      }
    }
  }
}

template <class W>
inline void plain_panels(const Matrix& m, int begin, int end, const Acts& acts, const Sink& sink) {
  each_tile(begin, end, acts.rows, [&](int panel, int row, auto size) {
    plain_tile<decltype(size)::value, W>(m, panel, acts, row, sink);
  });
}

template <class W>
inline void scaled_panels(
    const Matrix& m, int begin, int end, const Acts& acts, const Sink& sink, char* own) {
  if (!kDecodesPanels || acts.rows <= kTile) {
    return each_tile(begin, end, acts.rows, [&](int panel, int row, auto size) {
      const uint8_t* quants = panel_at<W>(m, panel) + W::kQuants;
      scaled_tile<decltype(size)::value, W, W>(m, panel, acts, row, sink, quants, W::kBytes);
    });
  }
  using Pairs = Plain<typename W::Dot>;
  uint8_t* pairs = reinterpret_cast<uint8_t*>(own);
  for (; begin < end; ++begin) {
    decode_panel<W>(panel_at<W>(m, begin), acts.groups, pairs);
    each_tile(begin, begin + 1, acts.rows, [&](int panel, int row, auto size) {
      constexpr int R = decltype(size)::value;
      scaled_tile<R, W, Pairs>(m, panel, acts, row, sink, pairs, Pairs::kBytes);
    });
  }
}

// Panels begin .. end - 1 of the product; acts are packed for the matrix's mode.
void linear_panels(
    const Matrix& m, int begin, int end, const Acts& acts, const Sink& sink, char* own) {
  switch (m.mode) {
    case Mode::fp32: return plain_panels<Fp32>(m, begin, end, acts, sink);
    case Mode::bf16: return plain_panels<Bf16>(m, begin, end, acts, sink);
    case Mode::int8: return scaled_panels<Int8>(m, begin, end, acts, sink, own);
    case Mode::int4: return scaled_panels<Int4>(m, begin, end, acts, sink, own);
  }
}

// Writes 16 inputs as DotHalf::Act, rounded to bf16, and returns their sum.
inline float pack_half(uint16_t* out, Vec x) {
  store(out, x);
  return sum(load(out));
}
inline float pack_half(float* out, Vec x) {
  uint16_t rounded[16];
  store(rounded, x);
  const Vec wide = load(rounded);
  store(out, wide);
  return sum(wide);
}

// Packs one row x [k] into its tile; `precise` keeps fp32.
inline void pack_row(const float* x, int k, int row, bool precise, const Acts& acts) {
  const int tile = row / kTile * kTile, size = std::min(kTile, acts.rows - tile);
  const size_t start = static_cast<size_t>(tile) * acts.groups;
  for (int g = 0; g < acts.groups; ++g) {
    const size_t at = start + static_cast<size_t>(g) * size + (row - tile);
    float total = 0;
    for (int i = 0; i < kGroup; i += 16) {
      const int left = std::clamp(k - g * kGroup - i, 0, 16);
      const float* from = x + g * kGroup + i;
      const Vec v = left == 16 ? load(from) : left ? load_first(from, left) : zero();
      if (precise) {
        store(static_cast<float*>(acts.values) + at * kGroup + i, v);
      } else {
        total += pack_half(static_cast<DotHalf::Act*>(acts.values) + at * kGroup + i, v);
      }
    }
    acts.sums[at] = total;
  }
}

void linear(Team& team, int thread, const LinearCall& call) {
  const Matrix& m = call.matrix;
  Acts acts = call.scratch.acts;
  acts.rows = call.rows;
  acts.groups = m.groups();
  char* own = call.scratch.own + thread * call.scratch.own_bytes;
  int begin, end;
  while (team.claim(acts.rows, 64, &begin, &end)) {
    for (int row = begin; row < end; ++row) {
      pack_row(call.x + static_cast<size_t>(row) * m.k, m.k, row, m.mode == Mode::fp32, acts);
    }
  }
  team.meet();
  const Sink sink{call.out, m.n, false};
  while (team.claim(m.panel_count(), kClaim, &begin, &end)) {
    linear_panels(m, begin, end, acts, sink, own);
  }
}
