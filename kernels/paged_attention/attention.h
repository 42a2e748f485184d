// Attention of a few rows of one segment, all query heads of one KV head at a time. Included inside
// a namespace, after the vectors.
//
// Keys are read in logical order, in strips of 64 that start at multiples of 64: the running
// softmax is corrected once a strip. A key that a row does not see has weight exactly 0, so the
// bits of a row do not depend on which other rows, or how many keys more, its task reads. Keys of a
// branch, or of the path to a row of a tree, are first moved to where they would be if there were no
// other branch or path.

constexpr int kSub = 6;  // queries whose sums are in registers together

// Vectors of each of so many queries' sums that are in registers together: 4, 2 or 1.
constexpr int width_for(int queries) {
  const int most = kAccumulators / queries;
  return most >= 4 ? 4 : most >= 2 ? 2 : 1;
}

// Memory of one task: up to kQueries queries, dim = head_dim rounded up to 16.
struct TaskScratch {
  float *q;       // [query][dim], scaled
  float *scores;  // [query][kStrip]: scores, then weights
  float *sums;    // [query][dim]: weighted values
  float *top, *mass, *shrink;  // [slot]: running maximum, sum of weights, correction
  char *keys, *values;  // [block of strip][dim][16] and [block of strip][16][dim]: moved
  uint8_t* kin;         // [row][row of segment]: SHADOW, does the row see it?
  // BRANCHES and TREE, in the memory of kin: the segment's rows that belong to the branch or the
  // path, their positions.
  int32_t *mates, *mate_positions;

  // What belongs to the queries from `first` on.
  TaskScratch from(int first, int dim) const {
    TaskScratch rest = *this;
    rest.q += first * dim;
    rest.scores += first * kStrip;
    rest.sums += first * dim;
    rest.top += first;
    rest.mass += first;
    rest.shrink += first;
    return rest;
  }
};

inline TaskScratch task_scratch(char* own, int dim, int rows) {
  TaskScratch s;
  s.q = reinterpret_cast<float*>(own);
  s.scores = s.q + kQueries * dim;
  s.sums = s.scores + kQueries * kStrip;
  s.top = s.sums + kQueries * dim;
  s.mass = s.top + kSlots;
  s.shrink = s.mass + kSlots;
  s.keys = reinterpret_cast<char*>(s.shrink + kSlots);
  s.values = s.keys + sizeof(float) * kStrip * dim;
  s.kin = reinterpret_cast<uint8_t*>(s.values + sizeof(float) * kStrip * dim);
  s.mates = reinterpret_cast<int32_t*>(s.kin);
  s.mate_positions = s.mates + rows;
  return s;
}

// What one row sees.
struct Sight {
  int context, own, kind;  // own: rows of the segment, of the branch or of the path
  int row, position, window;
  const int32_t* positions;  // of these rows
  const uint8_t* kin;        // of this row

  bool sees(int key) const {
    const int mate = key - context;
    if (mate >= own) return false;
    if (window && (mate < 0 ? key : positions[mate]) <= position - window) return false;
    if (mate < 0) return true;
    return kind == kFull || (kind == kCausal ? mate <= row : kin[mate] != 0);
  }
  // Whether all of key .. key + count - 1 are seen, if that is cheap to tell.
  bool sees_all(int key, int count) const {
    const int end = kind == kFull ? context + own : kind == kCausal ? context + row + 1 : context;
    return key + count <= end && !window;
  }
  uint16_t bits(int key) const {
    if (sees_all(key, kBlock)) return 0xffff;
    unsigned bits = 0;
    for (int i = 0; i < kBlock; ++i) bits |= static_cast<unsigned>(sees(key + i)) << i;
    return static_cast<uint16_t>(bits);
  }
};

