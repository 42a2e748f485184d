// Products of int4fixed weights with AVX-512 VNNI, group by group. Included inside a namespace, after
// fixed.h and dot_avx512vnni.h.

// sums + the products of nibbles, bytes each, with 4 inputs. Compilers would read these into a register
// of their own first, and then have too few.
inline Part dot_four(Part sums, Part w, const uint8_t* x) {
  const int32_t& four = *reinterpret_cast<const int32_t*>(x);
  asm("vpdpbusd %[four]%{1to16%}, %[w], %[sums]" : [sums] "+v"(sums) : [w] "v"(w), [four] "m"(four));
  return sums;
}

// The sums of a group's nibbles times both parts of R rows' inputs.
template <int R>
struct NibbleSums {
  Part high[R], low[R];

  NibbleSums(const uint8_t* quants, const uint8_t* x, size_t stride) {
    for (int r = 0; r < R; ++r) high[r] = low[r] = no_sums();
#pragma GCC unroll 4
    for (int eight = 0; eight < 4; ++eight) {
      const Nibbles w = nibbles(quants + 128 * eight);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const uint8_t* at = x + r * stride + 8 * eight;
        high[r] = dot_four(dot_four(high[r], w.low, at), w.high, at + 4);
        low[r] = dot_four(dot_four(low[r], w.low, at + 64), w.high, at + 68);
      }
    }
  }
};

// total + S * sums + M * (the word's upper half): pairs of 16 bits.
inline Part add_scaled(Part total, Part pairs, Part sums, const float* word) {
  const Part both = _mm512_ternarylogic_epi32(
      _mm512_set1_epi32(0xffff), sums, spread(reinterpret_cast<const uint8_t*>(word)), 0xca);
  return _mm512_dpwssd_epi32(total, pairs, both);
}

// One tile of R rows times one panel.
template <int R>
[[gnu::noinline]] void fixed_tile(
    const Matrix& m, int panel, const Acts& acts, int row, const Sink& sink) {
  const uint8_t* first = Fixed::panel(m, panel);
  const uint8_t* block = Fixed::blocks(first);
  const uint8_t* x = fixed_row(acts, row);
  const size_t stride = fixed_row_bytes(acts.groups);
  Part high[R][2], low[R][2];
  for (int r = 0; r < R; ++r) high[r][0] = high[r][1] = low[r][0] = low[r][1] = no_sums();
  for (int g = 0; g < acts.groups; ++g, block += Fixed::kBytes) {
    prefetch_ahead<Fixed::kBytes>(block);
    ask_for_keys(acts);
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      const Part pairs = _mm512_loadu_si512(block + 64 * v);
      const NibbleSums<R> sums(block + Fixed::kQuants + 64 * v, x + fixed_place(g), stride);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const size_t at = static_cast<size_t>(row + r) * acts.groups + g;
        high[r][v] = add_scaled(high[r][v], pairs, sums.high[r], acts.steps + at);
        low[r][v] = add_scaled(low[r][v], pairs, sums.low[r], acts.sums + at);
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    float* out = sink.out + static_cast<size_t>(row + r) * sink.stride;
    for (int v = 0; v < 2; ++v) {
      const Vec steps = load(Fixed::column_steps(first) + 16 * v);
      const Vec y = fixed_output(to_floats(&high[r][v]), to_floats(&low[r][v]), steps,
                                 acts.row_steps[row + r]);
      emit_vector(m, panel * kPanel + 16 * v, y, out, sink.accumulate);
    }
  }
}

inline void fixed_panels(const Matrix& m, int begin, int end, const Acts& acts, const Sink& sink) {
  each_tile<4>(begin, end, acts.rows, [&](int panel, int row, auto size) {
    fixed_tile<decltype(size)::value>(m, panel, acts, row, sink);
  });
}

constexpr LinearKernel kFixedVnni{pack_fixed, fixed_panels};
