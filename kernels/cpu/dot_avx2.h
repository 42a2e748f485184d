// Products of integers with AVX2. Included after simd_avx2.h.

// sums + the products of pairs with the pair at x, each pair's two added.
inline Part dot_words(Part sums, Part w, const uint8_t* x) {
  return _mm256_add_epi32(sums, _mm256_madd_epi16(w, spread(x)));
}

// How dot_bytes takes a factor.
inline int32_t factor_word(int32_t factor) { return factor * 0x10001; }
// sums + factor * (w.low . x0 + w.high . x1), the dot products of 4 bytes each.
inline Part dot_bytes(Part sums, const Nibbles& w, Part x0, Part x1, Part factor) {
  const Part low = _mm256_maddubs_epi16(w.low, x0), high = _mm256_maddubs_epi16(w.high, x1);
  return _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_add_epi16(low, high), factor));
}
