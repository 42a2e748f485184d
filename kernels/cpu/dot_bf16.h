// Pairs of k in bf16: one instruction multiplies 16 columns x 2 and adds in fp32. Included after
// simd_avx512.h.
struct DotHalf {
  using Act = uint16_t;
  using Pair = __m512i;

  static Pair read(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static void put(Act* out, Vec x) { store(out, x); }
  static Pair spread(const uint16_t* x) {
    int both;
    std::memcpy(&both, x, sizeof both);
    return _mm512_set1_epi32(both);
  }
  static Vec dot(Vec acc, Pair w, Pair x) {
    return _mm512_dpbf16_ps(acc, (__m512bh)w, (__m512bh)x);
  }

  static Pair bf16(const uint8_t* q, int vector, int pair) {
    return read(q + 64 * (2 * pair + vector));
  }
};
