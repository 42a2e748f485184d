// What all products of rows with weight panels share. Included inside a namespace, after the
// vectors.

// Asks for one block's bytes, some blocks ahead of the stream of weights.
template <int kBytes>
inline void prefetch_ahead(const uint8_t* block) {
  constexpr int kAhead = 4096;
#pragma GCC unroll 64
  for (int i = 0; i < kBytes; i += 64) prefetch(block + kAhead + i);
}

// Asks for some keys, with every block of weights.
inline void ask_for_keys(const Acts& acts) {
  constexpr int kLines = 6;
  if (acts.upcoming) acts.upcoming->ask(kLines);
}

template <class W>
inline const uint8_t* panel_at(const Matrix& m, int panel) {
  return m.panels + static_cast<size_t>(panel) * m.groups() * W::kBytes;
}

template <int R>
inline void clear(Vec (&acc)[R][2]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = zero();
}

// Where a thread unpacks the weights of a panel; it only grows.
inline uint8_t* weight_memory(size_t bytes) {
  thread_local std::unique_ptr<uint8_t, decltype(&std::free)> memory(nullptr, &std::free);
  thread_local size_t size = 0;
  if (bytes > size) {
    memory.reset(static_cast<uint8_t*>(std::aligned_alloc(64, bytes)));
    if (!memory) throw std::bad_alloc();
    size = bytes;
  }
  return memory.get();
}

// Columns `column` .. `column` + 15 of one row, as far as the matrix has them.
inline void emit_vector(const Matrix& m, int column, Vec y, float* out, bool accumulate) {
  const int columns = std::min(16, m.n - column);
  if (columns <= 0) return;
  if (columns == 16) {
    if (m.bias) y = add(y, load(m.bias + column));
    if (accumulate) y = add(y, load(out + column));
    store(out + column, y);
  } else {
    if (m.bias) y = add(y, load_first(m.bias + column, columns));
    if (accumulate) y = add(y, load_first(out + column, columns));
    store_first(out + column, y, columns);
  }
}

template <int R>
inline void emit(const Matrix& m, int panel, int row, const Vec (&total)[R][2], const Sink& sink) {
  for (int r = 0; r < R; ++r) {
    float* out = sink.out + static_cast<size_t>(row + r) * sink.stride;
    for (int v = 0; v < 2; ++v) {
      emit_vector(m, panel * kPanel + 16 * v, total[r][v], out, sink.accumulate);
    }
  }
}

// Calls f(std::integral_constant<int, rows>()) for 1 to kMost rows.
template <int kMost, int R = 1, class F>
inline void with_rows(int rows, const F& f) {
  if constexpr (R < kMost) {
    if (rows != R) return with_rows<kMost, R + 1>(rows, f);
  }
  f(std::integral_constant<int, R>());
}

// Rows that go through all panels before others do: of inputs and weights, half of a core's L2 cache.
template <int kMost>
constexpr int kChunkRows = 128 / kMost * kMost;

// Calls tile(panel, row, size) for every tile, in an order that finds its inputs in the cache.
template <int kMost, class F>
inline void each_tile(int begin, int end, int rows, const F& tile) {
  constexpr int kRows = kChunkRows<kMost>;
  for (int first = 0; first < rows; first += kRows) {
    const int last = std::min(first + kRows, rows);
    for (int panel = begin; panel < end; ++panel) {
      for (int row = first; row < last; row += kMost) {
        with_rows<kMost>(std::min(kMost, last - row), [&](auto size) { tile(panel, row, size); });
      }
    }
  }
}
