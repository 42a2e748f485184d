// Vectors of 16 floats as two of 8, on AVX2 with FMA and F16C. Included inside a namespace.

struct Vec {
  __m256 a, b;
};

constexpr int kTile = 3;         // rows multiplied together
constexpr int kIntegerTile = 4;  // the same of integers
constexpr int kHalfTile = 2;     // the same with bf16 weights
constexpr int kAccumulators = 6;  // vectors of sums that stay in registers

inline Vec zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Vec splat(float a) { return {_mm256_set1_ps(a), _mm256_set1_ps(a)}; }
inline Vec load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, Vec v) {
  _mm256_storeu_ps(p, v.a);
  _mm256_storeu_ps(p + 8, v.b);
}

inline __m256i load_ints(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
inline __m128i load_half(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }

inline Vec load(const uint16_t* p) {
  const __m256i a = _mm256_cvtepu16_epi32(load_half(p));
  const __m256i b = _mm256_cvtepu16_epi32(load_half(p + 8));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(b, 16))};
}
template <class T>
inline Vec load_first(const T* p, int n) {
  T padded[16] = {};
  std::memcpy(padded, p, n * sizeof(T));
  return load(padded);
}
inline void store_first(float* p, Vec v, int n) {
  float all[16];
  store(all, v);
  std::memcpy(p, all, n * sizeof(float));
}

// Rounds to nearest even; NaN stays NaN.
inline __m256i round_bf16(__m256 v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, bias), 16);
  const __m256i unordered = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), unordered);
}
inline void store(uint16_t* p, Vec v) {
  const __m256i packed = _mm256_packus_epi32(round_bf16(v.a), round_bf16(v.b));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}
inline Vec load_fp16(const uint8_t* p) {
  return {_mm256_cvtph_ps(load_half(p)), _mm256_cvtph_ps(load_half(p + 16))};
}

inline Vec add(Vec v, Vec w) { return {_mm256_add_ps(v.a, w.a), _mm256_add_ps(v.b, w.b)}; }
inline Vec sub(Vec v, Vec w) { return {_mm256_sub_ps(v.a, w.a), _mm256_sub_ps(v.b, w.b)}; }
inline Vec mul(Vec v, Vec w) { return {_mm256_mul_ps(v.a, w.a), _mm256_mul_ps(v.b, w.b)}; }
inline Vec div(Vec v, Vec w) { return {_mm256_div_ps(v.a, w.a), _mm256_div_ps(v.b, w.b)}; }
inline Vec max(Vec v, Vec w) { return {_mm256_max_ps(v.a, w.a), _mm256_max_ps(v.b, w.b)}; }
inline Vec min(Vec v, Vec w) { return {_mm256_min_ps(v.a, w.a), _mm256_min_ps(v.b, w.b)}; }
inline Vec fma(Vec v, Vec w, Vec u) {
  return {_mm256_fmadd_ps(v.a, w.a, u.a), _mm256_fmadd_ps(v.b, w.b, u.b)};
}
inline __m256 spread_bits(int bits) {
  const __m256i each = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i set = _mm256_and_si256(_mm256_set1_epi32(bits), each);
  return _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, each));
}
inline Vec keep(uint16_t bits, Vec v, Vec other) {
  return {_mm256_blendv_ps(other.a, v.a, spread_bits(bits)),
          _mm256_blendv_ps(other.b, v.b, spread_bits(bits >> 8))};
}
inline float sum(Vec v) {
  const __m256 eight = _mm256_add_ps(v.a, v.b);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}
