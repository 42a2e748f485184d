// Packs the segments of a pass into the tensors of AttentionMetadata, in one call; segments.py is the
// reference. The lists of Python are read as they are.
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "../cpu/views.h"

namespace plait {

// The items of a Python sequence, held while they are read.
class Items {
 public:
  explicit Items(const pybind11::object& sequence)
      : held_(pybind11::reinterpret_steal<pybind11::object>(
            PySequence_Fast(sequence.ptr(), "a segment's fields are sequences"))) {
    if (!held_) throw pybind11::error_already_set();
  }

  int64_t size() const { return PySequence_Fast_GET_SIZE(held_.ptr()); }

  int64_t at(int64_t i) const {
    const int64_t value = PyLong_AsLongLong(PySequence_Fast_GET_ITEM(held_.ptr(), i));
    if (value == -1 && PyErr_Occurred()) throw pybind11::error_already_set();
    return value;
  }

 private:
  pybind11::object held_;
};

// One AttentionSegment of Python.
struct SegmentView {
  Items token_ids, block_ids;
  std::optional<Items> parents, positions;
  int64_t context_len, mode;

  explicit SegmentView(pybind11::handle segment)
      : token_ids(segment.attr("token_ids")),
        block_ids(segment.attr("block_ids")),
        context_len(segment.attr("context_len").cast<int64_t>()),
        mode(segment.attr("mode").cast<int64_t>()) {
    const auto optional = [&](const char* name, std::optional<Items>& items) {
      const pybind11::object value = segment.attr(name);
      if (value.is_none()) return;
      items.emplace(value);
      TORCH_CHECK_VALUE(items->size() == rows(), name, " must have ", rows(), " entries, not ",
                        items->size());
    };
    optional("parents", parents);
    optional("positions", positions);
    TORCH_CHECK_VALUE(positions || mode != kContext, "rows refreshed in place have positions");
    TORCH_CHECK_VALUE(num_blocks() <= block_ids.size(), "a segment of ", stop(),
                      " tokens has only ", block_ids.size(), " blocks");
  }

  int64_t rows() const { return token_ids.size(); }
  int64_t stop() const { return context_len + (mode == kContext ? 0 : rows()); }
  int64_t num_blocks() const { return (stop() + kBlock - 1) / kBlock; }
  int64_t position(int64_t row) const { return positions ? positions->at(row) : context_len + row; }

  int64_t slot(int64_t row) const {
    const int64_t at = mode == kContext ? position(row) : context_len + row;
    TORCH_CHECK_INDEX(at >= 0 && at / kBlock < block_ids.size(), "position ", at, " has no block");
    return block_ids.at(at / kBlock) * kBlock + at % kBlock;
  }
};

// Returns token_ids, then the fields of AttentionMetadata in their order.
inline std::vector<at::Tensor> pack_segments(const std::vector<pybind11::object>& segments) {
  std::vector<SegmentView> views;
  views.reserve(segments.size());
  int64_t rows = 0, max_blocks = 0;
  for (const pybind11::object& segment : segments) {
    views.emplace_back(segment);
    rows += views.back().rows();
    max_blocks = std::max(max_blocks, views.back().num_blocks());
  }
  const auto count = static_cast<int64_t>(views.size());
  const auto ints = [](int64_t size) { return at::empty({size}, at::kInt); };
  const auto longs = [](int64_t size) { return at::empty({size}, at::kLong); };
  const std::vector<at::Tensor> packed{
      longs(rows), ints(count + 1), ints(count), at::zeros({count, max_blocks}, at::kInt),
      ints(count), ints(rows),      ints(rows),  longs(rows)};
  auto* tokens = packed[0].data_ptr<int64_t>();
  auto *starts = packed[1].data_ptr<int32_t>(), *contexts = packed[2].data_ptr<int32_t>();
  auto *table = packed[3].data_ptr<int32_t>(), *modes = packed[4].data_ptr<int32_t>();
  auto *parents = packed[5].data_ptr<int32_t>(), *positions = packed[6].data_ptr<int32_t>();
  auto* slots = packed[7].data_ptr<int64_t>();
  int32_t start = 0;
  *starts++ = start;
  for (const SegmentView& view : views) {
    for (int64_t i = 0; i < view.num_blocks(); ++i) {
      table[i] = static_cast<int32_t>(view.block_ids.at(i));
    }
    for (int64_t row = 0; row < view.rows(); ++row) {
      *tokens++ = view.token_ids.at(row);
      *parents++ = static_cast<int32_t>(view.parents ? view.parents->at(row) : -1);
      *positions++ = static_cast<int32_t>(view.position(row));
      *slots++ = view.slot(row);
    }
    table += max_blocks;
    *starts++ = start += static_cast<int32_t>(view.rows());
    *contexts++ = static_cast<int32_t>(view.context_len);
    *modes++ = static_cast<int32_t>(view.mode);
  }
  return packed;
}

}  // namespace plait
