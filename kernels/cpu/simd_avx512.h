// Vectors of 16 floats and of integers on AVX-512. Included inside a namespace.

using Vec = __m512;

constexpr int kTile = 8;         // rows multiplied together
constexpr int kIntegerTile = 8;  // the same of integers
constexpr int kHalfTile = 8;     // the same with bf16 weights
constexpr int kAccumulators = 24;  // vectors of sums that stay in registers

inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec splat(float a) { return _mm512_set1_ps(a); }
inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Vec a) { _mm512_storeu_ps(p, a); }
inline Vec load_first(const float* p, int n) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
}
inline void store_first(float* p, Vec a, int n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), a);
}

inline Vec widen_bf16(__m256i a) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(a), 16));
}
inline Vec load(const uint16_t* p) {
  return widen_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline Vec load_first(const uint16_t* p, int n) {
  return widen_bf16(_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), p));
}
// Rounds to nearest even; NaN stays NaN.
inline void store(uint16_t* p, Vec a) {
  const __m512i bits = _mm512_castps_si512(a);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
  __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, bias), 16);
  const __mmask16 unordered = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
  rounded = _mm512_mask_set1_epi32(rounded, unordered, 0x7fc0);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(rounded));
}
// The low or high bf16 of 16 times 32 bits.
inline Vec from_low_bf16(const uint8_t* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16));
}
inline Vec from_high_bf16(const uint8_t* p) {
  const __m512i mask = _mm512_set1_epi32(static_cast<int>(0xffff0000));
  return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), mask));
}
inline Vec load_fp16(const uint8_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec keep(uint16_t bits, Vec a, Vec other) { return _mm512_mask_mov_ps(other, bits, a); }
inline float sum(Vec a) { return _mm512_reduce_add_ps(a); }
inline float highest(Vec a) { return _mm512_reduce_max_ps(a); }
inline bool has_nan(Vec a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q) != 0; }
// 1 / a, of whole numbers 1 .. 16.
inline Vec inverse_of(Vec a) {
  const Vec inverses = _mm512_setr_ps(1.0f / 16, 1.0f, 1.0f / 2, 1.0f / 3, 1.0f / 4, 1.0f / 5, 1.0f / 6,
                                      1.0f / 7, 1.0f / 8, 1.0f / 9, 1.0f / 10, 1.0f / 11, 1.0f / 12,
                                      1.0f / 13, 1.0f / 14, 1.0f / 15);
  return _mm512_permutexvar_ps(_mm512_cvtps_epi32(a), inverses);  // which reads four bits
}
inline Vec nearest(Vec a) { return _mm512_roundscale_ps(a, 0); }
inline Vec ceil(Vec a) { return _mm512_roundscale_ps(a, 2); }
inline Vec ldexp(Vec a, Vec exponent) { return _mm512_scalef_ps(a, exponent); }
// a * 2^n, which must be a normal number; whole = n + 0x1.8p23.
inline Vec raise(Vec a, Vec whole) {
  const __m512i power = _mm512_slli_epi32(_mm512_castps_si512(whole), 23);
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), power));
}
// a where x >= limit, 0 elsewhere.
inline Vec at_least(Vec x, float limit, Vec a) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, splat(limit), _CMP_GE_OQ), a);
}

// Sums of integers, 16 of 32 bits.
using Part = __m512i;
constexpr int kParts = 1;

inline Part no_sums() { return _mm512_setzero_si512(); }
// The 4 bytes at p, repeated.
inline Part spread(const uint8_t* p) {
  int four;
  std::memcpy(&four, p, sizeof four);
  return _mm512_set1_epi32(four);
}
// int8 as pairs of 16 bits.
inline Part widen(const uint8_t* p) {
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
// The nibbles of a part's bytes, each a byte.
struct Nibbles {
  Part low, high;
};
inline Nibbles nibbles(const uint8_t* p) {
  const Part mask = _mm512_set1_epi8(15), all = _mm512_loadu_si512(p);
  return {_mm512_and_si512(all, mask), _mm512_and_si512(_mm512_srli_epi16(all, 4), mask)};
}
// Compilers may reassociate sums of integers, and then need more registers than there are.
inline void keep_order(Part& v) { asm("" : "+v"(v)); }
inline Vec to_floats(const Part* parts) { return _mm512_cvtepi32_ps(parts[0]); }
// Stores whole numbers.
inline void store(int16_t* p, Vec a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(a)));
}
inline void store(int8_t* p, Vec a) {
  const __m128i packed = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
}
// Each half's greatest, in all places of the half.
inline Vec highest_eights(Vec a) {
  a = max(a, _mm512_shuffle_f32x4(a, a, 0xb1));
  a = max(a, _mm512_permute_ps(a, 0x4e));
  return max(a, _mm512_permute_ps(a, 0xb1));
}
// The whole numbers that both halves hold.
inline void store_each_eighth(Vec a, int32_t* p) {
  const __m256i ints = _mm512_castsi512_si256(_mm512_cvtps_epi32(
      _mm512_permutexvar_ps(_mm512_setr_epi32(0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), a)));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(ints));
}
// The greater of both halves, which hold one number each.
inline float highest_of_halves(Vec a) {
  return _mm_cvtss_f32(_mm_max_ss(_mm512_castps512_ps128(a), _mm512_extractf32x4_ps(a, 2)));
}
