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

inline void copy_units(char* base, size_t unit, const CopyPairs& pairs, std::vector<char>& held) {
  const size_t count = pairs.src.size();
  held.resize(count * unit);
  for (size_t i = 0; i < count; ++i) {
    std::memcpy(held.data() + i * unit, base + pairs.src[i] * unit, unit);
  }
  for (size_t i = 0; i < count; ++i) {
    std::memcpy(base + pairs.dst[i] * unit, held.data() + i * unit, unit);
  }
}

// Keys [block, head, dim, offset] and values [block, head, offset, dim] of one layer as T.
template <class T>
struct Slots {
  T *k, *v;
  int64_t kv_heads, head_dim;

  template <class F>
  void each(int64_t slot, const F& f) const {
    const int64_t block = slot / kBlock, offset = slot % kBlock;
    for (int64_t head = 0; head < kv_heads; ++head) {
      const int64_t at = (block * kv_heads + head) * head_dim * kBlock;
      for (int64_t d = 0; d < head_dim; ++d) {
        f(k + at + d * kBlock + offset, v + at + offset * head_dim + d);
      }
    }
  }
};

template <class T>
void move_layer(const Slots<T>& slots, const CopyPairs& pairs, std::vector<T>& held) {
  held.clear();
  for (const int64_t slot : pairs.src) {
    slots.each(slot, [&](const T* k, const T* v) {
      held.push_back(*k);
      held.push_back(*v);
    });
  }
  const T* next = held.data();
  for (const int64_t slot : pairs.dst) {
    slots.each(slot, [&](T* k, T* v) {
      *k = *next++;
      *v = *next++;
    });
  }
}

template <class T>
void move_all(const CacheView& cache, const CopyPairs& pairs) {
  std::vector<T> held;
  for (int64_t layer = 0; layer < cache.layers; ++layer) {
    const size_t at = layer * cache.layer_bytes;
    const Slots<T> slots{reinterpret_cast<T*>(cache.k + at), reinterpret_cast<T*>(cache.v + at),
                         cache.kv_heads, cache.head_dim};
    move_layer(slots, pairs, held);
  }
}

inline void copy_blocks(const at::Tensor& kv_k, const at::Tensor& kv_v, const at::Tensor& src,
                 const at::Tensor& dst) {
  const CacheView cache(kv_k, kv_v, true);
  const CopyPairs pairs = pairs_of(src, dst, cache.num_blocks);
  std::vector<char> held;
  for (int64_t layer = 0; layer < cache.layers; ++layer) {
    const size_t at = layer * cache.layer_bytes, unit = cache.layer_bytes / cache.num_blocks;
    copy_units(cache.k + at, unit, pairs, held);
    copy_units(cache.v + at, unit, pairs, held);
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
