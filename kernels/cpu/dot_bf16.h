// Pairs of k in bf16: one instruction multiplies 16 columns x 2 and adds in fp32. Included after
// simd_avx512.h.
struct DotHalf {
  using Act = uint16_t;
  using Pair = __m512i;

  static Pair read(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static void write(uint8_t* p, Pair a) { _mm512_storeu_si512(p, a); }
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
  static Pair int8(const uint8_t* q, int vector, int pair) {
    const uint8_t* at = q + 32 * (2 * pair + vector);
    const __m512i even = widen_int8(at), odd = widen_int8(at + 16);
    return _mm512_or_si512(_mm512_srli_epi32(even, 16), odd);  // exact: low halves are zero
  }
  static Pair int4(const uint8_t* q, int vector, int pair) {
    const __m512i eight = read(q + 64 * (2 * (pair / 4) + vector));
    // bf16 of 0 .. 15, twice: the lookup reads 5 bits, the fifth belongs to the next nibble.
    const __m512i table = _mm512_broadcast_i64x4(_mm256_setr_epi16(
        0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0x4100, 0x4110, 0x4120,
        0x4130, 0x4140, 0x4150, 0x4160, 0x4170));
    return _mm512_permutexvar_epi16(_mm512_srli_epi16(eight, 4 * (pair % 4)), table);
  }

 private:
  static __m512i widen_int8(const uint8_t* p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)));
  }
};
