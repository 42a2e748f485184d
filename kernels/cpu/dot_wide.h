// The 16-bit modes where the instruction set has no bf16 products: every weight is widened to
// fp32. Included after dot_fp32.h.

struct DotHalf : DotFp32 {
  static Pair bf16(const uint8_t* q, int vector, int pair) {
    const uint8_t* at = q + 64 * (2 * pair + vector);
    return {from_low_bf16(at), from_high_bf16(at)};
  }
  static Pair int8(const uint8_t* q, int vector, int pair) {
    const uint8_t* at = q + 32 * (2 * pair + vector);
    return {from_int8(at), from_int8(at + 16)};
  }
  static Pair int4(const uint8_t* q, int vector, int pair) {
    const uint8_t* at = q + 64 * (2 * (pair / 4) + vector);
    const int shift = 4 * (pair % 4);
    return {from_nibble(at, shift), from_nibble(at, shift + 16)};
  }
};
