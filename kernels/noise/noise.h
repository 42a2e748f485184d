// Draws for callers that hold keys and temperatures as numbers; noise.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <vector>

namespace plait {

using NoiseRow = std::array<int64_t, 3>;  // seed, stream, position

// gumbel_argmax of every row of scores.
std::vector<int64_t> draw_rows(const at::Tensor& scores, const std::vector<NoiseRow>& keys,
                               const std::vector<float>& temperatures);

}  // namespace plait
