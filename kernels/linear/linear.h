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

constexpr int kPrefetch = 2048;  // bytes ahead of a stream of weights

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
inline void scale_up(const uint8_t* block, const float* sums, Vec (&acc)[R][2], Vec* total) {
  const Vec s0 = load_fp16(block), s1 = load_fp16(block + 32);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    total[2 * r] = fma(s0, acc[r][0], total[2 * r]);
    total[2 * r + 1] = fma(s1, acc[r][1], total[2 * r + 1]);
  }
  if constexpr (kMinimum) {
    const Vec m0 = load_fp16(block + 64), m1 = load_fp16(block + 96);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec sum = splat(sums[r]);
      total[2 * r] = fma(m0, sum, total[2 * r]);
      total[2 * r + 1] = fma(m1, sum, total[2 * r + 1]);
    }
  }
}

inline void emit_row(const Matrix& m, int panel, const Vec* total, float* out, bool accumulate) {
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
inline void emit(const Matrix& m, int panel, int row, const Vec* total, const Sink& sink) {
  for (int r = 0; r < R; ++r) {
    float* out = sink.out + static_cast<size_t>(row + r) * sink.stride;
    emit_row(m, panel, total + 2 * r, out, sink.accumulate);
  }
}

// One tile of R rows times one panel, weights decoded on the way to the multiplier.
template <int R, class W>
void plain_tile(const Matrix& m, int panel, const Acts& acts, int row, const Sink& sink) {
  const uint8_t* block = m.panels + static_cast<size_t>(panel) * acts.groups * W::kBytes;
  const auto* x = static_cast<const typename W::Dot::Act*>(acts.values) +
                  static_cast<size_t>(row) * acts.groups * kGroup;
  Vec acc[R][2];
  clear(acc);
  for (int g = 0; g < acts.groups; ++g, block += W::kBytes, x += R * kGroup) {
    if constexpr (R < kTile) {
#pragma GCC unroll 64
      for (int i = 0; i < W::kBytes; i += 64) prefetch(block + kPrefetch + i);
    }
    multiply<R, W>(block, x, acc);
  }
  emit<R>(m, panel, row, acc[0], sink);
}

template <int R, class W>
void scaled_tile(const Matrix& m, int panel, const Acts& acts, int row, const Sink& sink) {
  const uint8_t* block = m.panels + static_cast<size_t>(panel) * acts.groups * W::kBytes;
  const auto* x = static_cast<const typename W::Dot::Act*>(acts.values) +
                  static_cast<size_t>(row) * acts.groups * kGroup;
  const float* sums = acts.sums + static_cast<size_t>(row) * acts.groups;
  Vec total[2 * R];
  for (Vec& t : total) t = zero();
  for (int g = 0; g < acts.groups; ++g, block += W::kBytes, x += R * kGroup, sums += R) {
#pragma GCC unroll 64
    for (int i = 0; i < W::kBytes; i += 64) prefetch(block + kPrefetch + i);
    Vec acc[R][2];
    clear(acc);
    multiply<R, W>(block + W::kQuants, x, acc);
    scale_up<R, W::kMinimum>(block, sums, acc, total);
  }
  emit<R>(m, panel, row, total, sink);
}

// Many tiles times one panel: each block is decoded once for up to kRowBlock rows.
template <class W>
void scaled_panel(const Matrix& m, int panel, const Acts& acts, const Sink& sink, char* own);

// Calls f.operator()<R>() for R = rows.
template <int R = 1, class F>
inline void with_rows(int rows, const F& f) {
  if constexpr (R < kTile) {
    if (rows != R) return with_rows<R + 1>(rows, f);
  }
  f(std::integral_constant<int, R>());
}

template <class W>
inline void decode(const uint8_t* q, uint8_t* pairs) {
  using Dot = typename W::Dot;
#pragma GCC unroll 16
  for (int p = 0; p < 16; ++p) {
    Dot::write(pairs + sizeof(typename Dot::Pair) * (2 * p), W::pair(q, 0, p));
    Dot::write(pairs + sizeof(typename Dot::Pair) * (2 * p + 1), W::pair(q, 1, p));
  }
}

template <class W>
void scaled_panel(const Matrix& m, int panel, const Acts& acts, const Sink& sink, char* own) {
  using Dot = typename W::Dot;
  Vec* totals = reinterpret_cast<Vec*>(own);  // [row of block][2]
  uint8_t* pairs = reinterpret_cast<uint8_t*>(totals + 2 * kRowBlock);
  const auto* x = static_cast<const typename Dot::Act*>(acts.values);
  constexpr int kBlockRows = kRowBlock / kTile * kTile;
  for (int first = 0; first < acts.rows; first += kBlockRows) {
    const int last = std::min(first + kBlockRows, acts.rows);
    for (int i = 0; i < 2 * (last - first); ++i) totals[i] = zero();
    const uint8_t* block = m.panels + static_cast<size_t>(panel) * acts.groups * W::kBytes;
    for (int g = 0; g < acts.groups; ++g, block += W::kBytes) {
      decode<W>(block + W::kQuants, pairs);
      for (int row = first; row < last; row += kTile) {
        with_rows(std::min(kTile, last - row), [&](auto size) {
          constexpr int R = decltype(size)::value;
          const size_t at = static_cast<size_t>(row) * acts.groups + g * R;
          Vec acc[R][2];
          clear(acc);
          multiply<R, Plain<Dot>>(pairs, x + at * kGroup, acc);
          scale_up<R, W::kMinimum>(block, acts.sums + at, acc, totals + 2 * (row - first));
        });
      }
    }
    for (int row = first; row < last; ++row) {
      float* out = sink.out + static_cast<size_t>(row) * sink.stride;
      emit_row(m, panel, totals + 2 * (row - first), out, sink.accumulate);
    }
  }
}

template <class W>
inline void plain_panels(const Matrix& m, int begin, int end, const Acts& acts, const Sink& sink) {
  for (int panel = begin; panel < end; ++panel) {
    for (int row = 0; row < acts.rows; row += kTile) {
      with_rows(std::min(kTile, acts.rows - row), [&](auto size) {
        plain_tile<decltype(size)::value, W>(m, panel, acts, row, sink);
      });
    }
  }
}

template <class W>
inline void scaled_panels(
    const Matrix& m, int begin, int end, const Acts& acts, const Sink& sink, char* own) {
  for (int panel = begin; panel < end; ++panel) {
    if (acts.rows > kTile) {
      scaled_panel<W>(m, panel, acts, sink, own);
    } else {
      with_rows(acts.rows, [&](auto size) {
        scaled_tile<decltype(size)::value, W>(m, panel, acts, 0, sink);
      });
    }
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
  while (team.claim(m.panel_count(), 32, &begin, &end)) {
    linear_panels(m, begin, end, acts, sink, own);
  }
}
