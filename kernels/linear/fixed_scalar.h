// Products of int4fixed weights in plain C++, for any processor. Included inside a namespace, after
// fixed.h.

struct FixedSums {
  int32_t high[kPanel] = {}, low[kPanel] = {};
};

// sums += one block's weights times a row's 32 inputs.
inline void add_fixed_block(const uint8_t* block, const uint8_t* x, FixedSums& sums) {
  for (int column = 0; column < kPanel; ++column) {
    int16_t factor, offset;
    std::memcpy(&factor, block + 4 * column, 2);
    std::memcpy(&offset, block + 4 * column + 2, 2);
    for (int i = 0; i < kGroup; ++i) {
      const int place = 128 * (i / 8) + 64 * (column / 16) + 4 * (column % 16) + i % 4;
      const int both = block[Fixed::kQuants + place];
      const int weight = factor * (i % 8 < 4 ? both & 15 : both >> 4) + offset;
      sums.high[column] += static_cast<int8_t>(x[i]) * weight;
      sums.low[column] += static_cast<int8_t>(x[64 + i]) * weight;
    }
  }
}

inline void fixed_scalar_panels(const Matrix& m, int begin, int end, const Acts& acts, const Sink& sink) {
  for (int panel = begin; panel < end; ++panel) {
    const uint8_t* first = Fixed::panel(m, panel);
    for (int row = 0; row < acts.rows; ++row) {
      FixedSums sums;
      for (int g = 0; g < acts.groups; ++g) {
        add_fixed_block(Fixed::blocks(first) + g * Fixed::kBytes, fixed_row(acts, row) + fixed_place(g), sums);
      }
      float high[kPanel], low[kPanel];
      std::copy_n(sums.high, kPanel, high);
      std::copy_n(sums.low, kPanel, low);
      for (int v = 0; v < 2; ++v) {
        const Vec y = fixed_output(load(high + 16 * v), load(low + 16 * v),
                                   load(Fixed::column_steps(first) + 16 * v), acts.row_steps[row]);
        float* out = sink.out + static_cast<size_t>(row) * sink.stride;
        emit_vector(m, panel * kPanel + 16 * v, y, out, sink.accumulate);
      }
    }
  }
}

constexpr LinearKernel kFixedScalar{pack_fixed, fixed_scalar_panels};
