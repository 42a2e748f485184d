// From tensors to the plain views of kernels.h, everything checked: the kernels trust their input.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "choice.h"
#include "kernels.h"

namespace plait {

// Threads for a stage of so many multiplications: small ones are done before a second thread wakes.
inline int threads_for(double multiplications) {
  constexpr double kEach = 1 << 18;  // some 10 us of one core
  return static_cast<int>(std::clamp<double>(multiplications / kEach, 1, at::get_num_threads()));
}

// 64-byte aligned memory that only grows; what was in it is lost when it does.
class Buffer {
 public:
  char* reserve(size_t bytes);

 private:
  std::unique_ptr<char, decltype(&std::free)> memory_{nullptr, &std::free};
  size_t size_ = 0;
};

// Cuts one buffer into aligned parts: first measured without memory, then handed out.
class Carver {
 public:
  explicit Carver(char* memory) : memory_(memory) {}

  template <class T>
  T* take(size_t count) {
    char* part = memory_ ? memory_ + used_ : nullptr;
    used_ += (count * sizeof(T) + 63) / 64 * 64;
    return reinterpret_cast<T*>(part);
  }
  size_t used() const { return used_; }

 private:
  char* memory_;
  size_t used_ = 0;
};

// The data of a contiguous CPU tensor of type T with `dims` dimensions.
template <class T>
T* data_of(const at::Tensor& tensor, int dims, const char* name) {
  TORCH_CHECK_VALUE(tensor.device().is_cpu() && tensor.is_contiguous() && tensor.dim() == dims &&
                        tensor.scalar_type() == c10::CppTypeToScalarType<T>::value,
                    name, " must be a contiguous CPU tensor of ", dims, " dimensions and type ",
                    c10::CppTypeToScalarType<T>::value, ", not ", tensor.toString(), " ",
                    tensor.sizes());
  return tensor.data_ptr<T>();
}

// The cache of one layer, or of all: [layers,] num_blocks, kv_heads, head_dim, 16 and
// [layers,] num_blocks, kv_heads, 16, head_dim. The last three lie together, keys and values alike.
struct CacheView {
  char *k, *v;
  bool half;
  int64_t layers, num_blocks, kv_heads, head_dim;
  size_t layer_stride, block_stride, page_bytes;  // in bytes; a page is a block of one layer

  CacheView(const at::Tensor& k, const at::Tensor& v, bool layered);

  Cache layer(int64_t index) const {
    const size_t at = index * layer_stride, size = half ? sizeof(uint16_t) : sizeof(float);
    return {k + at, v + at, half, static_cast<int>(kv_heads), static_cast<int>(head_dim),
            block_stride / size};
  }
};

// Holds the tensors of a Python `AttentionMetadata` while its view is read. Block tables and slots
// may have one more dimension, of `layers`.
class AttentionMetadataView {
 public:
  AttentionMetadataView(pybind11::handle metadata, int64_t rows, int64_t num_blocks,
                        int64_t layers);

  const AttentionMetadata& view() const { return view_; }
  // Cuts segments into tiles whose queries share their keys; group = query heads of a KV head. A
  // tile lies in one branch.
  std::vector<RowTile> tiles(int group) const;
  void check_positions(int64_t limit) const;

 private:
  template <class T>
  const T* by_layer(const char* name, int dims, int64_t first_size, int64_t layers,
                    size_t* stride);
  void check(int64_t num_blocks, int64_t layers) const;
  void check_segment(int segment) const;
  void check_blocks(const AttentionMetadata& layer, int segment, int64_t num_blocks) const;

