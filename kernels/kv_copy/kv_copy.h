#pragma once

#include <ATen/ATen.h>

namespace plait {

// See kv_copy/__init__.py.
void copy_blocks(const at::Tensor& kv_k, const at::Tensor& kv_v, const at::Tensor& src,
                 const at::Tensor& dst);
void move_slots(const at::Tensor& kv_k, const at::Tensor& kv_v, const at::Tensor& src,
                const at::Tensor& dst);

}  // namespace plait
