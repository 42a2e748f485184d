// Products of integer weights with AVX-512 VNNI, both vectors of a panel's columns at once: inputs are
// spread once for both. Included inside a namespace, after integers.h and dot_avx512vnni.h.
// Law: the same bits as integers.h.

// Of int4: the weights of 8 k of a vector of columns are two parts, 4 k each.
template <class W>
struct Eights : W {
  static constexpr int kSteps = 4;

  static Nibbles weights(const uint8_t* block, int step, int v) {
    Nibbles w = nibbles(block + W::kQuants + W::kEight * step + W::kVector * v);
    keep_order(w.low);
    keep_order(w.high);
    return w;
  }

  template <int R>
  static void multiply(const uint8_t* block, const uint8_t* x, int step, Part (&sums)[R][2]) {
    const Nibbles first = weights(block, step, 0), second = weights(block, step, 1);
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
  static constexpr int kSteps = 16;

  static Part weights(const uint8_t* block, int step, int v) {
    Part w = widen(block + kQuants + 2 * kVector * step + kVector * v);
    keep_order(w);
    return w;
  }

  template <int R>
  static void multiply(const uint8_t* block, const uint8_t* x, int step, Part (&sums)[R][2]) {
    const Part first = weights(block, step, 0), second = weights(block, step, 1);
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

// One tile of R rows times one panel.
template <int R, class W>
[[gnu::noinline]] void both_tile(
    const Matrix& m, int panel, const Acts& acts, int row, const Sink& sink) {
  const uint8_t* block = panel_at<W>(m, panel);
  const size_t start = static_cast<size_t>(row) * acts.groups;
  const uint8_t* x = static_cast<const uint8_t*>(acts.values) + start * W::kInput;
  const float *steps = acts.steps + start, *of_inputs = acts.sums + start;
  Vec total[R][2];
  clear(total);
  for (int g = 0; g < acts.groups; ++g) {
    prefetch_ahead<W::kBytes>(block);
    ask_for_keys(acts);
    Part sums[R][2];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) sums[r][0] = sums[r][1] = no_sums();
#pragma GCC unroll 16
    for (int step = 0; step < W::kSteps; ++step) W::multiply(block, x, step, sums);
    add_group<W>(block, sums, steps, of_inputs, total);
    block += W::kBytes;
    x += R * W::kInput;
    steps += R;
    of_inputs += R;
  }
  emit<R>(m, panel, row, total, sink);
}

template <class W>
void both_panels(const Matrix& m, int begin, int end, const Acts& acts, const Sink& sink) {
  each_tile<kIntegerTile>(begin, end, acts.rows, [&](int panel, int row, auto size) {
    both_tile<decltype(size)::value, W>(m, panel, acts, row, sink);
  });
}

constexpr LinearKernel kInt8Both{pack_words<WordRows>, both_panels<Twos>};
constexpr LinearKernel kInt4Both{pack_bytes<ByteRows>, both_panels<Eights<Int4>>};
constexpr LinearKernel kInt4WideBoth{pack_bytes<ByteRows>, both_panels<Eights<Int4Wide>>};
