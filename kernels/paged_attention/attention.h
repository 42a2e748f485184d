// Attention of a few rows of one segment, all query heads of one KV head at a time. Included inside
// a namespace, after the vectors.
//
// Keys are read in logical order, in strips of 64 that start at multiples of 64: the running
// softmax is corrected once a strip. A key that a row does not see has weight exactly 0, so the
// bits of a row do not depend on which other rows, or how many keys more, its task reads. Keys of a
// branch, or of the path to a row of a tree, are first moved to where they would be if there were no
// other branch or path.
//
// The order of all operations is the same for every instruction set, and so are the bits where the
// vectors have a fused multiply-add.

#include "sight.h"
#include "strips.h"
#include "products.h"
#include "softmax.h"

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
        start_(metadata_.cu_seqlens_q[tile.segment]),
        context_(metadata_.context_lens[tile.segment]),
        rows_(tile.last - tile.first),
        kind_(metadata_.attention_modes[tile.segment]),
        own_(metadata_.cu_seqlens_q[tile.segment + 1] - start_),
        s_(task_scratch(scratch, round_up(cache.head_dim, 16), own_)),
        positions_(metadata_.positions + start_) {
    if (kind_ == kShadow) mark_shadowed(tile_, start_, own_, s_.kin);
    if (kind_ == kContext) own_ = 0;
    if (kind_ == kBranches) take_branch();
  }

  // upcoming: what this thread reads after the task.
  void run(int kv_head, int first_head, int heads, const Strip<T>& upcoming) {
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
      const int next = first + kStrip;
      const bool is_last = next >= end;
      read(strip, is_last ? upcoming
                          : strip_at<T>(cache_, table, kv_head, next, std::min(kStrip, end - next)));
    }
    for (int row = 0; kind_ == kTree && row < rows_; ++row) run_path(row, first, table, kv_head);
    write_out();
  }

 private:
  // All rows of the tile read a strip, and ask for the next one.
  void read(const Strip<T>& strip, const Strip<T>& next) {
    const int seen = context_ + tile_.first - start_ + 1 - strip.first;
    const Reach reach{strip.count, kind_ == kCausal && !call_.window, seen, heads_};
    const Lines next_keys(next.keys, next.blocks, dim_), next_values(next.values, next.blocks, dim_);
    with_pages(strip.keys, strip.blocks, next_keys, [&](const auto* const* keys, auto& lines) {
      score_strip(keys, s_, queries(), reach, dim_, lines);
    });
    for (int row = 0; row < rows_; ++row) {
      hide(strip, s_.scores + row * heads_ * kStrip, sight_of(row));
    }
    weigh(queries(), reach, s_);
    with_pages(strip.values, strip.blocks, next_values, [&](const auto* const* values, auto& lines) {
      mix_strip(values, s_, queries(), reach, dim_, lines);
    });
  }

  // f(keys or values, lines to ask for), the former widened if many queries read them.
  template <class F>
  void with_pages(const T* const* pages, int blocks, Lines lines, const F& f) {
    NoLines none;
    if (is_decode()) {
      f(pages, lines);
      lines.ask_rest();
    } else if constexpr (std::is_same_v<T, float>) {
      f(pages, none);
    } else {
      const float* at[kStrip / kBlock];
      widen(pages, blocks, dim_, s_.wide, at);
      f(at, none);
    }
  }

  // The keys from `first` on that one row of a tree sees: the context's last ones and its path.
  void run_path(int row, int first, const int32_t* table, int kv_head) {
    const int length = take_path(tile_.first + row - start_);
    const TaskScratch s = s_.from(row * heads_);
    for (const int end = context_ + length; first < end; first += kStrip) {
      Strip<T> strip = strip_at<T>(cache_, table, kv_head, first, std::min(kStrip, end - first));
      move_branch(table, kv_head, &strip);
      const Reach reach{strip.count, false, 0, heads_};
      NoLines none;
      score_strip(strip.keys, s, heads_, reach, dim_, none);
      hide(strip, s.scores,
           {context_, length, kCausal, length - 1, metadata_.positions[tile_.first + row],
            call_.window, s_.mate_positions, nullptr});
      weigh(heads_, reach, s);
      mix_strip(strip.values, s, heads_, reach, dim_, none);
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
        const size_t page = cache_.page(table[at / kBlock], kv_head);
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
  // Whether reading keys takes longer than multiplying them.
  bool is_decode() const { return queries() <= 2 * kSub; }

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
    std::fill_n(s_.top, kSlots, 0.0f);
    for (int i = 0; i < queries(); ++i) {
      const float* q = call_.q + offset_of(i);
      scale(q, call_.scale * kLog2E, s_.q + i * s_.dim, dim_);
      std::fill_n(s_.sums + i * s_.dim, s_.dim, 0.0f);
      s_.top[i] = -INFINITY;
      store(s_.mass + i * 16, zero());
    }
  }

  // Of a row of the tile.
  Sight sight_of(int row) const {
    return {context_,
            own_,
            kind_,
            tile_.first + row - start_,
            metadata_.positions[tile_.first + row],
            call_.window,
            positions_,
            s_.kin + row * own_};
  }

  // Takes the scores of keys that a row does not see down to minus infinity.
  void hide(const Strip<T>& strip, float* scores, const Sight& sight) {
    if (sight.sees_all(strip.first, strip.blocks * kBlock)) return;
    for (int b = 0; b < strip.blocks; ++b) {
      const uint16_t bits = sight.bits(strip.first + b * kBlock);
      if (bits == 0xffff) continue;
      for (int h = 0; h < heads_; ++h) {
        float* at = scores + h * kStrip + b * kBlock;
        store(at, keep(bits, load(at), splat(-INFINITY)));
      }
    }
  }

  void write_out() {
    for (int i = 0; i < queries(); ++i) {
      scale(s_.sums + i * s_.dim, 1.0f / sum(load(s_.mass + i * 16)), call_.out + offset_of(i), dim_);
    }
  }

  const AttentionCall& call_;
  const AttentionMetadata& metadata_;
  const Cache& cache_;
  const RowTile& tile_;
  const int dim_, start_, context_, rows_;
  int kind_, own_;
  const TaskScratch s_;
  const int32_t* positions_;  // of the rows that are own_
  bool is_branch_ = false;
  int first_head_ = 0, heads_ = 0;
};

