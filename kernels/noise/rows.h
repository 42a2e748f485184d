// What the kernels over rows of scores share: argument checks and searches for the best score.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <vector>

#include "elementary.h"

namespace plait {

inline void check_scores(const at::Tensor& scores) {
  TORCH_CHECK(scores.dim() == 2 && scores.scalar_type() == at::kFloat,
              "scores must be [n, vocab] float32");
  TORCH_CHECK(scores.size(1) <= 1 || scores.stride(1) == 1, "rows of scores must be contiguous");
}

// The data of a contiguous [length] tensor of this type.
template <typename T>
const T* vector_data(const at::Tensor& tensor, int64_t length, const char* name) {
  TORCH_CHECK(tensor.numel() == length && tensor.is_contiguous() &&
                  tensor.scalar_type() == c10::CppTypeToScalarType<T>::value,
              name, " must be a contiguous [", length, "] tensor of ",
              c10::CppTypeToScalarType<T>::value);
  return tensor.const_data_ptr<T>();
}

// The row of scores that each of `length` results reads; without `rows`, result i reads row i.
inline std::vector<int64_t> source_rows(const std::optional<at::Tensor>& rows, int64_t length,
                                        int64_t num_rows) {
  std::vector<int64_t> source(length);
  if (!rows) {
    TORCH_CHECK(length == num_rows, num_rows, " rows of scores for ", length, " results");
    std::iota(source.begin(), source.end(), 0);
    return source;
  }
  std::copy_n(vector_data<int64_t>(*rows, length, "rows"), length, source.begin());
  for (const int64_t row : source) TORCH_CHECK(0 <= row && row < num_rows, "no such row: ", row);
  return source;
}

// The highest order_of(x); INT32_MIN if no number is among them.
PLAIT_CLONES static int32_t highest_order(const float* __restrict x, int64_t n) {
  int32_t highest = INT32_MIN;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t order = order_of(x[i]);
    highest = order > highest ? order : highest;
  }
  return highest;
}

// The lowest index of x with this order; n if there is none.
[[maybe_unused]] PLAIT_CLONES static int64_t first_with(const float* __restrict x, int64_t n,
                                                        int32_t order) {
  const auto none = static_cast<int32_t>(n);
  int32_t first = none;
  for (int32_t i = 0; i < none; ++i) {
    const int32_t index = order_of(x[i]) == order ? i : none;
    first = index < first ? index : first;
  }
  return first;
}

// A number that sorts best first: higher score, then lower token.
PLAIT_INLINE uint64_t rank_word(float score, int64_t token) {
  const uint32_t rising = static_cast<uint32_t>(order_of(score)) ^ 0x80000000u;
  return (static_cast<uint64_t>(~rising) << 32) | static_cast<uint32_t>(token);
}

PLAIT_INLINE int64_t token_of(uint64_t rank_word) { return rank_word & 0xffffffffu; }
PLAIT_INLINE int32_t order_in(uint64_t rank_word) {
  return static_cast<int32_t>(~static_cast<uint32_t>(rank_word >> 32) ^ 0x80000000u);
}

}  // namespace plait
