// Memory of an attention task, and where the keys and values of a strip lie. Included inside a
// namespace, after the vectors.

// Memory of one task: up to kQueries queries, dim = head_dim rounded up to 16.
struct TaskScratch {
  int dim;
  float* q;              // [query][dim], scaled
  float* sums;           // [query][dim]: weighted values
  float *mass, *fresh;   // [query][16]: sums of weights by the key's place in its block, of a strip
  float* scores;         // [query][kStrip]: scores, then weights
  float* wide;           // keys, then values of a strip, widened
  float *top, *shrink;   // [slot]: running maximum, correction
  char *keys, *values;   // [block of strip][dim][16] and [block of strip][16][dim]: moved
  uint8_t* kin;          // [row][row of segment]: SHADOW, does the row see it?
  // BRANCHES and TREE, in the memory of kin: the segment's rows that belong to the branch or the
  // path, their positions.
  int32_t *mates, *mate_positions;

  // What belongs to the queries from `first` on.
  TaskScratch from(int first) const {
    TaskScratch rest = *this;
    rest.q += first * dim;
    rest.sums += first * dim;
    rest.top += first;
    rest.mass += first * 16;
    rest.fresh += first * 16;
    rest.scores += first * kStrip;
    rest.shrink += first;
    return rest;
  }
};

inline TaskScratch task_scratch(char* own, int dim, int rows) {
  TaskScratch s;
  s.dim = dim;
  s.q = reinterpret_cast<float*>(own);
  s.sums = s.q + kQueries * dim;
  s.mass = s.sums + kQueries * dim;
  s.fresh = s.mass + kQueries * 16;
  s.scores = s.fresh + kQueries * 16;
  s.wide = s.scores + kQueries * kStrip;
  s.top = s.wide + kStrip * dim;
  s.shrink = s.top + kSlots;
  s.keys = reinterpret_cast<char*>(s.shrink + kSlots);
  s.values = s.keys + sizeof(float) * kStrip * dim;
  s.kin = reinterpret_cast<uint8_t*>(s.values + sizeof(float) * kStrip * dim);
  s.mates = reinterpret_cast<int32_t*>(s.kin);
  s.mate_positions = s.mates + rows;
  return s;
}

// Keys first .. first + count - 1 of the sequence, where their blocks lie for one KV head.
template <class T>
struct Strip {
  const T* keys[kStrip / kBlock];    // [dim][16] each
  const T* values[kStrip / kBlock];  // [16][dim] each
  int first, count, blocks;
};

// How many keys of a strip, from its first on, some queries may see. The later query sees more.
struct Reach {
  int count;       // of the strip
  bool is_causal;  // without a window
  int seen;        // is_causal: by the first row, may be negative
  int heads;       // queries of a row

  int of(int query) const {
    return is_causal ? std::clamp(seen + query / heads, 0, count) : count;
  }
};

template <class T>
inline Strip<T> strip_at(const Cache& cache, const int32_t* table, int kv_head, int first,
                         int count) {
  Strip<T> strip;
  strip.first = first;
  strip.count = count;
  strip.blocks = ceil_div(count, kBlock);
  for (int b = 0; b < strip.blocks; ++b) {
    const size_t at = cache.page(table[first / kBlock + b], kv_head);
    strip.keys[b] = static_cast<const T*>(cache.k) + at;
    strip.values[b] = static_cast<const T*>(cache.v) + at;
  }
  return strip;
}

// Blocks of keys or values that are read after those that are multiplied now, asked for line by line
// meanwhile: in a pass over many contexts they come from memory, and the processor does not foresee a
// jump to the next block. If all were asked for at once, the thread would wait for them, and the
// memory then for the thread.
class Lines {
 public:
  Lines() = default;
  template <class T>
  Lines(const T* const* pages, int blocks, int head_dim)
      : left_(blocks ? head_dim * kBlock * static_cast<int>(sizeof(T)) / 64 : 0) {
    for (int b = 0; left_ && b < kBlocks; ++b) {
      at_[b] = reinterpret_cast<const char*>(pages[std::min(b, blocks - 1)]);
    }
  }

  // One line of every block.
  void ask() {
    if (left_ <= 0) return;
    --left_;
#pragma GCC unroll 4
    for (const char*& at : at_) {
      prefetch_far(at);
      at += 64;
    }
  }
  void ask_rest() {
    while (left_ > 0) ask();
  }

 private:
  static constexpr int kBlocks = kStrip / kBlock;
  const char* at_[kBlocks] = {};
  int left_ = 0;
};

// Of prompts, which multiply each key many times: nothing is asked for.
struct NoLines {
  void ask() {}
};

// Blocks of keys or values in fp32: when many queries read them, it pays to widen them once. Lists
// where they are.
inline void widen(const uint16_t* const* pages, int blocks, int head_dim, float* wide,
                  const float** at) {
  const int size = head_dim * kBlock;
  for (int b = 0; b < blocks; ++b, wide += size) {
    for (int i = 0; i < size; i += 16) store(wide + i, load(pages[b] + i));
    at[b] = wide;
  }
}
