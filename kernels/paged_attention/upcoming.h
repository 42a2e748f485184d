// The keys and values that a thread reads in its next attention.
#pragma once

#include "../cpu/kernels.h"

namespace plait {

// Asked for bit by bit while the thread multiplies: products of many rows leave memory idle, and the
// contexts of many sequences fit no cache.
class UpcomingKeys {
 public:
  UpcomingKeys() = default;
  // Those that were cached before this pass, of the segments of tiles first .. last - 1 in one layer.
  UpcomingKeys(const AttentionMetadata& metadata, const Cache& cache, const RowTile* first,
               const RowTile* last)
      : metadata_(metadata),
        cache_(cache),
        tile_(first),
        last_(last),
        page_bytes_(size_t{kBlock} * cache.kv_heads * cache.head_dim * element()) {
    begin_page();
  }

  bool is_done() const { return at_ == end_; }

  // Always inline: around a call, a kernel would have to save all of its vectors.
  [[gnu::always_inline]] void ask(int lines) {
    for (; lines > 0 && !is_done(); --lines) {
      prefetch_far(at_);
      at_ += 64;
      if (at_ >= end_) next_page();
    }
  }

 private:
  size_t element() const { return cache_.half ? 2 : 4; }

  // The keys of a block are followed by its values.
  [[gnu::noinline, gnu::cold]] void next_page() {
    is_values_ = !is_values_;
    block_ += !is_values_;
    begin_page();
  }

  void begin_page() {
    at_ = end_ = nullptr;
    while (tile_ != last_ && block_ * kBlock >= metadata_.context_lens[tile_->segment]) next_segment();
    if (tile_ == last_) return;
    const size_t row = static_cast<size_t>(tile_->segment) * metadata_.max_blocks;
    const int32_t block = metadata_.block_tables[row + block_];
    const void* all = is_values_ ? cache_.v : cache_.k;
    at_ = static_cast<const char*>(all) + cache_.page(block, 0) * element();
    end_ = at_ + page_bytes_;
  }

  void next_segment() {
    for (const int done = tile_->segment; tile_ != last_ && tile_->segment == done;) ++tile_;
    block_ = 0;
  }

  AttentionMetadata metadata_{};
  Cache cache_{};
  const RowTile *tile_ = nullptr, *last_ = nullptr;
  size_t page_bytes_ = 0;
  const char *at_ = nullptr, *end_ = nullptr;
  int block_ = 0;
  bool is_values_ = false;
};

}  // namespace plait
