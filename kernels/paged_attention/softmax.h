// The running softmax. Included inside a namespace, after the vectors.

// 2^x for x <= 0, exactly 1 at 0 and exactly 0 below -125, also for minus infinity. Relative error
// below 2e-7: 1 + r * (minimax polynomial of degree 4) on [-1/2, 1/2].
inline Vec exp2(Vec x) {
  const Vec magic = splat(0x1.8p23f);
  const Vec whole = add(x, magic);  // its low bits are those of x, rounded
  const Vec r = sub(x, sub(whole, magic));
  Vec p = splat(0x1.5bba14p-10f);
  p = fma(p, r, splat(0x1.3cea88p-7f));
  p = fma(p, r, splat(0x1.c6b752p-5f));
  p = fma(p, r, splat(0x1.ebf9bcp-3f));
  p = fma(p, r, splat(0x1.62e42ap-1f));
  p = fma(p, r, splat(1.0f));
  return at_least(x, -125.0f, raise(p, whole));
}

constexpr float kLog2E = 0x1.715476p+0f;  // scores are logarithms to base 2
constexpr float kLowest = -0x1.fffffep127f;

// What is taken from scores before they become weights: finite, so that all weights are 0 where
// nothing is seen yet.
inline Vec base_of(Vec top) { return max(top, splat(kLowest)); }

inline Vec best_of(const float* scores, int blocks) {
  Vec best = load(scores);
  for (int b = 1; b < blocks; ++b) best = max(best, load(scores + b * kBlock));
  return best;
}

// Scores become weights of one query. Returns their sums by place in a block.
inline Vec weigh_one(float* scores, int blocks, float top) {
  const Vec base = base_of(splat(top));
  Vec total = zero();
  for (int b = 0; b < blocks; ++b) {
    const Vec weight = exp2(sub(load(scores + b * kBlock), base));
    store(scores + b * kBlock, weight);
    total = add(total, weight);
  }
  return total;
}

// Scores become weights of the queries that may see any of the strip's keys; top, mass and shrink
// follow. Writes up to 15 shrinks too many. In stages, each of which does the same to all queries:
// what a query waits for would otherwise hold up the next ones.
[[gnu::noinline]] void weigh(int queries, const Reach& reach, const TaskScratch& s) {
  constexpr int kWhole = kStrip / kBlock;
  float before[kSlots] = {};  // what lies behind them might be numbers that take long
  std::copy_n(s.top, queries, before);
  each_sub(queries, reach, [&](int first, int some, int count) {
    const int blocks = ceil_div(count, kBlock);
    for (int i = first; i < first + some; ++i) {
      const float* scores = s.scores + i * kStrip;
      const Vec best = blocks == kWhole ? best_of(scores, kWhole) : best_of(scores, blocks);
      s.top[i] = std::max(before[i], highest(best));
    }
  });
  each_sub(queries, reach, [&](int first, int some, int count) {
    const int blocks = ceil_div(count, kBlock);
    for (int i = first; i < first + some; ++i) {
      float* scores = s.scores + i * kStrip;
      store(s.fresh + i * 16, blocks == kWhole ? weigh_one(scores, kWhole, s.top[i])
                                               : weigh_one(scores, blocks, s.top[i]));
    }
  });
  for (int i = 0; i < queries; i += 16) {
    store(s.shrink + i, exp2(sub(load(before + i), base_of(load(s.top + i)))));
  }
  each_sub(queries, reach, [&](int first, int some, int) {
    for (int i = first; i < first + some; ++i) {
      const Vec total = load(s.fresh + i * 16);
      store(s.mass + i * 16, fma(load(s.mass + i * 16), splat(s.shrink[i]), total));
    }
  });
}
