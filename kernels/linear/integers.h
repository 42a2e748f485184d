// Products with integer weights. Included inside a namespace, after pack.h and tiles.h.
//
// A group of 32 k is summed exactly, in 32 bits, so its order is free; then, over the groups in
// order, total = scale * (the input's step * sum) + total and
// total = minimum * (sum of the group's inputs) + total.

// How kEights times 8 k are multiplied with R rows. `q` is where their weights begin; a row's group of
// inputs takes kInput bytes, see pack.h.
struct Int8 {
  static constexpr int kBytes = 1088, kQuants = 64, kInput = WordRows::kBytes, kEights = 1;
  static constexpr int kEight = 256, kVector = 32, kPart = kVector / kParts;
  static constexpr bool kMinimum = false;

  static Vec scale(const uint8_t* block, int v) { return load_fp16(block + 32 * v); }

  template <int R>
  static void multiply(const uint8_t* q, const uint8_t* x, int eight, Part (&sums)[R]) {
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p) {
      Part w = widen(q + 2 * kVector * p);
      keep_order(w);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        sums[r] = dot_words(sums[r], w, x + r * kInput + 16 * eight + 4 * p);
        keep_order(sums[r]);
      }
    }
  }
};

struct Int4 {
  static constexpr int kBytes = 640, kQuants = 128, kInput = ByteRows::kBytes, kEights = 1;
  static constexpr int kEight = 128, kVector = 64, kPart = kVector / kParts;
  static constexpr bool kMinimum = true;

  static Vec scale(const uint8_t* block, int v) { return load_fp16(block + 32 * v); }
  static Vec minimum(const uint8_t* block, int v) { return load_fp16(block + 64 + 32 * v); }

  template <int R>
  static void multiply(const uint8_t* q, const uint8_t* x, int eight, Part (&sums)[R]) {
    Nibbles w = nibbles(q);
    keep_order(w.low);
    keep_order(w.high);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const uint8_t* at = x + r * kInput;
      const Part factor = spread(at + kGroup + 4 * eight);
      sums[r] = dot_bytes(sums[r], w, spread(at + 8 * eight), spread(at + 8 * eight + 4), factor);
      keep_order(sums[r]);
    }
  }
};

// Int4 with scales and minima that take more than 16 bits, as those of Q4_K do.
struct Int4Wide : Int4 {
  static constexpr int kBytes = 768, kQuants = 256;

  static Vec scale(const uint8_t* block, int v) { return load_fp32(block + 64 * v); }
  static Vec minimum(const uint8_t* block, int v) { return load_fp32(block + 128 + 64 * v); }

 private:
  static Vec load_fp32(const uint8_t* p) { return load(reinterpret_cast<const float*>(p)); }
};

// sums[r] = those of one group for a part of the columns and R rows.
template <int R, class W>
inline void sum_group(const uint8_t* q, const uint8_t* x, Part (&sums)[R]) {
  asm volatile("" : "+r"(x));  // or compilers keep what is spread for the next part: too many registers
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) sums[r] = no_sums();
#pragma GCC unroll 4
  for (int eight = 0; eight < 4; eight += W::kEights) W::multiply(q + W::kEight * eight, x, eight, sums);
}

// One tile of R rows times one panel.
template <int R, class W>
[[gnu::noinline]] void integer_tile(
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
#pragma GCC unroll 1
    for (int v = 0; v < 2; ++v) {
      Part whole[R][kParts];
#pragma GCC unroll 2
      for (int part = 0; part < kParts; ++part) {
        Part sums[R];
        sum_group<R, W>(block + W::kQuants + v * W::kVector + part * W::kPart, x, sums);
        for (int r = 0; r < R; ++r) whole[r][part] = sums[r];
      }
      const Vec scale = W::scale(block, v);
      for (int r = 0; r < R; ++r) {
        total[r][v] = fma(scale, mul(splat(steps[r]), to_floats(whole[r])), total[r][v]);
      }
      if constexpr (W::kMinimum) {
        const Vec minimum = W::minimum(block, v);
        for (int r = 0; r < R; ++r) total[r][v] = fma(minimum, splat(of_inputs[r]), total[r][v]);
      }
    }
    block += W::kBytes;
    x += R * W::kInput;
    steps += R;
    of_inputs += R;
  }
  emit<R>(m, panel, row, total, sink);
}

template <class W>
void integer_panels(const Matrix& m, int begin, int end, const Acts& acts, const Sink& sink) {
  each_tile<kIntegerTile>(begin, end, acts.rows, [&](int panel, int row, auto size) {
    integer_tile<decltype(size)::value, W>(m, panel, acts, row, sink);
  });
}

constexpr LinearKernel kInt8{pack_words<WordRows>, integer_panels<Int8>};
constexpr LinearKernel kInt4{pack_bytes<ByteRows>, integer_panels<Int4>};
constexpr LinearKernel kInt4Wide{pack_bytes<ByteRows>, integer_panels<Int4Wide>};