// scores[query][block] = q . k for NQ queries and NB blocks of 16 keys.
template <int NQ, int NB, class T>
inline void score(const float* q, int stride, int dim, const T* const* keys, float* scores) {
  Vec acc[NQ][NB];
#pragma GCC unroll 8
  for (int i = 0; i < NQ; ++i) {
#pragma GCC unroll 4
    for (int b = 0; b < NB; ++b) acc[i][b] = zero();
  }
  for (int d = 0; d < dim; ++d) {
    Vec k[NB];
#pragma GCC unroll 4
    for (int b = 0; b < NB; ++b) k[b] = load(keys[b] + d * kBlock);
#pragma GCC unroll 8
    for (int i = 0; i < NQ; ++i) {
      const Vec x = splat(q[i * stride + d]);
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

// sums[query] = sums[query] * shrink[query] + weights . v for NQ queries and NV vectors of 16 dims.
template <int NQ, int NV, class T>
inline void mix(const float* weights, const float* shrink, int count, const T* const* values,
                int head_dim, float* sums, int stride) {
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

// Keys first .. first + count - 1 of the sequence, where their blocks lie for one KV head.
template <class T>
struct Strip {
  const T* keys[kStrip / kBlock];
  const T* values[kStrip / kBlock];
  int first, count, blocks;
};

// Elements before a block's keys, or values, for one KV head.
inline size_t page_at(const Cache& cache, size_t block, int kv_head) {
  return (block * cache.kv_heads + kv_head) * cache.head_dim * kBlock;
}

template <class T>
inline Strip<T> strip_at(const Cache& cache, const int32_t* table, int kv_head, int first,
                         int count) {
  Strip<T> strip;
  strip.first = first;
  strip.count = count;
  strip.blocks = ceil_div(count, kBlock);
  for (int b = 0; b < strip.blocks; ++b) {
    const size_t at = page_at(cache, table[first / kBlock + b], kv_head);
    strip.keys[b] = static_cast<const T*>(cache.k) + at;
    strip.values[b] = static_cast<const T*>(cache.v) + at;
  }
  return strip;
}

template <class T>
inline void score_strip(const Strip<T>& strip, const TaskScratch& s, int queries, int stride,
                        int head_dim) {
  for (int i = 0; i < queries; i += kSub) {
    with_queries(std::min(kSub, queries - i), [&](auto size) {
      constexpr int N = decltype(size)::value;
      const float* q = s.q + i * stride;
      float* scores = s.scores + i * kStrip;
      constexpr int kWidth = width_for(N);
      int b = 0;
      for (; b + kWidth <= strip.blocks; b += kWidth) {
        score<N, kWidth>(q, stride, head_dim, strip.keys + b, scores + b * kBlock);
      }
      for (; b < strip.blocks; ++b) {
        score<N, 1>(q, stride, head_dim, strip.keys + b, scores + b * kBlock);
      }
    });
  }
}

constexpr float kLowest = -0x1.fffffep127f;

// What is taken from scores before they become weights: finite, so that all weights are 0 where
// nothing is seen yet.
inline Vec base_of(Vec top) { return max(top, splat(kLowest)); }

// Scores become weights; top, mass and shrink follow. Writes up to 15 shrinks too many.
inline void weigh(int queries, int blocks, const TaskScratch& s) {
  float before[kSlots];
  std::copy_n(s.top, queries, before);
  for (int i = 0; i < queries; ++i) {
    const float* scores = s.scores + i * kStrip;
    Vec best = load(scores);
    for (int b = 1; b < blocks; ++b) best = max(best, load(scores + b * kBlock));
    s.top[i] = std::max(before[i], highest(best));
  }
  for (int i = 0; i < queries; i += 16) {
    store(s.shrink + i, exp(sub(load(before + i), base_of(load(s.top + i)))));
  }
  for (int i = 0; i < queries; ++i) {
    float* scores = s.scores + i * kStrip;
    const Vec base = base_of(splat(s.top[i]));
    Vec total = zero();
    for (int b = 0; b < blocks; ++b) {
      const Vec weight = exp(sub(load(scores + b * kBlock), base));
      store(scores + b * kBlock, weight);
      total = add(total, weight);
    }
    s.mass[i] = s.mass[i] * s.shrink[i] + sum(total);
  }
}

template <class T>
inline void mix_strip(const Strip<T>& strip, const TaskScratch& s, int queries, int stride,
                      int head_dim) {
  for (int i = 0; i < queries; i += kSub) {
    with_queries(std::min(kSub, queries - i), [&](auto size) {
      constexpr int N = decltype(size)::value;
      const float* weights = s.scores + i * kStrip;
      float* sums = s.sums + i * stride;
      const T* values[kStrip / kBlock];
      std::copy(strip.values, strip.values + strip.blocks, values);
      int d = 0;
      const auto advance = [&](int dims) {
        d += dims;
        for (int b = 0; b < strip.blocks; ++b) values[b] += dims;
      };
      constexpr int kWidth = width_for(N);
      for (; d + 16 * kWidth <= head_dim; advance(16 * kWidth)) {
        mix<N, kWidth>(weights, s.shrink + i, strip.count, values, head_dim, sums + d, stride);
      }
      for (; d + 16 <= head_dim; advance(16)) {
        mix<N, 1>(weights, s.shrink + i, strip.count, values, head_dim, sums + d, stride);
      }
      for (int n = 0; d < head_dim && n < N; ++n) {
        mix_rest(weights + n * kStrip, s.shrink[i + n], strip.count, values, head_dim,
                 head_dim - d, sums + n * stride + d);
      }
    });
  }
}

// Marks what each row of the tile sees: rows of the first half, but row i of the second half sees
// itself instead of row i of the first.
inline void mark_shadowed(const RowTile& tile, int start, int own, uint8_t* kin) {
  const int half = own / 2;
  for (int row = tile.first - start; row < tile.last - start; ++row, kin += own) {
    std::memset(kin, 1, half);
    std::memset(kin + half, 0, half);
    if (row >= half) std::swap(kin[row - half], kin[row]);
  }
}

// One task: the rows of a tile, `heads` query heads from first_head on, one KV head. A query is
// row of tile * heads + head.
template <class T>
class AttentionTask {
 public:
  AttentionTask(const AttentionCall& call, const Cache& cache, const RowTile& tile, char* scratch)
      : call_(call),
        metadata_(call.metadata),
        cache_(cache),
        tile_(tile),
        dim_(cache.head_dim),
        stride_(round_up(cache.head_dim, 16)),
        start_(metadata_.cu_seqlens_q[tile.segment]),
        context_(metadata_.context_lens[tile.segment]),
        rows_(tile.last - tile.first),
        kind_(metadata_.attention_modes[tile.segment]),
        own_(metadata_.cu_seqlens_q[tile.segment + 1] - start_),
        s_(task_scratch(scratch, stride_, own_)),
        positions_(metadata_.positions + start_) {
    if (kind_ == kShadow) mark_shadowed(tile_, start_, own_, s_.kin);
    if (kind_ == kContext) own_ = 0;
    if (kind_ == kBranches) take_branch();
  }

  void run(int kv_head, int first_head, int heads) {
    first_head_ = first_head;
    heads_ = heads;
    begin_queries();
    const int32_t* table =
        metadata_.block_tables + static_cast<size_t>(tile_.segment) * metadata_.max_blocks;
    int end = context_ + (kind_ == kCausal ? tile_.last - start_ : own_);
    if (kind_ == kTree) end = context_ / kStrip * kStrip;  // what the rows of a tile read alike
    int first = first_key() / kStrip * kStrip;
    for (; first < end; first += kStrip) {
      const int count = std::min(kStrip, end - first);
      Strip<T> strip = strip_at<T>(cache_, table, kv_head, first, count);
      if (is_branch_) move_branch(table, kv_head, &strip);
      score_strip(strip, s_, queries(), stride_, dim_);
      hide(strip);
      weigh(queries(), strip.blocks, s_);
      mix_strip(strip, s_, queries(), stride_, dim_);
    }
    for (int row = 0; kind_ == kTree && row < rows_; ++row) run_path(row, first, table, kv_head);
    write_out();
  }

 private:
  // The keys from `first` on that one row of a tree sees: the context's last ones and its path.
  void run_path(int row, int first, const int32_t* table, int kv_head) {
    const int length = take_path(tile_.first + row - start_);
    const TaskScratch s = s_.from(row * heads_, stride_);
    for (const int end = context_ + length; first < end; first += kStrip) {
      Strip<T> strip = strip_at<T>(cache_, table, kv_head, first, std::min(kStrip, end - first));
      move_branch(table, kv_head, &strip);
      score_strip(strip, s, heads_, stride_, dim_);
      hide(strip, s, {context_, length, kCausal, length - 1,
                           metadata_.positions[tile_.first + row], call_.window,
                           s_.mate_positions, nullptr});
      weigh(heads_, strip.blocks, s);
      mix_strip(strip, s, heads_, stride_, dim_);
    }
  }

  // Lists a row's ancestors and itself, from the first on; returns how many they are.
  int take_path(int row) {
    int length = 0;
    for (int at = row; at >= 0; at = metadata_.parents[start_ + at]) s_.mates[length++] = at;
    std::reverse(s_.mates, s_.mates + length);
    for (int i = 0; i < length; ++i) {
      s_.mate_positions[i] = metadata_.positions[start_ + s_.mates[i]];
    }
    return length;
  }

  // From here on the segment has no rows but those of the tile's branch, and they all see each
  // other.
  void take_branch() {
    const int branch = metadata_.parents[tile_.first];
    int count = 0;
    for (int row = start_; row < start_ + own_; ++row) {
      if (metadata_.parents[row] != branch) continue;
      s_.mates[count] = row - start_;
      s_.mate_positions[count++] = metadata_.positions[row];
    }
    is_branch_ = true;
    kind_ = kFull;
    own_ = count;
    positions_ = s_.mate_positions;
  }

  // Replaces the blocks of a strip that hold keys of the branch.
  void move_branch(const int32_t* table, int kv_head, Strip<T>* strip) {
    const int last = strip->first + strip->count;
    for (int b = 0; b < strip->blocks; ++b) {
      const int first = strip->first + b * kBlock;
      if (first + kBlock <= context_) continue;
      T* keys = reinterpret_cast<T*>(s_.keys) + static_cast<size_t>(b) * kBlock * dim_;
      T* values = reinterpret_cast<T*>(s_.values) + static_cast<size_t>(b) * kBlock * dim_;
      for (int key = first; key < std::min(first + kBlock, last); ++key) {
        const int at = key < context_ ? key : context_ + s_.mates[key - context_];
        const size_t page = page_at(cache_, table[at / kBlock], kv_head);
        const T* k = static_cast<const T*>(cache_.k) + page + at % kBlock;
        const T* v = static_cast<const T*>(cache_.v) + page + at % kBlock * dim_;
        for (int d = 0; d < dim_; ++d) keys[d * kBlock + key - first] = k[d * kBlock];
        std::copy_n(v, dim_, values + static_cast<size_t>(key - first) * dim_);
      }
      strip->keys[b] = keys;
      strip->values[b] = values;
    }
  }

  int queries() const { return rows_ * heads_; }

  size_t offset_of(int query) const {
    const size_t row = tile_.first + query / heads_;
    return (row * call_.heads + first_head_ + query % heads_) * dim_;
  }

  // The first key that any row of the tile sees.
  int first_key() const {
    if (!call_.window) return 0;
    const int32_t* first = metadata_.positions + tile_.first;
    const int earliest = *std::min_element(first, first + rows_);
    return std::clamp(earliest - call_.window + 1, 0, context_);
  }

  void begin_queries() {
    for (int i = 0; i < queries(); ++i) {
      const float* q = call_.q + offset_of(i);
      scale(q, call_.scale, s_.q + i * stride_, dim_);
      std::fill_n(s_.sums + i * stride_, stride_, 0.0f);
      s_.top[i] = -INFINITY;
      s_.mass[i] = 0.0f;
    }
  }

  // Takes the scores of keys that a row does not see down to minus infinity.
  void hide(const Strip<T>& strip) {
    for (int row = 0; row < rows_; ++row) {
      const Sight sight{context_,
                        own_,
                        kind_,
                        tile_.first + row - start_,
                        metadata_.positions[tile_.first + row],
                        call_.window,
                        positions_,
                        s_.kin + row * own_};
      hide(strip, s_.from(row * heads_, stride_), sight);
    }
  }

  void hide(const Strip<T>& strip, const TaskScratch& s, const Sight& sight) {
    if (sight.sees_all(strip.first, strip.blocks * kBlock)) return;
    for (int b = 0; b < strip.blocks; ++b) {
      const uint16_t bits = sight.bits(strip.first + b * kBlock);
      for (int h = 0; h < heads_; ++h) {
        float* scores = s.scores + h * kStrip + b * kBlock;
        store(scores, keep(bits, load(scores), splat(-INFINITY)));
      }
    }
  }

  void write_out() {
    for (int i = 0; i < queries(); ++i) {
      scale(s_.sums + i * stride_, 1.0f / s_.mass[i], call_.out + offset_of(i), dim_);
    }
  }

  const AttentionCall& call_;
  const AttentionMetadata& metadata_;
  const Cache& cache_;
  const RowTile& tile_;
  const int dim_, stride_, start_, context_, rows_;
  int kind_, own_;
  const TaskScratch s_;
  const int32_t* positions_;  // of the rows that are own_
  bool is_branch_ = false;
  int first_head_ = 0, heads_ = 0;
};

template <class T>
void attend_all(Team& team, const AttentionCall& call, const Cache& cache, char* own) {
  const int group = call.heads / cache.kv_heads;
  int task, end;
  while (team.claim(call.tile_count * cache.kv_heads, 1, &task, &end)) {
    const int back = call.tile_count - 1 - task / cache.kv_heads;  // late tiles read most: first
    const int kv_head = task % cache.kv_heads;
    AttentionTask<T> work(call, cache, call.tiles[back], own);
    for (int head = 0; head < group; head += kQueries) {
      work.run(kv_head, kv_head * group + head, std::min(kQueries, group - head));
    }
  }
}

void attention(Team& team, int, const AttentionCall& call, const Cache& cache, char* own) {
  if (cache.half) {
    attend_all<uint16_t>(team, call, cache, own);
  } else {
    attend_all<float>(team, call, cache, own);
  }
}
