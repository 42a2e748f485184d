// Products of bf16 pairs. Included inside a namespace, after pack.h and tiles.h.
//
// vdpbf16ps adds the products of two k to a sum, the odd one first, so one output is one chain over
// all k: the same bits for every number of rows, but not those of floats.h.

struct PairRows : Rows<kHalfTile, 64> {
  static void put(uint8_t* out, Vec low, Vec high) {
    store(reinterpret_cast<uint16_t*>(out), low);
    store(reinterpret_cast<uint16_t*>(out) + 16, high);
  }
};

inline Vec dot_pairs(Vec sums, __m512i w, __m512i x) {
  return _mm512_dpbf16_ps(sums, reinterpret_cast<__m512bh>(w), reinterpret_cast<__m512bh>(x));
}

// One tile of R rows times one panel.
template <int R>
[[gnu::noinline]] void pair_tile(
    const Matrix& m, int panel, const Acts& acts, int row, const Sink& sink) {
  constexpr int kBytes = kFormats[static_cast<int>(Mode::bf16)].block_bytes;
  const uint8_t* block = m.panels + static_cast<size_t>(panel) * m.groups() * kBytes;
  const uint8_t* x = static_cast<const uint8_t*>(acts.values) +
                     static_cast<size_t>(row) * acts.groups * PairRows::kBytes;
  Vec total[R][2];
  clear(total);
  for (int g = 0; g < acts.groups; ++g, block += kBytes, x += R * PairRows::kBytes) {
    if constexpr (R < kHalfTile) prefetch_ahead<kBytes>(block);
    ask_for_keys(acts);
#pragma GCC unroll 4
    for (int p = 0; p < 16; ++p) {
      const __m512i first = _mm512_loadu_si512(block + 128 * p);
      const __m512i second = _mm512_loadu_si512(block + 128 * p + 64);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Part pair = spread(x + r * PairRows::kBytes + 4 * p);
        total[r][0] = dot_pairs(total[r][0], first, pair);
        total[r][1] = dot_pairs(total[r][1], second, pair);
      }
    }
  }
  emit<R>(m, panel, row, total, sink);
}

void pair_panels(const Matrix& m, int begin, int end, const Acts& acts, const Sink& sink) {
  each_tile<kHalfTile>(begin, end, acts.rows, [&](int panel, int row, auto size) {
    pair_tile<decltype(size)::value>(m, panel, acts, row, sink);
  });
}

constexpr LinearKernel kBf16Pairs{pack_floats<PairRows>, pair_panels, true};
