// Vectors of 16 floats and of integers on AVX-512. Included inside a namespace.

using Vec = __m512;

constexpr int kTile = 8;         // rows multiplied together
constexpr int kIntegerTile = 8;  // the same of integers

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
inline void store(uint16_t* p, Vec a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(a));
}
inline Vec load_fp16(const uint8_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec keep(uint16_t bits, Vec a, Vec other) { return _mm512_mask_mov_ps(other, bits, a); }
inline float sum(Vec a) { return _mm512_reduce_add_ps(a); }
inline float highest(Vec a) { return _mm512_reduce_max_ps(a); }
inline Vec nearest(Vec a) { return _mm512_roundscale_ps(a, 0); }
inline Vec ldexp(Vec a, Vec exponent) { return _mm512_scalef_ps(a, exponent); }
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

// Integers: 16 of 32 bits, or as many pairs of 16 bits.
using Ints = __m512i;

inline Ints no_ints() { return _mm512_setzero_si512(); }
inline Ints spread_pair(const int16_t* x) {
  int both;
  std::memcpy(&both, x, sizeof both);
  return _mm512_set1_epi32(both);
}
// 32 int8 as pairs; the nibbles at `shift` bits of 32 times 16 bits as pairs.
inline Ints widen(const uint8_t* p) {
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline Ints nibbles(const uint8_t* p, int shift) {
  return _mm512_and_si512(_mm512_srli_epi16(_mm512_loadu_si512(p), shift), _mm512_set1_epi16(15));
}
// sums + the products of pairs, each pair's two added.
inline Ints dot(Ints sums, Ints w, Ints x) { return _mm512_dpwssd_epi32(sums, w, x); }
// Compilers may reassociate sums of integers, and then need more registers than there are.
inline void keep_order(Ints& v) { asm("" : "+v"(v)); }
inline Vec to_floats(Ints v) { return _mm512_cvtepi32_ps(v); }
// Stores whole numbers.
inline void store(int16_t* p, Vec a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(a)));
}
