// The compiled form of decoder_stack.DecoderStack: views of all weights, and scratch kept between calls.

#pragma once

#include "../cpu/views.h"
#include "stack.h"

namespace py = pybind11;

namespace plait {

class CompiledStack {
 public:
  explicit CompiledStack(py::handle config) {
    const auto number = [&](const char* name) { return config.attr(name).cast<int>(); };
    shape_.hidden = number("hidden");
    shape_.heads = number("heads");
    shape_.kv_heads = number("kv_heads");
    shape_.head_dim = number("head_dim");
    shape_.ffn = number("ffn");
    shape_.eps = config.attr("norm_eps").cast<float>();
    shape_.scale = config.attr("scale").cast<float>();
    const at::Tensor cos = hold(config.attr("cos")), sin = hold(config.attr("sin"));
    shape_.cos = data_of<float>(cos, 2, "cos");
    shape_.sin = data_of<float>(sin, 2, "sin");
    shape_.half_rotary = static_cast<int>(cos.size(1));
    max_positions_ = cos.size(0);
    TORCH_CHECK_VALUE(cos.sizes() == sin.sizes() && 2 * shape_.half_rotary <= shape_.head_dim,
                      "cos ", cos.sizes(), " and sin ", sin.sizes(), " do not fit the heads");
    TORCH_CHECK_VALUE(shape_.heads % shape_.kv_heads == 0,
                      "KV heads must serve equally many heads");
  }

  void add_layer(py::handle layer) {
    const int q = shape_.heads * shape_.head_dim, k = shape_.kv_heads * shape_.head_dim;
    Layer view{};
    view.attn_norm = gain(layer, "attn_norm", shape_.hidden);
    view.ffn_norm = gain(layer, "ffn_norm", shape_.hidden);
    view.q_norm = gain(layer, "q_norm", shape_.head_dim);
    view.k_norm = gain(layer, "k_norm", shape_.head_dim);
    view.q = matrix(layer, "q", q, shape_.hidden);
    view.k = matrix(layer, "k", k, shape_.hidden);
    view.v = matrix(layer, "v", k, shape_.hidden);
    view.o = matrix(layer, "o", shape_.hidden, q);
    view.gate = matrix(layer, "gate", shape_.ffn, shape_.hidden);
    view.up = matrix(layer, "up", shape_.ffn, shape_.hidden);
    view.down = matrix(layer, "down", shape_.hidden, shape_.ffn);
    view.window = layer.attr("window").cast<int>();
    view.rotary = layer.attr("rotary").cast<bool>();
    layers_.push_back(view);
  }

  void forward(const at::Tensor& x, py::handle metadata, const at::Tensor& k_cache,
               const at::Tensor& v_cache, int64_t first_layer, int64_t last_layer,
               const std::optional<at::Tensor>& read) {
    StackCall call{};
    call.x = data_of<float>(x, 2, "x");
    TORCH_CHECK_VALUE(x.size(1) == shape_.hidden, "x ", x.sizes(), " has not the hidden size ",
                      shape_.hidden);
    const int64_t layers = static_cast<int64_t>(layers_.size());
    TORCH_CHECK_INDEX(0 <= first_layer && last_layer <= layers, "no layers ", first_layer, " to ",
                      last_layer, " of ", layers);
    const CacheView cache(k_cache, v_cache, true);
    TORCH_CHECK_VALUE(cache.layers == layers && cache.kv_heads == shape_.kv_heads &&
                          cache.head_dim == shape_.head_dim,
                      "the cache ", k_cache.sizes(), " is not of this model");
    const AttentionMetadataView view(metadata, x.size(0), cache.num_blocks, layers);
    view.check_positions(max_positions_);
    std::vector<int64_t> rows;
    call.reads_all = !read;
    if (read) {
      rows = sorted_rows(*read, x.size(0));
      call.read = rows.data();
      call.read_count = static_cast<int>(rows.size());
    }

    const py::gil_scoped_release release;
    const std::vector<RowTile> tiles = view.tiles(shape_.heads / shape_.kv_heads);
    call.shape = &shape_;
    call.layers = layers_.data();
    call.first = static_cast<int>(first_layer);
    call.last = static_cast<int>(last_layer);
    call.cache = cache.layer(0);
    call.layer_stride = cache.layer_stride;
    call.metadata = view.view();
    call.tiles = tiles.data();
    call.tile_count = static_cast<int>(tiles.size());
    const std::vector<RowTile> read_tiles = tiles_with(call, tiles);
    call.read_tiles = read_tiles.data();
    call.read_tile_count = static_cast<int>(read_tiles.size());
    const int threads = threads_for(1.0 * call.metadata.rows * weights_of_a_layer());
    const size_t bytes = carve(nullptr, call, threads);
    carve(buffer_.reserve(bytes), call, threads);
    const Operations& operations = active();
    Team::run(threads, [&](Team& team) { StackRun(team, operations, call).run(); });
  }

