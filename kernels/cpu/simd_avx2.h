// Vectors of 16 floats as two of 8, on AVX2 with FMA and F16C. Included inside a namespace.

struct Vec {
  __m256 a, b;
};

constexpr int kTile = 3;         // rows multiplied together
constexpr int kIntegerTile = 4;  // the same of integers

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
inline float highest(Vec v) {
  const __m256 eight = _mm256_max_ps(v.a, v.b);
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}
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
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

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

// Integers: 16 of 32 bits, or as many pairs of 16 bits.
struct Ints {
  __m256i a, b;
};

inline Ints no_ints() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline Ints spread_pair(const int16_t* x) {
  int both;
  std::memcpy(&both, x, sizeof both);
  const __m256i all = _mm256_set1_epi32(both);
  return {all, all};
}
// 32 int8 as pairs; the nibbles at `shift` bits of 32 times 16 bits as pairs.
inline Ints widen(const uint8_t* p) {
  return {_mm256_cvtepi8_epi16(load_half(p)), _mm256_cvtepi8_epi16(load_half(p + 16))};
}
inline Ints nibbles(const uint8_t* p, int shift) {
  const __m256i mask = _mm256_set1_epi16(15);
  return {_mm256_and_si256(_mm256_srli_epi16(load_ints(p), shift), mask),
          _mm256_and_si256(_mm256_srli_epi16(load_ints(p + 32), shift), mask)};
}
// sums + the products of pairs, each pair's two added.
inline Ints dot(Ints sums, Ints w, Ints x) {
  return {_mm256_add_epi32(sums.a, _mm256_madd_epi16(w.a, x.a)),
          _mm256_add_epi32(sums.b, _mm256_madd_epi16(w.b, x.b))};
}
// Compilers may reassociate sums of integers, and then need more registers than there are.
inline void keep_order(Ints& v) { asm("" : "+x"(v.a), "+x"(v.b)); }
inline Vec to_floats(Ints v) { return {_mm256_cvtepi32_ps(v.a), _mm256_cvtepi32_ps(v.b)}; }
// Stores whole numbers.
inline void store(int16_t* p, Vec v) {
  const __m256i packed = _mm256_packs_epi32(_mm256_cvtps_epi32(v.a), _mm256_cvtps_epi32(v.b));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}
