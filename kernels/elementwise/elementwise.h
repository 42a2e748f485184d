// What stands between the matrix products of a layer, one row at a time. Included inside a
// namespace, after the vectors.

// out = x / sqrt(mean(x^2) + eps) * gain.
inline void rms_norm(const float* x, const float* gain, float* out, int n, float eps) {
  Vec squares = zero();
  int i = 0;
  for (; i + 16 <= n; i += 16) {
    const Vec v = load(x + i);
    squares = fma(v, v, squares);
  }
  if (i < n) {
    const Vec v = load_first(x + i, n - i);
    squares = fma(v, v, squares);
  }
  const Vec factor = splat(1.0f / std::sqrt(sum(squares) / n + eps));
  for (i = 0; i + 16 <= n; i += 16) store(out + i, mul(mul(load(x + i), factor), load(gain + i)));
  if (i < n) {
    const Vec v = mul(load_first(x + i, n - i), factor);
    store_first(out + i, mul(v, load_first(gain + i, n - i)), n - i);
  }
}

// out = x * factor.
inline void scale(const float* x, float factor, float* out, int n) {
  int i = 0;
  for (; i + 16 <= n; i += 16) store(out + i, mul(load(x + i), splat(factor)));
  if (i < n) store_first(out + i, mul(load_first(x + i, n - i), splat(factor)), n - i);
}

// Turns dims i and i + half of one head by the angle i, in place.
inline void rotate(float* x, const float* cos, const float* sin, int half) {
  for (int i = 0; i < half; ++i) {
    const float first = x[i], second = x[i + half];
    x[i] = first * cos[i] - second * sin[i];
    x[i + half] = second * cos[i] + first * sin[i];
  }
}

// gate = silu(gate) * up.
inline void silu_mul(float* gate, const float* up, int n) {
  int i = 0;
  for (; i + 16 <= n; i += 16) store(gate + i, mul(silu(load(gate + i)), load(up + i)));
  if (i < n) {
    const Vec y = mul(silu(load_first(gate + i, n - i)), load_first(up + i, n - i));
    store_first(gate + i, y, n - i);
  }
}

inline void put(float* out, float value) { *out = value; }
inline void put(uint16_t* out, float value) {
  uint16_t rounded[16];
  store(rounded, splat(value));
  *out = rounded[0];
}

// Writes one row's keys and values [kv_heads, head_dim] into its slot.
template <class T>
inline void write_kv(const float* k, const float* v, const Cache& cache, int64_t slot) {
  const int dim = cache.head_dim, offset = static_cast<int>(slot % kBlock);
  for (int head = 0; head < cache.kv_heads; ++head) {
    const size_t page = cache.page(slot / kBlock, head);
    T* keys = static_cast<T*>(cache.k) + page + offset;
    T* values = static_cast<T*>(cache.v) + page + offset * dim;
    const float* key = k + head * dim;
    const float* value = v + head * dim;
    int d = 0;
    for (; d + 16 <= dim; d += 16) {
      T rounded[16];
      store(rounded, load(key + d));
      for (int i = 0; i < 16; ++i) keys[(d + i) * kBlock] = rounded[i];
      store(values + d, load(value + d));
    }
    for (; d < dim; ++d) {
      put(keys + d * kBlock, key[d]);
      put(values + d, value[d]);
    }
  }
}

void write_row_kv(const float* k, const float* v, const Cache& cache, int64_t slot) {
  if (cache.half) {
    write_kv<uint16_t>(k, v, cache, slot);
  } else {
    write_kv<float>(k, v, cache, slot);
  }
}

constexpr RowKernels kRowKernels{rms_norm, silu_mul, rotate, write_row_kv};
