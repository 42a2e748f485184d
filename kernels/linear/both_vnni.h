// Products of integer weights with AVX-512 VNNI, both vectors of a panel's columns at once: inputs are
// spread once for both. Included inside a namespace, after integers.h and dot_avx512vnni.h.
//
// For prompts, a panel's weights are unpacked once for all tiles of rows, and the next panel is asked for
// meanwhile. Where keys are asked for, that would take longer: what fits no L1 cache waits behind them.
// Law: the same bits as integers.h.

// Of int4: the weights of 8 k of a vector of columns are two parts, 4 k each.
template <class W>
struct Eights : W {
  static constexpr int kSteps = 4, kUnpacked = 2 * 2 * 64 * kSteps;

  static Nibbles unpack(const uint8_t* block, int step, int v) {
    return nibbles(block + W::kQuants + W::kEight * step + W::kVector * v);
  }
  static Nibbles read(const uint8_t* unpacked, int step, int v) {
    const uint8_t* at = unpacked + 256 * step + 128 * v;
    return {_mm512_load_si512(at), _mm512_load_si512(at + 64)};
  }
  static void write(uint8_t* unpacked, int step, int v, const Nibbles& w) {
    uint8_t* at = unpacked + 256 * step + 128 * v;
    _mm512_store_si512(at, w.low);
    _mm512_store_si512(at + 64, w.high);
  }

  template <int R>
  static void multiply(Nibbles first, Nibbles second, const uint8_t* x, int step, Part (&sums)[R][2]) {
    for (Part* part : {&first.low, &first.high, &second.low, &second.high}) keep_order(*part);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const uint8_t* at = x + r * W::kInput;
      const Part x0 = spread(at + 8 * step), x1 = spread(at + 8 * step + 4);
      const Part factor = spread(at + kGroup + 4 * step);
      sums[r][0] = dot_bytes(sums[r][0], first, x0, x1, factor);
      keep_order(sums[r][0]);
      sums[r][1] = dot_bytes(sums[r][1], second, x0, x1, factor);
      keep_order(sums[r][1]);
    }
  }
};

// Of int8: the weights of 2 k of a vector of columns are one part.
struct Twos : Int8 {
  static constexpr int kSteps = 16, kUnpacked = 2 * 64 * kSteps;

  static Part unpack(const uint8_t* block, int step, int v) {
    return widen(block + kQuants + 2 * kVector * step + kVector * v);
  }
  static Part read(const uint8_t* unpacked, int step, int v) {
    return _mm512_load_si512(unpacked + 128 * step + 64 * v);
  }
  static void write(uint8_t* unpacked, int step, int v, Part w) {
    _mm512_store_si512(unpacked + 128 * step + 64 * v, w);
  }

  template <int R>
  static void multiply(Part first, Part second, const uint8_t* x, int step, Part (&sums)[R][2]) {
    keep_order(first);
    keep_order(second);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Part pair = spread(x + r * kInput + 4 * step);
      sums[r][0] = _mm512_dpwssd_epi32(sums[r][0], first, pair);
      keep_order(sums[r][0]);
      sums[r][1] = _mm512_dpwssd_epi32(sums[r][1], second, pair);
      keep_order(sums[r][1]);
    }
  }
};

// A panel's weights as they are packed, group by group.
template <class W>
struct PackedWeights {
  const uint8_t* block;

  void ask(const Acts& acts) const {
    prefetch_ahead<W::kBytes>(block);
    ask_for_keys(acts);
  }
  auto at(int step, int v) const { return W::unpack(block, step, v); }
  void next() { block += W::kBytes; }
};

// The same, unpacked; `ahead` are those that are asked for, some lines with each group.
template <class W>
struct UnpackedWeights {
  const uint8_t *block, *quants, *ahead;
  int lines;

  void ask(const Acts&) {
    for (int i = 0; i < lines; ++i, ahead += 64) prefetch_far(ahead);
  }
  auto at(int step, int v) const { return W::read(quants, step, v); }
  void next() {
    block += W::kBytes;
    quants += W::kUnpacked;
  }
};

