// Queries times keys and weights times values, some queries at a time. Included inside a namespace,
// after the vectors.
//
// A score is one sum over the dims in their order; a weighted value is one over the keys in theirs.
// So how many queries, keys or dims are in registers together changes no bit.

constexpr int kSub = 6;  // queries whose sums are in registers together

// Vectors of each of so many queries' sums that are in registers together: 4, 2 or 1.
constexpr int width_for(int queries) {
  const int most = kAccumulators / queries;
  return most >= 4 ? 4 : most >= 2 ? 2 : 1;
}

// Rows of a block's keys or values that lie in one cache line.
template <class T>
constexpr int kPerLine = 64 / (kBlock * static_cast<int>(sizeof(T)));

// Compilers would keep a pointer for each sum of a pointer and a multiple.
inline void opaque(const float*& p) { asm("" : "+r"(p)); }

// scores[query][block] = q . k for NQ queries and NB blocks of 16 keys.
template <int NQ, int NB, class T, class Next>
[[gnu::noinline]] void score(const float* q, ptrdiff_t stride, int dim, const T* const* keys,
                             float* scores, Next& next) {
  Vec acc[NQ][NB];
#pragma GCC unroll 8
  for (int i = 0; i < NQ; ++i) {
#pragma GCC unroll 4
    for (int b = 0; b < NB; ++b) acc[i][b] = zero();
  }
  const float* early = q;
  const float* late = q + 3 * stride;  // so that few registers hold the places of six queries
  opaque(early);
  opaque(late);
  for (int d = 0; d < dim; ++d, ++early, ++late) {
    if (d % kPerLine<T> == 0) next.ask();
    Vec k[NB];
#pragma GCC unroll 4
    for (int b = 0; b < NB; ++b) k[b] = load(keys[b] + d * kBlock);
#pragma GCC unroll 8
    for (int i = 0; i < NQ; ++i) {
      const Vec x = splat(i < 3 ? early[i * stride] : late[(i - 3) * stride]);
#pragma GCC unroll 4
      for (int b = 0; b < NB; ++b) acc[i][b] = fma(x, k[b], acc[i][b]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < NQ; ++i) {
#pragma GCC unroll 4
    for (int b = 0; b < NB; ++b) store(scores + i * kStrip + b * kBlock, acc[i][b]);
  }
}

// What is mixed for the queries that are in registers together.
struct Mixed {
  const float *weights, *shrink;  // [query][kStrip], [query]
  float* sums;                    // [query][stride]
  int stride;
};

// sums[query] = sums[query] * shrink[query] + weights . v for NQ queries and NV vectors of 16 dims.
template <int NQ, int NV, class T, class Next>
[[gnu::noinline]] void mix(const Mixed& mixed, int count, const T* const* values, int head_dim,
                           Next& next) {
  const auto [weights, shrink, sums, stride] = mixed;
  Vec acc[NQ][NV];
#pragma GCC unroll 8
  for (int i = 0; i < NQ; ++i) {
    const Vec factor = splat(shrink[i]);
#pragma GCC unroll 4
    for (int n = 0; n < NV; ++n) acc[i][n] = mul(factor, load(sums + i * stride + 16 * n));
  }
  for (int first = 0; first < count; first += kBlock) {
    const T* value = values[first / kBlock];
    const float* weight = weights + first;
    for (int left = std::min(kBlock, count - first); left > 0; --left) {
      if (left % kPerLine<T> == 0) next.ask();
      Vec v[NV];
#pragma GCC unroll 4
      for (int n = 0; n < NV; ++n) v[n] = load(value + 16 * n);
#pragma GCC unroll 8
      for (int i = 0; i < NQ; ++i) {
        const Vec w = splat(weight[i * kStrip]);
#pragma GCC unroll 4
        for (int n = 0; n < NV; ++n) acc[i][n] = fma(w, v[n], acc[i][n]);
      }
      value += head_dim;
      ++weight;
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < NQ; ++i) {
#pragma GCC unroll 4
    for (int n = 0; n < NV; ++n) store(sums + i * stride + 16 * n, acc[i][n]);
  }
}

// The last dims of a head whose size is no multiple of 16.
template <class T>
inline void mix_rest(const float* weights, float shrink, int count, const T* const* values,
                     int head_dim, int rest, float* sums) {
  Vec acc = mul(splat(shrink), load(sums));
  for (int j = 0; j < count; ++j) {
    const T* value = values[j / kBlock] + j % kBlock * head_dim;
    acc = fma(splat(weights[j]), load_first(value, rest), acc);
  }
  store(sums, acc);
}

template <int N = 1, class F>
inline void with_queries(int count, const F& f) {
  if constexpr (N < kSub) {
    if (count != N) return with_queries<N + 1>(count, f);
  }
  f(std::integral_constant<int, N>());
}

// f(first, how many, keys that they may see) for the queries that share registers and see any.
template <class F>
inline void each_sub(int queries, const Reach& reach, const F& f) {
  for (int i = 0; i < queries; i += kSub) {
    const int some = std::min(kSub, queries - i), count = reach.of(i + some - 1);
    if (count > 0) f(i, some, count);
  }
}

template <class T, class Next>
inline void score_strip(const T* const* keys, const TaskScratch& s, int queries,
                        const Reach& reach, int head_dim, Next& next) {
  each_sub(queries, reach, [&](int i, int some, int count) {
    with_queries(some, [&](auto size) {
      constexpr int N = decltype(size)::value, kWidth = width_for(N);
      const float* q = s.q + i * s.dim;
      float* scores = s.scores + i * kStrip;
      const int blocks = ceil_div(count, kBlock);
      int b = 0;
      for (; b + kWidth <= blocks; b += kWidth) {
        score<N, kWidth>(q, s.dim, head_dim, keys + b, scores + b * kBlock, next);
      }
      for (; b < blocks; ++b) {
        score<N, 1>(q, s.dim, head_dim, keys + b, scores + b * kBlock, next);
      }
    });
  });
}

template <class T, class Next>
inline void mix_strip(const T* const* pages, const TaskScratch& s, int queries,
                      const Reach& reach, int head_dim, Next& next) {
  each_sub(queries, reach, [&](int i, int some, int count) {
    with_queries(some, [&](auto size) {
      constexpr int N = decltype(size)::value, kWidth = width_for(N);
      Mixed mixed{s.scores + i * kStrip, s.shrink + i, s.sums + i * s.dim, s.dim};
      const T* values[kStrip / kBlock];
      const int blocks = ceil_div(count, kBlock);
      std::copy_n(pages, blocks, values);
      int d = 0;
      const auto advance = [&](int dims) {
        d += dims;
        mixed.sums += dims;
        for (int b = 0; b < blocks; ++b) values[b] += dims;
      };
      for (; d + 16 * kWidth <= head_dim; advance(16 * kWidth)) {
        mix<N, kWidth>(mixed, count, values, head_dim, next);
      }
      for (; d + 16 <= head_dim; advance(16)) {
        mix<N, 1>(mixed, count, values, head_dim, next);
      }
      for (int n = 0; d < head_dim && n < N; ++n) {
        mix_rest(mixed.weights + n * kStrip, mixed.shrink[n], count, values, head_dim, head_dim - d,
                 mixed.sums + n * s.dim);
      }
    });
  });
}