inline float highest(__m256 v) {
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}
inline float highest(Vec v) { return highest(_mm256_max_ps(v.a, v.b)); }
// Each half's greatest, in all places of the half.
inline __m256 highest_eights(__m256 v) {
  v = _mm256_max_ps(v, _mm256_permute2f128_ps(v, v, 1));
  v = _mm256_max_ps(v, _mm256_permute_ps(v, 0x4e));
  return _mm256_max_ps(v, _mm256_permute_ps(v, 0xb1));
}
inline Vec highest_eights(Vec v) { return {highest_eights(v.a), highest_eights(v.b)}; }
// The whole numbers that both halves hold.
inline void store_each_eighth(Vec v, int32_t* p) {
  p[0] = _mm_cvtss_si32(_mm256_castps256_ps128(v.a));
  p[1] = _mm_cvtss_si32(_mm256_castps256_ps128(v.b));
}
// The greater of both halves, which hold one number each.
inline float highest_of_halves(Vec v) {
  return _mm_cvtss_f32(_mm_max_ss(_mm256_castps256_ps128(v.a), _mm256_castps256_ps128(v.b)));
}
inline bool has_nan(Vec v) {
  return _mm256_movemask_ps(_mm256_or_ps(_mm256_cmp_ps(v.a, v.a, _CMP_UNORD_Q),
                                         _mm256_cmp_ps(v.b, v.b, _CMP_UNORD_Q))) != 0;
}
// 1 / v, of whole numbers 1 .. 16.
inline Vec inverse_of(Vec v) { return div(splat(1.0f), v); }
inline Vec ceil(Vec v) { return {_mm256_ceil_ps(v.a), _mm256_ceil_ps(v.b)}; }
inline Vec nearest(Vec v) { return {_mm256_round_ps(v.a, 8), _mm256_round_ps(v.b, 8)}; }
inline __m256 power_of_two(__m256i exponent) {
  const __m256i biased = _mm256_add_epi32(exponent, _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}
inline __m256 ldexp(__m256 v, __m256 exponent) {
  const __m256i whole = _mm256_cvtps_epi32(exponent);
  const __m256i half = _mm256_srai_epi32(whole, 1);  // two steps reach below the normal numbers
  const __m256 once = _mm256_mul_ps(v, power_of_two(half));
  return _mm256_mul_ps(once, power_of_two(_mm256_sub_epi32(whole, half)));
}
inline Vec ldexp(Vec v, Vec exponent) { return {ldexp(v.a, exponent.a), ldexp(v.b, exponent.b)}; }
// v * 2^n, which must be a normal number; whole = n + 0x1.8p23.
inline __m256 raise(__m256 v, __m256 whole) {
  const __m256i power = _mm256_slli_epi32(_mm256_castps_si256(whole), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(v), power));
}
inline Vec raise(Vec v, Vec whole) { return {raise(v.a, whole.a), raise(v.b, whole.b)}; }
// v where x >= limit, 0 elsewhere.
inline Vec at_least(Vec x, float limit, Vec v) {
  const __m256 least = _mm256_set1_ps(limit);
  return {_mm256_and_ps(_mm256_cmp_ps(x.a, least, _CMP_GE_OQ), v.a),
          _mm256_and_ps(_mm256_cmp_ps(x.b, least, _CMP_GE_OQ), v.b)};
}

// The low or high bf16 of 16 times 32 bits.
inline Vec from_low_bf16(const uint8_t* p) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(load_ints(p), 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(load_ints(p + 32), 16))};
}
inline Vec from_high_bf16(const uint8_t* p) {
  const __m256i mask = _mm256_set1_epi32(static_cast<int>(0xffff0000));
  return {_mm256_castsi256_ps(_mm256_and_si256(load_ints(p), mask)),
          _mm256_castsi256_ps(_mm256_and_si256(load_ints(p + 32), mask))};
}

// Sums of integers, 8 of 32 bits; 16 make kParts of them.
using Part = __m256i;
constexpr int kParts = 2;

inline Part no_sums() { return _mm256_setzero_si256(); }
// The 4 bytes at p, repeated.
inline Part spread(const uint8_t* p) {
  int four;
  std::memcpy(&four, p, sizeof four);
  return _mm256_set1_epi32(four);
}
// int8 as pairs of 16 bits.
inline Part widen(const uint8_t* p) { return _mm256_cvtepi8_epi16(load_half(p)); }
// The nibbles of a part's bytes, each a byte.
struct Nibbles {
  Part low, high;
};
inline Nibbles nibbles(const uint8_t* p) {
  const Part mask = _mm256_set1_epi8(15), all = load_ints(p);
  return {_mm256_and_si256(all, mask), _mm256_and_si256(_mm256_srli_epi16(all, 4), mask)};
}
// Compilers may reassociate sums of integers, and then need more registers than there are.
inline void keep_order(Part& v) { asm("" : "+x"(v)); }
inline Vec to_floats(const Part* parts) {
  return {_mm256_cvtepi32_ps(parts[0]), _mm256_cvtepi32_ps(parts[1])};
}
// Stores whole numbers.
inline void store(int16_t* p, Vec v) {
  const __m256i packed = _mm256_packs_epi32(_mm256_cvtps_epi32(v.a), _mm256_cvtps_epi32(v.b));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}
inline void store(int8_t* p, Vec v) {
  const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(v.a), _mm256_cvtps_epi32(v.b));
  const __m256i sorted = _mm256_permute4x64_epi64(words, 0xd8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packs_epi16(_mm256_castsi256_si128(sorted), _mm256_extracti128_si256(sorted, 1)));
}
