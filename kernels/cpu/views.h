// From tensors to the plain views of kernels.h, everything checked: the kernels trust their input.
#pragma once

#include <ATen/ATen.h>
#include <torch/csrc/utils/pybind.h>

#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels.h"

namespace plait {

const Kernels& active();  // of the instruction set in use

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

// Packed rows of the given width.
Acts carve_acts(Carver& carver, int rows, int width);

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

// A vector of n floats, or null for None.
const float* vector_of(const std::optional<at::Tensor>& tensor, int64_t n, const char* name);

Matrix matrix_of(const std::string& mode, int64_t n, int64_t k, const at::Tensor& panels,
                 const std::optional<at::Tensor>& bias);

// The cache of one layer, or of all: [layers,] num_blocks, kv_heads, head_dim, 16 and
// [layers,] num_blocks, kv_heads, 16, head_dim.
struct CacheView {
  char *k, *v;
  bool half;
  int64_t layers, num_blocks, kv_heads, head_dim;
  size_t layer_bytes;

  CacheView(const at::Tensor& k, const at::Tensor& v, bool layered);
};

// Holds the tensors of a Python `Segments` while its view is read.
class SegmentsView {
 public:
  SegmentsView(pybind11::handle segments, int64_t rows, int64_t num_blocks);

  const Segments& view() const { return view_; }
  // Cuts segments into tiles whose queries share their keys; group = query heads of a KV head.
  std::vector<RowTile> tiles(int group) const;
  void check_positions(int64_t limit) const;

 private:
  void check(int64_t num_blocks) const;
  void check_segment(int segment, int64_t num_blocks) const;

  std::vector<at::Tensor> held_;
  Segments view_;
};

}  // namespace plait