 private:
  // Rows in ascending order, each once.
  static std::vector<int64_t> sorted_rows(const at::Tensor& read, int64_t rows) {
    const int64_t* first = data_of<int64_t>(read, 1, "read");
    std::vector<int64_t> found(first, first + read.numel());
    std::sort(found.begin(), found.end());
    found.erase(std::unique(found.begin(), found.end()), found.end());
    TORCH_CHECK_INDEX(found.empty() || (found.front() >= 0 && found.back() < rows), "read ", read,
                      " is not of ", rows, " rows");
    return found;
  }

  // The tiles that hold a row that is read, cut to these.
  static std::vector<RowTile> tiles_with(const StackCall& call, const std::vector<RowTile>& all) {
    std::vector<RowTile> found;
    const int64_t *at = call.read, *end = at + call.read_count;
    for (const RowTile& tile : all) {
      const int64_t* first = std::lower_bound(at, end, int64_t{tile.first});
      const int64_t* last = std::lower_bound(first, end, int64_t{tile.last});
      if (first == last) continue;
      found.push_back({tile.segment, static_cast<int>(*first), static_cast<int>(last[-1]) + 1});
    }
    return found;
  }

  at::Tensor hold(const py::object& tensor) {
    held_.push_back(tensor.cast<at::Tensor>());
    return held_.back();
  }

  std::optional<at::Tensor> optional(py::handle layer, const std::string& name) {
    const py::object value = layer.attr(name.c_str());
    if (value.is_none()) return std::nullopt;
    return hold(value);
  }

  const float* gain(py::handle layer, const char* name, int n) {
    return vector_of(optional(layer, name), n, name);
  }

  Matrix matrix(py::handle layer, const std::string& name, int n, int k) {
    const py::object weight = layer.attr(name.c_str());
    TORCH_CHECK_VALUE(weight.attr("n").cast<int>() == n && weight.attr("k").cast<int>() == k,
                      "weight ", name, " must be [", n, ", ", k, "]");
    return matrix_of(weight.attr("mode").cast<std::string>(), n, k, hold(weight.attr("values")),
                     optional(layer, name + "_bias"));
  }

  double weights_of_a_layer() const {
    const double attention = 2.0 * (shape_.heads + shape_.kv_heads) * shape_.head_dim;
    return shape_.hidden * (attention + 3.0 * shape_.ffn);
  }

  size_t carve(char* memory, StackCall& call, int threads) const {
    const size_t rows = call.metadata.rows;
    const size_t q = shape_.heads * shape_.head_dim, k = shape_.kv_heads * shape_.head_dim;
    const int widest = std::max({shape_.hidden, shape_.ffn, static_cast<int>(q)});
    Carver carver(memory);
    Scratch& scratch = call.scratch;
    for (Acts& acts : scratch.acts) acts = carve_acts(carver, static_cast<int>(rows), widest);
    scratch.q = carver.take<float>(rows * q);
    scratch.k = carver.take<float>(rows * k);
    scratch.v = carver.take<float>(rows * k);
    scratch.read = carver.take<float>(rows * q);
    scratch.gate = carver.take<float>(rows * shape_.ffn);
    scratch.up = carver.take<float>(rows * shape_.ffn);
    scratch.x = carver.take<float>(static_cast<size_t>(call.read_count) * shape_.hidden);
    scratch.own_bytes = own_bytes(widest, shape_.head_dim, static_cast<int>(rows));
    scratch.own = carver.take<char>(scratch.own_bytes * threads);
    return carver.used();
  }

  Shape shape_{};
  int64_t max_positions_ = 0;
  std::vector<Layer> layers_;
  std::vector<at::Tensor> held_;
  Buffer buffer_;
};

// Adds the class to the module.
inline void bind_stack(py::module_& m) {
  py::class_<CompiledStack>(m, "CompiledStack")
      .def(py::init<py::handle>())
      .def("add_layer", &CompiledStack::add_layer)
      .def("forward", &CompiledStack::forward);
}

}  // namespace plait
