// Copies inside the KV cache: all sources of a layer are read before the first write.

#pragma once

#include <cstring>
#include <vector>

#include "../cpu/views.h"

namespace plait {

struct CopyPairs {
  std::vector<int64_t> src, dst;
};

inline CopyPairs pairs_of(const at::Tensor& src, const at::Tensor& dst, int64_t limit) {
  TORCH_CHECK_VALUE(src.dim() == 1 && src.sizes() == dst.sizes(), "src and dst must be [n]");
  const auto list = [&](const at::Tensor& tensor) {
    const at::Tensor wide = tensor.to(at::kCPU, at::kLong).contiguous();
    const int64_t* data = wide.data_ptr<int64_t>();
    for (int64_t i = 0; i < wide.numel(); ++i) {
      TORCH_CHECK_INDEX(data[i] >= 0 && data[i] < limit, "no place ", data[i], " in the cache");
    }
    return std::vector<int64_t>(data, data + wide.numel());
  };
  return {list(src), list(dst)};
}

// Copies one layer's pages of blocks.
inline void copy_pages(char* base, const CacheView& cache, const CopyPairs& pairs,
                       std::vector<char>& held) {
  const size_t count = pairs.src.size(), size = cache.page_bytes;
  held.resize(count * size);
  for (size_t i = 0; i < count; ++i) {
    std::memcpy(held.data() + i * size, base + pairs.src[i] * cache.block_stride, size);
  }
  for (size_t i = 0; i < count; ++i) {
    std::memcpy(base + pairs.dst[i] * cache.block_stride, held.data() + i * size, size);
  }
}

// f(key, value) for the numbers of one slot of a layer, keys [block, head, dim, offset] and values
// [block, head, offset, dim].
template <class T, class F>
void each_number(const Cache& cache, int64_t slot, const F& f) {
  const int64_t dim = cache.head_dim, offset = slot % kBlock;
  for (int head = 0; head < cache.kv_heads; ++head) {
    const size_t page = cache.page(slot / kBlock, head);
    T* keys = static_cast<T*>(cache.k) + page + offset;
    T* values = static_cast<T*>(cache.v) + page + offset * dim;
    for (int64_t d = 0; d < dim; ++d) f(keys + d * kBlock, values + d);
  }
}

template <class T>
void move_layer(const Cache& cache, const CopyPairs& pairs, std::vector<T>& held) {
  held.clear();
  for (const int64_t slot : pairs.src) {
    each_number<T>(cache, slot, [&](const T* k, const T* v) {
      held.push_back(*k);
      held.push_back(*v);
    });
  }
  const T* next = held.data();
  for (const int64_t slot : pairs.dst) {
    each_number<T>(cache, slot, [&](T* k, T* v) {
      *k = *next++;
      *v = *next++;
    });
  }
}

template <class T>
void move_all(const CacheView& cache, const CopyPairs& pairs) {
  std::vector<T> held;
  for (int64_t layer = 0; layer < cache.layers; ++layer) {
    move_layer(cache.layer(layer), pairs, held);
  }
}

inline void copy_blocks(const at::Tensor& kv_k, const at::Tensor& kv_v, const at::Tensor& src,
                 const at::Tensor& dst) {
  const CacheView cache(kv_k, kv_v, true);
  const CopyPairs pairs = pairs_of(src, dst, cache.num_blocks);
  std::vector<char> held;
  for (int64_t layer = 0; layer < cache.layers; ++layer) {
    const size_t at = layer * cache.layer_stride;
    copy_pages(cache.k + at, cache, pairs, held);
    copy_pages(cache.v + at, cache, pairs, held);
  }
}

inline void move_slots(const at::Tensor& kv_k, const at::Tensor& kv_v, const at::Tensor& src,
                const at::Tensor& dst) {
  const CacheView cache(kv_k, kv_v, true);
  const CopyPairs pairs = pairs_of(src, dst, cache.num_blocks * kBlock);
  if (cache.half) {
    move_all<uint16_t>(cache, pairs);
  } else {
    move_all<float>(cache, pairs);
  }
}

}  // namespace plait
