// Vectors of 16 floats in the compiler's own vector types, for processors without a kernel set of
// their own. Included inside a namespace.

using Vec = float __attribute__((vector_size(64)));
using Words = uint32_t __attribute__((vector_size(64)));
using Ints = int32_t __attribute__((vector_size(64)));
using Halves = uint16_t __attribute__((vector_size(32)));
using Shorts = int16_t __attribute__((vector_size(64)));
using Bytes = int8_t __attribute__((vector_size(32)));

constexpr int kTile = 2;         // rows multiplied together
constexpr int kIntegerTile = 2;  // the same of integers
constexpr int kHalfTile = 2;     // the same with bf16 weights
constexpr int kAccumulators = 6;  // vectors of sums that stay in registers

template <class T>
inline T read_as(const void* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}
inline Words words(Vec a) { return reinterpret_cast<Words>(a); }
inline Vec floats(Words a) { return reinterpret_cast<Vec>(a); }

inline Vec zero() { return Vec{}; }
inline Vec splat(float a) { return a - Vec{}; }
inline Vec load(const float* p) { return read_as<Vec>(p); }
inline Vec load(const uint16_t* p) {
  return floats(__builtin_convertvector(read_as<Halves>(p), Words) << 16);
}
template <class T>
inline Vec load_first(const T* p, int n) {
  T padded[16] = {};
  std::memcpy(padded, p, n * sizeof(T));
  return load(padded);
}
inline void store(float* p, Vec a) { std::memcpy(p, &a, sizeof a); }
inline void store_first(float* p, Vec a, int n) { std::memcpy(p, &a, n * sizeof(float)); }

// Rounds to nearest even; NaN stays NaN.
inline void store(uint16_t* p, Vec a) {
  const Words bits = words(a);
  const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Words number = reinterpret_cast<Words>(a == a);
  const Words chosen = (rounded & number) | (0x7fc0 & ~number);
  const Halves halves = __builtin_convertvector(chosen, Halves);
  std::memcpy(p, &halves, sizeof halves);
}
// Reads the fp16 bits as an fp32 number whose exponent is too small by 112, and scales that away:
// right for subnormal numbers too. Scales are never infinite.
inline Vec load_fp16(const uint8_t* p) {
  const Words half = __builtin_convertvector(read_as<Halves>(p), Words);
  const Words shrunk = ((half & 0x7fff) << 13) | ((half & 0x8000) << 16);
  return floats(shrunk) * 0x1p112f;
}

inline Vec add(Vec a, Vec b) { return a + b; }
inline Vec sub(Vec a, Vec b) { return a - b; }
inline Vec mul(Vec a, Vec b) { return a * b; }
inline Vec div(Vec a, Vec b) { return a / b; }
inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
inline Vec select(Words mask, Vec a, Vec b) {
  return floats((mask & words(a)) | (~mask & words(b)));
}
inline Vec max(Vec a, Vec b) { return select(reinterpret_cast<Words>(a > b), a, b); }
inline Vec min(Vec a, Vec b) { return select(reinterpret_cast<Words>(a < b), a, b); }
inline Vec keep(uint16_t bits, Vec a, Vec other) {
  const Words each = {1,   2,   4,    8,    16,   32,   64,    128,
                      256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
  return select(reinterpret_cast<Words>((bits & each) != 0), a, other);
}
inline float sum(Vec a) {
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) a[i] += a[i + width];
  }
  return a[0];
}
inline float highest(Vec a) {
  float best = a[0];
  for (int i = 1; i < 16; ++i) best = a[i] > best ? a[i] : best;
  return best;
}
// For magnitudes below 2^22, which is all that exp needs.
inline Vec nearest(Vec a) { return (a + 0x1.8p23f) - 0x1.8p23f; }
inline Vec power_of_two(Ints exponent) { return reinterpret_cast<Vec>((exponent + 127) << 23); }
inline Vec ldexp(Vec a, Vec exponent) {
  const Ints whole = __builtin_convertvector(exponent, Ints);
  const Ints half = whole >> 1;  // two steps reach below the normal numbers
  return a * power_of_two(half) * power_of_two(whole - half);
}
// a * 2^n, which must be a normal number; whole = n + 0x1.8p23.
inline Vec raise(Vec a, Vec whole) { return floats(words(a) + (words(whole) << 23)); }
// a where x >= limit, 0 elsewhere.
inline Vec at_least(Vec x, float limit, Vec a) {
  return floats(reinterpret_cast<Words>(x >= splat(limit)) & words(a));
}

