// Rows of packed weights, unpacked: embeddings that are the head's. packing.py says how they lie.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstring>

#include "../cpu/kernels.h"

namespace plait {

template <class T>
T number_at(const uint8_t* bytes, size_t index) {
  T number;
  std::memcpy(&number, bytes + index * sizeof(T), sizeof(T));
  return number;
}

// Of pairs of k: [pair][vector][column 16][k of pair].
inline size_t among_pairs(int column, int k) {
  return 64 * (k / 2) + 32 * (column / 16) + 2 * (column % 16) + k % 2;
}

// Of pairs of k in planes: [pair][vector][k of pair][column 16].
inline size_t among_planes(int column, int k) {
  return 64 * (k / 2) + 32 * (column / 16) + 16 * (k % 2) + column % 16;
}

// 0 .. 15, of [k / 8][vector][column 16] times 4 bytes.
inline float nibble_at(const uint8_t* quants, int column, int k) {
  const uint8_t both = quants[128 * (k / 8) + 64 * (column / 16) + 4 * (column % 16) + k % 4];
  return static_cast<float>(k % 8 < 4 ? both & 15 : both >> 4);
}

// The 32 k of one column of a block of a panel.
inline void read_column(Mode mode, const uint8_t* panel, const uint8_t* block, int column, float* out) {
  const auto each = [&](const auto& number) {
    for (int k = 0; k < kGroup; ++k) out[k] = number(k);
  };
  switch (mode) {
    case Mode::fp32:
      return each([&](int k) { return number_at<float>(block, among_planes(column, k)); });
    case Mode::bf16:
      return each([&](int k) -> float {
        return number_at<at::BFloat16>(block, among_pairs(column, k));
      });
    case Mode::int8: {
      const float scale = number_at<at::Half>(block, column);
      return each([&](int k) {
        return number_at<int8_t>(block + 2 * kPanel, among_pairs(column, k)) * scale;
      });
    }
    case Mode::int4: {
      const float scale = number_at<at::Half>(block, column);
      const float minimum = number_at<at::Half>(block, kPanel + column);
      return each([&](int k) { return nibble_at(block + 4 * kPanel, column, k) * scale + minimum; });
    }
    case Mode::int4wide: {
      const float scale = number_at<float>(block, column);
      const float minimum = number_at<float>(block, kPanel + column);
      return each([&](int k) { return nibble_at(block + 8 * kPanel, column, k) * scale + minimum; });
    }
    case Mode::int4fixed: {
      const float step = number_at<float>(panel, column);
      const float factor = number_at<int16_t>(block, 2 * column);
      const float offset = number_at<int16_t>(block, 2 * column + 1);
      return each([&](int k) { return (nibble_at(block + 4 * kPanel, column, k) * factor + offset) * step; });
    }
  }
}

// out [k] = row `index` of the matrix.
inline void take_row(const Matrix& m, int64_t index, bool half, float* out) {
  const uint8_t* panel = m.panels + index / kPanel * m.panel_bytes();
  const uint8_t* block = panel + m.format().lead * m.format().block_bytes;
  const size_t bytes = m.format().block_bytes;
  float column[kGroup];
  for (int first = 0; first < m.k; first += kGroup, block += bytes) {
    read_column(m.mode, panel, block, static_cast<int>(index % kPanel), column);
    const int count = std::min(kGroup, m.k - first);
    for (int i = 0; i < count; ++i) {
      out[first + i] = half ? static_cast<float>(at::BFloat16(column[i])) : column[i];
    }
  }
}

}  // namespace plait