  std::vector<at::Tensor> held_;
  AttentionMetadata view_;
};

inline char* Buffer::reserve(size_t bytes) {
  if (bytes > size_) {
    bytes = (bytes + 63) / 64 * 64;
    memory_.reset();
    size_ = 0;
    memory_.reset(static_cast<char*>(std::aligned_alloc(64, bytes)));
    if (!memory_) throw std::bad_alloc();
    size_ = bytes;
  }
  return memory_.get();
}

// Packed rows of the given width; kernels may take up to 16 at once.
inline Acts carve_acts(Carver& carver, int count, int width) {
  const size_t rows = round_up(count, 16);
  const size_t groups = ceil_div(width, kGroup);
  Acts acts{};
  acts.values = carver.take<float>(rows * groups * kGroup);
  acts.steps = carver.take<float>(rows * groups);
  acts.sums = carver.take<float>(rows * groups);
  acts.row_steps = carver.take<float>(rows);
  return acts;
}

// A vector of n floats, or null for None.
inline const float* vector_of(const std::optional<at::Tensor>& tensor, int64_t n,
                              const char* name) {
  if (!tensor) return nullptr;
  const float* data = data_of<float>(*tensor, 1, name);
  TORCH_CHECK_VALUE(tensor->size(0) == n, name, " must have ", n, " elements");
  return data;
}

inline Matrix matrix_of(const std::string& mode, int64_t n, int64_t k, const at::Tensor& panels,
                 const std::optional<at::Tensor>& bias) {
  for (int i = 0; i < kModes; ++i) {
    const WeightFormat& format = kFormats[i];
    if (mode != format.name) continue;
    const uint8_t* data = data_of<uint8_t>(panels, 3, "panels");
    const Matrix matrix{static_cast<Mode>(i), static_cast<int>(n), static_cast<int>(k), data,
                        vector_of(bias, n, "bias")};
    TORCH_CHECK_VALUE(panels.size(0) == matrix.panel_count() && panels.size(1) == matrix.panel_blocks() &&
                          panels.size(2) == format.block_bytes,
                      "panels ", panels.sizes(), " do not hold ", mode, " [", n, ", ", k, "]");
    return matrix;
  }
  TORCH_CHECK_VALUE(false, "no weight mode ", mode);
}

// A tensor of fp32 or bf16 whose last three dimensions are contiguous.
inline char* pages_of(const at::Tensor& tensor, int dims, const char* name) {
  const auto type = tensor.scalar_type();
  TORCH_CHECK_VALUE(tensor.device().is_cpu() && tensor.dim() == dims &&
                        (type == at::kFloat || type == at::kBFloat16),
                    name, " must be a CPU tensor of ", dims, " dimensions, fp32 or bf16, not ",
                    tensor.toString(), " ", tensor.sizes());
  int64_t stride = 1;
  for (int i = dims - 1; i >= dims - 3; --i) {
    TORCH_CHECK_VALUE(tensor.stride(i) == stride, name, "'s pages must be contiguous");
    stride *= tensor.size(i);
  }
  return static_cast<char*>(tensor.data_ptr());
}

inline CacheView::CacheView(const at::Tensor& keys, const at::Tensor& values, bool layered) {
  const int lead = layered ? 1 : 0;
  k = pages_of(keys, 4 + lead, "k_cache");
  v = pages_of(values, 4 + lead, "v_cache");
  half = keys.scalar_type() == at::kBFloat16;
  layers = layered ? keys.size(0) : 1;
  num_blocks = keys.size(lead);
  kv_heads = keys.size(lead + 1);
  head_dim = keys.size(lead + 2);
  const size_t size = keys.element_size();
  page_bytes = kv_heads * head_dim * kBlock * size;
  block_stride = keys.stride(lead) * size;
  layer_stride = layered ? keys.stride(0) * size : 0;
  TORCH_CHECK_VALUE(values.scalar_type() == keys.scalar_type() &&
                        values.stride(lead) == keys.stride(lead) &&
                        values.stride(0) == keys.stride(0),
                    "k_cache and v_cache do not lie alike");
  std::vector<int64_t> want{num_blocks, kv_heads, kBlock, head_dim};
  if (layered) want.insert(want.begin(), layers);
  TORCH_CHECK_VALUE(keys.size(lead + 3) == kBlock && values.sizes() == at::IntArrayRef(want),
                    "k_cache ", keys.sizes(), " and v_cache ", values.sizes(), " do not fit");
}

// A tensor of `dims` dimensions, or of one more for tables that differ from layer to layer.
template <class T>
const T* AttentionMetadataView::by_layer(const char* name, int dims, int64_t first_size,
                                         int64_t layers, size_t* stride) {
  const at::Tensor& tensor = held_.back();
  const int own = tensor.dim() == dims + 1 ? 1 : 0;
  const T* data = data_of<T>(tensor, dims + own, name);
  TORCH_CHECK_VALUE(!own || tensor.size(0) == layers, name, " are of ", tensor.size(0),
                    " layers, not ", layers);
  TORCH_CHECK_VALUE(tensor.size(own) == first_size, name, " must have ", first_size,
                    " entries, not ", tensor.size(own));
  *stride = own ? tensor.stride(0) : 0;
  return data;
}

inline AttentionMetadataView::AttentionMetadataView(pybind11::handle metadata, int64_t rows,
                                                    int64_t num_blocks, int64_t layers) {
  const auto ints = [&](const char* name, int dims) -> const int32_t* {
    held_.push_back(metadata.attr(name).cast<at::Tensor>());
    return data_of<int32_t>(held_.back(), dims, name);
  };
  view_.cu_seqlens_q = ints("cu_seqlens_q", 1);
  view_.count = static_cast<int>(held_.back().size(0)) - 1;
  view_.rows = static_cast<int>(rows);
  const auto sized = [&](int64_t want, const char* name) {
    TORCH_CHECK_VALUE(held_.back().size(0) == want, name, " must have ", want, " entries, not ",
                      held_.back().size(0));
  };
  view_.context_lens = ints("context_lens", 1);
  sized(view_.count, "context_lens");
  view_.attention_modes = ints("attention_modes", 1);
  sized(view_.count, "attention_modes");
  held_.push_back(metadata.attr("block_tables").cast<at::Tensor>());
  view_.block_tables =
      by_layer<int32_t>("block_tables", 2, view_.count, layers, &view_.table_stride);
  view_.max_blocks = static_cast<int>(held_.back().size(-1));
  view_.parents = ints("parents", 1);
  sized(rows, "parents");
  view_.positions = ints("positions", 1);
  sized(rows, "positions");
  held_.push_back(metadata.attr("slot_mapping").cast<at::Tensor>());
  view_.slot_mapping = by_layer<int64_t>("slot_mapping", 1, rows, layers, &view_.slot_stride);
  check(num_blocks, layers);
}

inline void AttentionMetadataView::check(int64_t num_blocks, int64_t layers) const {
  TORCH_CHECK_VALUE(view_.count >= 0 && view_.cu_seqlens_q[0] == 0 &&
                        view_.cu_seqlens_q[view_.count] == view_.rows,
                    "cu_seqlens_q must run from 0 to the number of rows, ", view_.rows);
  for (int i = 0; i < view_.count; ++i) check_segment(i);
  const int table_layers = view_.table_stride ? static_cast<int>(layers) : 1;
  for (int l = 0; l < table_layers; ++l) {
    for (int i = 0; i < view_.count; ++i) check_blocks(view_.at_layer(l), i, num_blocks);
  }
  const int64_t slots = int64_t{view_.rows} * (view_.slot_stride ? layers : 1);
  for (int64_t i = 0; i < slots; ++i) {
    const int64_t slot = view_.slot_mapping[i];
    TORCH_CHECK_INDEX(slot >= 0 && slot < num_blocks * kBlock, "row ", i % view_.rows,
                      " has no slot ", slot);
  }
}

inline void AttentionMetadataView::check_blocks(const AttentionMetadata& layer, int segment,
                                                int64_t num_blocks) const {
  const int own = layer.attention_modes[segment] == kContext
                      ? 0
                      : layer.cu_seqlens_q[segment + 1] - layer.cu_seqlens_q[segment];
  const int64_t length = int64_t{layer.context_lens[segment]} + own;
  const int32_t* table = layer.block_tables + int64_t{segment} * layer.max_blocks;
  for (int64_t i = 0; i * kBlock < length; ++i) {
    TORCH_CHECK_INDEX(table[i] >= 0 && table[i] < num_blocks, "segment ", segment,
                      " has no block ", table[i]);
  }
}

inline void AttentionMetadataView::check_segment(int segment) const {
  const int start = view_.cu_seqlens_q[segment], own = view_.cu_seqlens_q[segment + 1] - start;
  const int kind = view_.attention_modes[segment];
  const int64_t length = int64_t{view_.context_lens[segment]} + (kind == kContext ? 0 : own);
  TORCH_CHECK_VALUE(own >= 0 && view_.context_lens[segment] >= 0, "segment ", segment,
                    " has a negative length");
  TORCH_CHECK_VALUE(kind >= kCausal && kind <= kContext, "no kind of attention ", kind);
  TORCH_CHECK_INDEX(length <= int64_t{view_.max_blocks} * kBlock, "segment ", segment, " ends at ",
                    length, ", beyond its block table");
  TORCH_CHECK_VALUE(kind != kShadow || own % 2 == 0, "segment ", segment,
                    " has an odd number of rows, so they have no shadows");
  TORCH_CHECK_VALUE(kind != kContext || own == 0 || length > 0, "segment ", segment,
                    " has rows that see nothing");
  for (int i = 0; kind == kTree && i < own; ++i) {
    const int parent = view_.parents[start + i];
    TORCH_CHECK_INDEX(parent >= -1 && parent < i, "tree row ", i, " cannot have parent ", parent);
  }
}

inline void AttentionMetadataView::check_positions(int64_t limit) const {
  for (int row = 0; row < view_.rows; ++row) {
    TORCH_CHECK_INDEX(view_.positions[row] >= 0 && view_.positions[row] < limit, "row ", row,
                      " has position ", view_.positions[row], ", the rotary tables end at ", limit);
  }
}

inline std::vector<RowTile> AttentionMetadataView::tiles(int group) const {
  const int most = std::max(1, kQueries / group);
  std::vector<RowTile> tiles;
  for (int i = 0; i < view_.count; ++i) {
    const int end = view_.cu_seqlens_q[i + 1];
    for (int first = view_.cu_seqlens_q[i], last; first < end; first = last) {
      last = std::min(first + most, end);
      if (view_.attention_modes[i] == kBranches) {
        const int32_t* branch = view_.parents;
        for (int row = first; row < last; ++row) {
          if (branch[row] != branch[first]) last = row;
        }
      }
      tiles.push_back({i, first, last});
    }
  }
  return tiles;
}

}  // namespace plait