// The low or high bf16 of 16 times 32 bits.
inline Vec from_low_bf16(const uint8_t* p) { return floats(read_as<Words>(p) << 16); }
inline Vec from_high_bf16(const uint8_t* p) { return floats(read_as<Words>(p) & 0xffff0000u); }

// Sums of integers, 16 of 32 bits.
using Part = Ints;
constexpr int kParts = 1;

inline Part no_sums() { return Part{}; }
// The 4 bytes at p, repeated.
inline Part spread(const uint8_t* p) { return read_as<int32_t>(p) - Part{}; }
// int8 as pairs of 16 bits.
inline Part widen(const uint8_t* p) {
  return reinterpret_cast<Part>(__builtin_convertvector(read_as<Bytes>(p), Shorts));
}
// sums + the products of pairs, each pair's two added.
inline Part dot_words(Part sums, Part w, Part x) {
  return sums + ((w << 16) >> 16) * ((x << 16) >> 16) + (w >> 16) * (x >> 16);
}
inline Part dot_words(Part sums, Part w, const uint8_t* x) { return dot_words(sums, w, spread(x)); }

// The nibbles of a part's bytes, each a byte.
struct Nibbles {
  Part low, high;
};
inline Nibbles nibbles(const uint8_t* p) {
  const Words all = read_as<Words>(p);
  return {reinterpret_cast<Part>(all & 0x0f0f0f0fu),
          reinterpret_cast<Part>((all >> 4) & 0x0f0f0f0fu)};
}
// How dot_bytes takes a factor.
inline int32_t factor_word(int32_t factor) { return factor * 0x10001; }
// The products of bytes, those of w unsigned, added in pairs.
inline Shorts pair_sums(Part w, Part x) {
  const Shorts a = reinterpret_cast<Shorts>(w), b = reinterpret_cast<Shorts>(x);
  return (a & 255) * ((b << 8) >> 8) + (a >> 8) * (b >> 8);
}
// sums + factor * (w.low . x0 + w.high . x1), the dot products of 4 bytes each.
inline Part dot_bytes(Part sums, const Nibbles& w, Part x0, Part x1, Part factor) {
  const Shorts pairs = pair_sums(w.low, x0) + pair_sums(w.high, x1);
  return dot_words(sums, reinterpret_cast<Part>(pairs), factor);
}
// Compilers may reassociate sums of integers, and then need more registers than there are.
inline void keep_order(Part&) {}
inline Vec to_floats(const Part* parts) { return __builtin_convertvector(parts[0], Vec); }
// Stores whole numbers.
inline void store(int16_t* p, Vec a) {
  for (int i = 0; i < 16; ++i) p[i] = static_cast<int16_t>(static_cast<int32_t>(a[i]));
}
inline void store(int8_t* p, Vec a) {
  for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(static_cast<int32_t>(a[i]));
}
// Each half's greatest, in all places of the half.
inline Vec highest_eights(Vec a) {
  Vec all{};
  for (int half = 0; half < 16; half += 8) {
    float best = a[half];
    for (int i = half; i < half + 8; ++i) best = a[i] > best ? a[i] : best;
    for (int i = half; i < half + 8; ++i) all[i] = best;
  }
  return all;
}
// The whole numbers that both halves hold.
inline void store_each_eighth(Vec a, int32_t* p) {
  for (int i = 0; i < 2; ++i) p[i] = static_cast<int32_t>(a[8 * i]);
}
// The greater of both halves, which hold one number each.
inline float highest_of_halves(Vec a) { return a[0] > a[8] ? a[0] : a[8]; }
inline bool has_nan(Vec a) {
  bool found = false;
  for (int i = 0; i < 16; ++i) found |= a[i] != a[i];
  return found;
}
// 1 / a, of whole numbers 1 .. 16.
inline Vec inverse_of(Vec a) { return div(splat(1.0f), a); }
// For magnitudes below 2^31.
inline Vec ceil(Vec a) {
  const Vec down = __builtin_convertvector(__builtin_convertvector(a, Ints), Vec);
  return down + __builtin_convertvector(-(down < a), Vec);
}