// total += the products of one group, `sums` of whole numbers, as integers.h scales them.
template <class W, int R>
inline void add_group(const uint8_t* block, const Part (&sums)[R][2], const float* steps,
                      const float* of_inputs, Vec (&total)[R][2]) {
#pragma GCC unroll 2
  for (int v = 0; v < 2; ++v) {
    const Vec scale = W::scale(block, v);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      total[r][v] = fma(scale, mul(splat(steps[r]), to_floats(&sums[r][v])), total[r][v]);
    }
    if constexpr (W::kMinimum) {
      const Vec minimum = W::minimum(block, v);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) total[r][v] = fma(minimum, splat(of_inputs[r]), total[r][v]);
    }
  }
}

// One tile of R rows times one panel; returns the weights behind it.
template <int R, class W, class Weights>
[[gnu::noinline]] Weights both_tile(
    const Matrix& m, int panel, Weights weights, const Acts& acts, int row, const Sink& sink) {
  const size_t start = static_cast<size_t>(row) * acts.groups;
  const uint8_t* x = static_cast<const uint8_t*>(acts.values) + start * W::kInput;
  const float *steps = acts.steps + start, *of_inputs = acts.sums + start;
  Vec total[R][2];
  clear(total);
  for (int g = 0; g < acts.groups; ++g) {
    weights.ask(acts);
    Part sums[R][2];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) sums[r][0] = sums[r][1] = no_sums();
#pragma GCC unroll 16
    for (int step = 0; step < W::kSteps; ++step) {
      W::multiply(weights.at(step, 0), weights.at(step, 1), x, step, sums);
    }
    add_group<W>(weights.block, sums, steps, of_inputs, total);
    weights.next();
    x += R * W::kInput;
    steps += R;
    of_inputs += R;
  }
  emit<R>(m, panel, row, total, sink);
  return weights;
}

template <class W>
void unpack_panel(const uint8_t* block, int groups, uint8_t* out) {
  for (int g = 0; g < groups; ++g, block += W::kBytes, out += W::kUnpacked) {
#pragma GCC unroll 16
    for (int step = 0; step < W::kSteps; ++step) {
      for (int v = 0; v < 2; ++v) W::write(out, step, v, W::unpack(block, step, v));
    }
  }
}

// Rows first .. last - 1 times one panel.
template <class W>
void unpacked_panel(const Matrix& m, int panel, const Acts& acts, int first, int last, const Sink& sink) {
  uint8_t* const quants = weight_memory(static_cast<size_t>(acts.groups) * W::kUnpacked);
  const uint8_t* block = panel_at<W>(m, panel);
  unpack_panel<W>(block, acts.groups, quants);
  const bool has_next = panel + 1 < m.panel_count();
  const int lines = has_next ? ceil_div(W::kBytes / 64, ceil_div(last - first, kIntegerTile)) : 0;
  UnpackedWeights<W> weights{block, quants, panel_at<W>(m, panel + 1), lines};
  for (int row = first; row < last; row += kIntegerTile) {
    with_rows<kIntegerTile>(std::min(kIntegerTile, last - row), [&](auto size) {
      constexpr int R = decltype(size)::value;
      weights.ahead = both_tile<R, W>(m, panel, weights, acts, row, sink).ahead;
    });
  }
}

template <class W>
void both_panels(const Matrix& m, int begin, int end, const Acts& acts, const Sink& sink) {
  constexpr int kMany = 64, kRows = kChunkRows<kIntegerTile>;
  if (acts.rows > kMany && acts.upcoming == nullptr) {
    for (int first = 0; first < acts.rows; first += kRows) {
      const int last = std::min(first + kRows, acts.rows);
      for (int panel = begin; panel < end; ++panel) unpacked_panel<W>(m, panel, acts, first, last, sink);
    }
    return;
  }
  each_tile<kIntegerTile>(begin, end, acts.rows, [&](int panel, int row, auto size) {
    const PackedWeights<W> weights{panel_at<W>(m, panel)};
    both_tile<decltype(size)::value, W>(m, panel, weights, acts, row, sink);
  });
}

constexpr LinearKernel kInt8Both{pack_words<WordRows>, both_panels<Twos>};
constexpr LinearKernel kInt4Both{pack_bytes<ByteRows>, both_panels<Eights<Int4>>};
constexpr LinearKernel kInt4WideBoth{pack_bytes<ByteRows>, both_panels<Eights<Int4Wide>>};
