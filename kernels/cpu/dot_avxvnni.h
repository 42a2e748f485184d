// Products of integers with AVX-VNNI. Included after simd_avx2.h.

// sums + the products of pairs with the pair at x, each pair's two added.
inline Part dot_words(Part sums, Part w, const uint8_t* x) {
  return _mm256_dpwssd_avx_epi32(sums, w, spread(x));
}

// How dot_bytes takes a factor: sums of 8 k fit 16 bits, and what is above them is multiplied by 0.
inline int32_t factor_word(int32_t factor) { return factor; }
// sums + factor * (w.low . x0 + w.high . x1), the dot products of 4 bytes each.
inline Part dot_bytes(Part sums, const Nibbles& w, Part x0, Part x1, Part factor) {
  const Part low = _mm256_dpbusd_avx_epi32(no_sums(), w.low, x0);
  return _mm256_dpwssd_avx_epi32(sums, _mm256_dpbusd_avx_epi32(low, w.high, x1), factor);
}