// The tile and KV head of task 0, 1, ... of a call. Those of one segment read the same keys, which
// may fit a core's own cache for one head: head by head.
inline std::pair<const RowTile*, int> task_at(const AttentionCall& call, int kv_heads, int task) {
  const auto [first, last] = std::equal_range(
      call.tiles, call.tiles + call.tile_count, call.tiles[task / kv_heads],
      [](const RowTile& tile, const RowTile& other) { return tile.segment < other.segment; });
  const int among = task - static_cast<int>(first - call.tiles) * kv_heads;
  const int tiles = static_cast<int>(last - first);
  return {first + among % tiles, among / tiles};
}

// The first keys of a task, empty if there is none.
template <class T>
Strip<T> start_of(const AttentionCall& call, const Cache& cache, int task) {
  if (call.window || task >= call.tile_count * cache.kv_heads) return {};
  const auto [tile, kv_head] = task_at(call, cache.kv_heads, task);
  const AttentionMetadata& metadata = call.metadata;
  const int32_t* table =
      metadata.block_tables + static_cast<size_t>(tile->segment) * metadata.max_blocks;
  const int count = std::min(kStrip, metadata.context_lens[tile->segment]);
  return strip_at<T>(cache, table, kv_head, 0, count);
}

template <class T>
void attend_all(Team& team, const AttentionCall& call, const Cache& cache, char* own) {
  const int group = call.heads / cache.kv_heads;
  team.share(call.tile_count * cache.kv_heads, 1, [&](int task, int) {
    const auto [tile, kv_head] = task_at(call, cache.kv_heads, task);
    AttentionTask<T> work(call, cache, *tile, own);
    const Strip<T> upcoming = start_of<T>(call, cache, task + 1);
    for (int head = 0; head < group; head += kQueries) {
      work.run(kv_head, kv_head * group + head, std::min(kQueries, group - head), upcoming);
    }
  });
}

void attention(Team& team, const AttentionCall& call, const Cache& cache, char* own) {
  if (cache.half) {
    attend_all<uint16_t>(team, call, cache, own);
  } else {
    attend_all<float>(team, call, cache, own);
  }
}
