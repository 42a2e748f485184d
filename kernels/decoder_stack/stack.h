// All layers of a decoder in one parallel region.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "../linear/linear.h"
#include "../paged_attention/upcoming.h"

namespace plait {

// One thread's view of a pass.
class StackRun {
 public:
  StackRun(Team& team, const Operations& operations, const StackCall& call)
      : team_(team),
        operations_(operations),
        call_(call),
        shape_(*call.shape),
        scratch_(call.scratch),
        own_(call.scratch.own + team.thread() * call.scratch.own_bytes),
        x_(call.x),
        rows_(call.metadata.rows) {}

  void run() {
    foresee(call_.first);
    for (int i = call_.first; i < call_.last; ++i) {
      const Layer& layer = call_.layers[i];
      metadata_ = call_.metadata.at_layer(i);
      const Cache cache = cache_of(i);
      write_keys(layer, cache);
      if (!call_.reads_all && i == call_.last - 1) return finish_read(layer, cache);
      attend(cache, layer.window, call_.tiles, call_.tile_count);
      each_row([&](int row) { pack_read(layer.o, row, row); });
      foresee(i + 1);
      add_read(layer);
      feed_forward(layer);
    }
  }

 private:
  Cache cache_of(int layer) const {
    Cache cache = call_.cache;
    cache.k = static_cast<char*>(cache.k) + layer * call_.layer_stride;
    cache.v = static_cast<char*>(cache.v) + layer * call_.layer_stride;
    return cache;
  }

  // From now on products ask for the keys and values that this thread will read in a layer. Few rows
  // wait for their weights, which shall come first.
  void foresee(int layer) {
    upcoming_ = {};
    if (layer == call_.last || rows_ < kLeastForeseen) return;
    const int heads = shape_.kv_heads, tasks = call_.tile_count * heads;
    const RowTile* first = call_.tiles + team_.first_of(tasks) / heads;
    const RowTile* last = call_.tiles + ceil_div(team_.end_of(tasks), heads);
    upcoming_ = {call_.metadata.at_layer(layer), cache_of(layer), first, last};
  }

  // What is left of the last layer once all keys are written, for the rows that are read.
  void finish_read(const Layer& layer, const Cache& cache) {
    if (call_.read_count == 0) return;
    attend(cache, layer.window, call_.read_tiles, call_.read_tile_count);
    x_ = scratch_.x;
    rows_ = call_.read_count;
    const auto place = [this](int row) { return static_cast<int>(call_.read[row]); };
    each_row([&](int row) {
      copy_row(call_.x, place(row), x_, row);
      pack_read(layer.o, place(row), row);
    });
    add_read(layer);
    feed_forward(layer);
    each_row([&](int row) { copy_row(x_, row, call_.x, place(row)); });
  }

  void copy_row(const float* from, int row, float* to, int place) const {
    const size_t width = shape_.hidden;
    std::copy_n(from + row * width, width, to + place * width);
  }

  // Queries, keys and values of all rows; the latter go into the cache.
  void write_keys(const Layer& layer, const Cache& cache) {
    const int q_width = shape_.heads * shape_.head_dim, k_width = shape_.kv_heads * shape_.head_dim;
    norm(layer.attn_norm, {&layer.q, &layer.k, &layer.v});
    products({{&layer.q, {scratch_.q, q_width, false}},
              {&layer.k, {scratch_.k, k_width, false}},
              {&layer.v, {scratch_.v, k_width, false}}},
             {&layer.o});
    each_row([&](int row) { place(layer, cache, row); });
  }

  void attend(const Cache& cache, int window, const RowTile* tiles, int count) {
    const AttentionCall call{scratch_.q, scratch_.read, shape_.heads, shape_.scale,
                             window,     metadata_,     tiles,        count};
    operations_.attention(team_, call, cache, own_);
  }

  void add_read(const Layer& layer) {
    products({{&layer.o, {x_, shape_.hidden, true}}}, {&layer.gate, &layer.up});
  }

  void feed_forward(const Layer& layer) {
    norm(layer.ffn_norm, {&layer.gate, &layer.up});
    products({{&layer.gate, {scratch_.gate, shape_.ffn, false}},
              {&layer.up, {scratch_.up, shape_.ffn, false}}},
             {&layer.down});
    const Acts acts = acts_for(layer.down);
    each_row([&](int row) {
      float* gate = scratch_.gate + static_cast<size_t>(row) * shape_.ffn;
      const float* up = scratch_.up + static_cast<size_t>(row) * shape_.ffn;
      operations_.rows.silu_mul(gate, up, shape_.ffn);
      kernel(layer.down).pack(gate, shape_.ffn, row, acts);
    });
    const Layer& next = *(&layer + (&layer + 1 < call_.layers + call_.last));
    products({{&layer.down, {x_, shape_.hidden, true}}}, {&next.q, &next.k, &next.v});
  }

  struct Product {
    const Matrix* matrix;
    Sink sink;
  };

