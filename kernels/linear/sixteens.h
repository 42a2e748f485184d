// Products of int4 weights with AVX-512 VNNI that join the sums of 16 k before their factors. Included
// inside a namespace, after integers.h.
//
// The sum of 8 k fits 16 bits, so one word holds those of two eights, and one multiplication takes both
// times their factors: five for 16 k instead of six. The shift and the move that join them run beside
// the multiplications on processors that have other units for these, as Zen has.

struct SixteenRows : Rows<kIntegerTile, 40> {
  static void put(uint8_t* out, const ByteGroup& group) {
    int32_t factors[4];
    ByteRows::put_quants(out, group, factors);
    auto* pairs = reinterpret_cast<int32_t*>(out + kGroup);
    for (int i = 0; i < 2; ++i) pairs[i] = factors[2 * i] | factors[2 * i + 1] << 16;
  }
};

// sums + the products of `w` and `u` with the 16 bytes at x, the sums of 8 times the factor of each.
//
// Compilers read each 4 bytes into a register of their own before they are used, and then have too few.
inline Part dot_sixteen(
    Part sums, const Nibbles& w, const Nibbles& u, const int32_t* x, const int32_t* factors) {
  constexpr uint32_t kUpper = 0xaaaaaaaa;
  Part first, second;
  asm("vpxord %[second], %[second], %[second]\n\t"
      "vpdpbusd %[x2]%{1to16%}, %[u_low], %[second]\n\t"
      "vpdpbusd %[x3]%{1to16%}, %[u_high], %[second]\n\t"
      "vpxord %[first], %[first], %[first]\n\t"
      "vpdpbusd %[x0]%{1to16%}, %[w_low], %[first]\n\t"
      "vpdpbusd %[x1]%{1to16%}, %[w_high], %[first]\n\t"
      "vpslld $16, %[second], %[second]\n\t"
      "vmovdqu16 %[second], %[first]%{%[upper]%}\n\t"
      "vpdpwssd %[factors]%{1to16%}, %[first], %[sums]"
      : [sums] "+v"(sums), [first] "=&v"(first), [second] "=&v"(second)
      : [w_low] "v"(w.low), [w_high] "v"(w.high), [u_low] "v"(u.low), [u_high] "v"(u.high),
        [x0] "m"(x[0]), [x1] "m"(x[1]), [x2] "m"(x[2]), [x3] "m"(x[3]), [factors] "m"(*factors),
        [upper] "Yk"(kUpper));
  return sums;
}

template <class W>
struct Sixteens : W {
  static constexpr int kInput = SixteenRows::kBytes, kEights = 2;

  template <int R>
  static void multiply(const uint8_t* q, const uint8_t* x, int eight, Part (&sums)[R]) {
    Nibbles w = nibbles(q), u = nibbles(q + W::kEight);
    for (Part* part : {&w.low, &w.high, &u.low, &u.high}) keep_order(*part);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const auto* at = reinterpret_cast<const int32_t*>(x + r * kInput);
      sums[r] = dot_sixteen(sums[r], w, u, at + 2 * eight, at + (kGroup + 2 * eight) / 4);
    }
  }
};

constexpr LinearKernel kInt4Sixteens{pack_bytes<SixteenRows>, integer_panels<Sixteens<Int4>>};
constexpr LinearKernel kInt4WideSixteens{pack_bytes<SixteenRows>, integer_panels<Sixteens<Int4Wide>>};
