// exp and log in fp32, operation by operation the same as elementary.py (which explains them), so
// that C++ and torch agree bit for bit; and what the row kernels share.
//
// Loops are left to the compiler's vectoriser: PLAIT_CLONES compiles a function for several
// instruction sets, and the loader picks one. Every operation is rounded by itself, as setup.py
// forbids contraction into fused multiply-adds; so the clones agree as well.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__FAST_MATH__)
#error "the noise must not depend on the compiler: build without -ffast-math"
#endif

#if defined(__x86_64__) && defined(__gnu_linux__)
#define PLAIT_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define PLAIT_CLONES
#endif
#define PLAIT_INLINE static inline __attribute__((always_inline))

namespace plait {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

PLAIT_INLINE int32_t bits_of(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

PLAIT_INLINE float from_bits(int32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// An integer that orders like the float: -inf lowest but for NaN, both zeros alike.
PLAIT_INLINE int32_t order_of(float x) {
  const int32_t bits = bits_of(x + 0.0f);
  const int32_t order = bits ^ ((bits >> 31) & 0x7fffffff);
  // masks instead of ?: keep loops free of branches, which the vectoriser would give up on
  const int32_t is_number = -static_cast<int32_t>(x == x);
  return (order & is_number) | (INT32_MIN & ~is_number);
}

PLAIT_INLINE float from_order(int32_t order) {
  return from_bits(order ^ ((order >> 31) & 0x7fffffff));
}

// e**x for x <= 0; 0 below -87.
PLAIT_INLINE float exp_nonpositive(float x) {
  constexpr float kMin = -87.0f, kRound = 12582912.0f;
  const float y = x < kMin ? kMin : x;
  const float k = (y * 1.442695f + kRound) - kRound;
  const float r = (y - k * 0.693359375f) - k * -0.00021219444f;
  float poly = 0.0001991938f;
  poly = poly * r + 0.0013947225f;
  poly = poly * r + 0.008333263f;
  poly = poly * r + 0.041666254f;
  poly = poly * r + 0.16666667f;
  poly = poly * r + 0.5f;
  const float value = (poly * (r * r) + r) + 1.0f;
  const float scale = from_bits((static_cast<int32_t>(k) + 127) << 23);
  return x < kMin ? 0.0f : value * scale;
}

// x = 2**k * (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)).
struct Split {
  float k, f;
};

PLAIT_INLINE Split split(float x) {
  const int32_t bits = bits_of(x);
  const int32_t k = (bits - 0x3f3504f3) >> 23;
  return {static_cast<float>(k), from_bits(bits - k * (1 << 23)) - 1.0f};
}

PLAIT_INLINE float log_split(Split x) {
  const float k = x.k, f = x.f, square = f * f;
  float poly = 0.06915368f;
  poly = poly * f + -0.11789808f;
  poly = poly * f + 0.11872976f;
  poly = poly * f + -0.12384348f;
  poly = poly * f + 0.14218658f;
  poly = poly * f + -0.16669251f;
  poly = poly * f + 0.20002227f;
  poly = poly * f + -0.24999987f;
  poly = poly * f + 0.3333331f;
  const float tail = (poly * f) * square;
  return (((k * -0.00021219444f + tail) - square * 0.5f) + f) + k * 0.693359375f;
}

// The natural logarithm of a positive normal number.
PLAIT_INLINE float log_positive(float x) { return log_split(split(x)); }

// log(1 - v) for 0 < v < 1.
PLAIT_INLINE float log1m(float v) {
  const float rest = 1.0f - v;
  const Split x = split(rest);
  return log_split({x.k, x.f + ((1.0f - rest) - v)});
}

}  // namespace plait
