// Pairs of k in bf16 where the instruction set has no products of them: widened to fp32. Included
// after dot_fp32.h.

struct DotHalf : DotFp32 {
  static void put(float* out, Vec x) {
    uint16_t rounded[16];
    store(rounded, x);
    store(out, load(rounded));
  }
  static Pair bf16(const uint8_t* q, int vector, int pair) {
    const uint8_t* at = q + 64 * (2 * pair + vector);
    return {from_low_bf16(at), from_high_bf16(at)};
  }
};