  // The packed acts times several matrices, whose panels are shared out together; `next` are those of
  // the product after this one.
  void products(std::initializer_list<Product> all, std::initializer_list<const Matrix*> next) {
    int panels = 0;
    for (const Product& product : all) panels += product.matrix->panel_count();
    look_ahead(next);
    share(panels, kClaim, [&](int begin, int end) { multiply(all, begin, end); });
  }

  void multiply(std::initializer_list<Product> all, int begin, int end) {
    int base = 0;
    for (const Product& product : all) {
      const Matrix& m = *product.matrix;
      const int first = std::max(begin - base, 0), last = std::min(end - base, m.panel_count());
      if (first < last) kernel(m).panels(m, first, last, acts_for(m), product.sink);
      base += m.panel_count();
    }
  }

  // From now on this thread asks for weights of some matrices while it waits: those that it will
  // multiply first.
  void look_ahead(std::initializer_list<const Matrix*> matrices) {
    ahead_ = ahead_end_ = nullptr;
    if (rows_ > kMostAheadRows) return;
    int panels = 0;
    for (const Matrix* m : matrices) panels += m->panel_count();
    int first = team_.first_of(panels);
    for (const Matrix* m : matrices) {
      if (first < m->panel_count()) {
        const size_t bytes = m->panel_bytes();
        ahead_ = m->panels + first * bytes;
        ahead_end_ = ahead_ + std::min(std::min(kClaim, m->panel_count() - first) * bytes, kMostAhead);
        return;
      }
      first -= m->panel_count();
    }
  }

  template <class Work>
  void share(int total, int most, const Work& work) {
    team_.share(total, most, work, [this] {
      if (ahead_ >= ahead_end_) return Team::relax();
      for (int i = 0; i < 4; ++i, ahead_ += 64) prefetch_far(ahead_);
    });
  }

  // Norms, rotates and stores one row's keys and values; norms and rotates its queries.
  void place(const Layer& layer, const Cache& cache, int row) {
    const size_t dim = shape_.head_dim;
    float* q = scratch_.q + row * shape_.heads * dim;
    float* k = scratch_.k + row * shape_.kv_heads * dim;
    const float* v = scratch_.v + row * shape_.kv_heads * dim;
    turn(layer, layer.q_norm, q, shape_.heads, row);
    turn(layer, layer.k_norm, k, shape_.kv_heads, row);
    const int64_t slot = metadata_.slot_mapping[row];
    operations_.rows.write_kv(k, v, cache, slot);
  }

  void turn(const Layer& layer, const float* gain, float* x, int heads, int row) {
    const size_t at = static_cast<size_t>(call_.metadata.positions[row]) * shape_.half_rotary;
    for (int head = 0; head < heads; ++head, x += shape_.head_dim) {
      if (gain) operations_.rows.rms_norm(x, gain, x, shape_.head_dim, shape_.eps);
      if (!layer.rotary) continue;
      operations_.rows.rotate(x, shape_.cos + at, shape_.sin + at, shape_.half_rotary);
    }
  }

  // Norms all rows for the matrices that read them, packed once for every mode.
  void norm(const float* gain, std::initializer_list<const Matrix*> readers) {
    float* normed = reinterpret_cast<float*>(own_);
    each_row([&](int row) {
      const float* x = x_ + static_cast<size_t>(row) * shape_.hidden;
      operations_.rows.rms_norm(x, gain, normed, shape_.hidden, shape_.eps);
      int packed = 0;
      for (const Matrix* reader : readers) {
        const int own = 1 << static_cast<int>(reader->mode);
        if (!(packed & own)) kernel(*reader).pack(normed, shape_.hidden, row, acts_for(*reader));
        packed |= own;
      }
    });
  }

  // Packs what attention read for the row at a place.
  void pack_read(const Matrix& next, int place, int row) {
    const float* x = scratch_.read + static_cast<size_t>(place) * next.k;
    kernel(next).pack(x, next.k, row, acts_for(next));
  }

  const LinearKernel& kernel(const Matrix& m) const { return operations_.linear(m.mode, rows_); }

  Acts acts_for(const Matrix& m) {
    Acts acts = scratch_.acts[static_cast<int>(m.mode)];
    acts.rows = rows_;
    acts.upcoming = upcoming_.is_done() ? nullptr : &upcoming_;
    acts.groups = m.groups();
    return acts;
  }

  template <class F>
  void each_row(const F& f) {
    share(rows_, 64, [&](int begin, int end) {
      for (int row = begin; row < end; ++row) f(row);
    });
  }

  Team& team_;
  const Operations& operations_;
  const StackCall& call_;
  const Shape& shape_;
  const Scratch& scratch_;
  static constexpr size_t kMostAhead = 1 << 18;
  static constexpr int kMostAheadRows = 32;
  static constexpr int kLeastForeseen = 9;  // above a tile: its weights are multiplied more than once

  const uint8_t *ahead_ = nullptr, *ahead_end_ = nullptr;
  AttentionMetadata metadata_{};  // of the layer that runs
  UpcomingKeys upcoming_;
  char* own_;
  float* x_;  // [rows, hidden]
  int rows_;
};

}  // namespace plait
