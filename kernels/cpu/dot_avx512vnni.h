// Products of integers with AVX-512 VNNI. Included after simd_avx512.h.

// sums + the products of pairs with the pair at x, each pair's two added. Compilers read x into a register
// of its own first, and then have too few.
inline Part dot_words(Part sums, Part w, const uint8_t* x) {
  const int32_t& pair = *reinterpret_cast<const int32_t*>(x);
  asm("vpdpwssd %[pair]%{1to16%}, %[w], %[sums]" : [sums] "+v"(sums) : [w] "v"(w), [pair] "m"(pair));
  return sums;
}

// How dot_bytes takes a factor: sums of 8 k fit 16 bits, and what is above them is multiplied by 0.
inline int32_t factor_word(int32_t factor) { return factor; }
// sums + factor * (w.low . x0 + w.high . x1), the dot products of 4 bytes each.
inline Part dot_bytes(Part sums, const Nibbles& w, Part x0, Part x1, Part factor) {
  const Part eight = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(no_sums(), w.low, x0), w.high, x1);
  return _mm512_dpwssd_epi32(sums, eight, factor);
}
