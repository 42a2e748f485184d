// Pairs of k in fp32: two multiply-adds, in the order of k. Included after the vectors.

struct DotFp32 {
  using Act = float;
  struct Pair {
    Vec even, odd;
  };

  static Pair read(const uint8_t* p) {
    const float* at = reinterpret_cast<const float*>(p);
    return {load(at), load(at + 16)};
  }
  static void put(float* out, Vec x) { store(out, x); }
  static Pair spread(const float* x) { return {splat(x[0]), splat(x[1])}; }
  static Vec dot(Vec acc, const Pair& w, const Pair& x) {
    return fma(w.odd, x.odd, fma(w.even, x.even, acc));
  }
};
