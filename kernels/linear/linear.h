// Products of packed rows with weight panels. Included inside a namespace, after integers.h.
//
// One output is one chain of operations, the same for every tile size and every number of rows:
// over the groups of 32 k in order, and in a group over the pairs of k in order.

// Where the 16 pairs of a block's weights come from.
struct Fp32 {
  using Dot = DotFp32;
  static constexpr int kBytes = 4096;
  static Dot::Pair pair(const uint8_t* q, int vector, int p) {
    return Dot::read(q + 128 * (2 * p + vector));
  }
};
struct Bf16 {
  using Dot = DotHalf;
  static constexpr int kBytes = 2048;
  static Dot::Pair pair(const uint8_t* q, int vector, int p) { return Dot::bf16(q, vector, p); }
};

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

// One tile of R rows times one panel.
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

template <class W>
inline void plain_panels(const Matrix& m, int begin, int end, const Acts& acts, const Sink& sink) {
  each_tile<kTile>(begin, end, acts.rows, [&](int panel, int row, auto size) {
    plain_tile<decltype(size)::value, W>(m, panel, acts, row, sink);
  });
}

// Panels begin .. end - 1 of the product; acts are packed for the matrix's mode.
void linear_panels(const Matrix& m, int begin, int end, const Acts& acts, const Sink& sink) {
  switch (m.mode) {
    case Mode::fp32: return plain_panels<Fp32>(m, begin, end, acts, sink);
    case Mode::bf16: return plain_panels<Bf16>(m, begin, end, acts, sink);
    case Mode::int8: return integer_panels<Int8>(m, begin, end, acts, sink);
    case Mode::int4: return integer_panels<Int4>(m, begin, end, acts, sink);
    case Mode::int4wide: return integer_panels<Int4Wide>(m, begin, end, acts, sink);
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
