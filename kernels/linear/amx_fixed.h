// Products of int4fixed weights on AMX tiles. Included inside a namespace, after fixed.h and amx.h.
//
// W = 256 * high + low is unpacked into tiles of 64 k x 16 columns, so nothing is left to scale but the
// sums over all k: four products of bytes (both parts of the inputs with both of the weights), each with a
// tile of sums of its own. While tiles are in use other instructions run at half their rate (seen on a
// Granite Rapids), so a product of many rows takes a quarter of the time that sums by groups would.

constexpr int kUnpackAhead = 4;  // stores of weights must have left the core before tiles read them
constexpr int kFixedPair = 2 * kTileBytes;  // high and low bytes of 64 k x 16 columns

// The tiles of one group of one vector of columns: half of `out`, high bytes first.
inline void unpack_fixed(const uint8_t* block, int v, uint8_t* out) {
  const __m512i nibble = _mm512_set1_epi16(15), low = _mm512_set1_epi16(0xff);
  const __m512i pairs = _mm512_loadu_si512(block + 64 * v);
  const __m512i factors = _mm512_shuffle_epi8(pairs, _mm512_set1_epi32(0x01000100) +
                                                         _mm512_broadcast_i32x4(_mm_setr_epi32(
                                                             0, 0x04040404, 0x08080808, 0x0c0c0c0c)));
  const __m512i offsets = _mm512_shuffle_epi8(pairs, _mm512_set1_epi32(0x03020302) +
                                                         _mm512_broadcast_i32x4(_mm_setr_epi32(
                                                             0, 0x04040404, 0x08080808, 0x0c0c0c0c)));
  const auto weights = [&](__m512i q) {
    return _mm512_add_epi16(_mm512_mullo_epi16(q, factors), offsets);
  };
  const auto put = [&](uint8_t* at, __m512i even, __m512i odd) {  // 4 k of each column
    _mm512_store_si512(at, _mm512_ternarylogic_epi32(low, _mm512_srli_epi16(even, 8), odd, 0xca));
    _mm512_store_si512(at + kTileBytes, _mm512_ternarylogic_epi32(low, even, _mm512_slli_epi16(odd, 8), 0xca));
  };
#pragma GCC unroll 4
  for (int eight = 0; eight < 4; ++eight) {
    const __m512i all = _mm512_loadu_si512(block + Fixed::kQuants + 128 * eight + 64 * v);
    put(out + 128 * eight, weights(_mm512_and_si512(all, nibble)),
        weights(_mm512_and_si512(_mm512_srli_epi16(all, 8), nibble)));
    put(out + 128 * eight + 64, weights(_mm512_and_si512(_mm512_srli_epi16(all, 4), nibble)),
        weights(_mm512_srli_epi16(all, 12)));
  }
}

// One vector of a panel's columns: its weights as tiles, unpacked by the first rows that read them.
struct FixedColumn {
  const uint8_t* blocks;  // packed
  int groups, v;
  uint8_t* tiles;

  uint8_t* at(int pair) const { return tiles + static_cast<size_t>(pair) * kFixedPair; }

  void unpack(int pair) const {
    for (int half = 0; half < 2; ++half) {
      const int g = 2 * pair + half;
      if (g > groups - 1) {
        if (g == groups && half == 1) clear_half(at(pair) + 512);
        return;
      }
      const uint8_t* block = blocks + static_cast<size_t>(g) * Fixed::kBytes;
      if (v == 0) prefetch_ahead<Fixed::kBytes>(block);
      unpack_fixed(block, v, at(pair) + 512 * half);
    }
  }

 private:
  static void clear_half(uint8_t* out) {
    std::memset(out, 0, 512);
    std::memset(out + kTileBytes, 0, 512);
  }
};

// sums [4][rows][16] of rows with a column: high and low inputs times high weights, then times low ones.
inline void multiply_fixed(const FixedColumn& column, const uint8_t* x, size_t stride, bool fresh,
                           int32_t* sums) {
  const int pairs = ceil_div(column.groups, 2);
  clear_tile<0>();
  clear_tile<1>();
  clear_tile<2>();
  clear_tile<3>();
  for (int p = 0; fresh && p < std::min(kUnpackAhead, pairs); ++p) column.unpack(p);
  for (int p = 0; p < pairs; ++p) {
    if (fresh && p + kUnpackAhead < pairs) column.unpack(p + kUnpackAhead);
    const uint8_t* weights = column.at(p);
    load_tile<4>(x + 128 * p, stride);
    load_tile<6>(weights, 64);
    dot_signed<0, 4, 6>();
    load_tile<5>(x + 128 * p + 64, stride);
    dot_signed<1, 5, 6>();
    load_tile<7>(weights + kTileBytes, 64);
    dot_signed_unsigned<2, 4, 7>();
    dot_signed_unsigned<3, 5, 7>();
  }
  store_tile<0>(sums, 64);
  store_tile<1>(sums + 256, 64);
  store_tile<2>(sums + 512, 64);
  store_tile<3>(sums + 768, 64);
}

struct alignas(64) FixedShapes : TileShapes {
  explicit FixedShapes(int tile_rows) : TileShapes(tile_rows, 64, 16) {
    for (int i = 0; i < 8; ++i) {
      row_bytes[i] = 64;
      rows[i] = static_cast<uint8_t>(i < 6 ? tile_rows : 16);
    }
  }
};

inline void emit_fixed(const Matrix& m, int column, Vec column_steps, const Acts& acts, int row,
                       const int32_t* sums, const Sink& sink) {
  const int count = std::min(kTileRows, acts.rows - row);
  for (int r = 0; r < count; ++r) {
    const auto whole = [&](int high, int low) {
      const __m512i upper = _mm512_slli_epi32(_mm512_load_si512(sums + 256 * high + 16 * r), 8);
      return _mm512_cvtepi32_ps(_mm512_add_epi32(upper, _mm512_load_si512(sums + 256 * low + 16 * r)));
    };
    const Vec y = fixed_output(whole(0, 2), whole(1, 3), column_steps, acts.row_steps[row + r]);
    emit_vector(m, column, y, sink.out + static_cast<size_t>(row + r) * sink.stride, sink.accumulate);
  }
}

inline void amx_fixed_panels(const Matrix& m, int begin, int end, const Acts& acts, const Sink& sink) {
  const size_t stride = fixed_row_bytes(acts.groups);
  uint8_t* tiles = weight_memory(static_cast<size_t>(ceil_div(acts.groups, 2)) * kFixedPair);
  alignas(64) int32_t sums[4 * 256];
  FixedShapes(std::min(acts.rows, kTileRows)).use();
  for (int panel = begin; panel < end; ++panel) {
    const uint8_t* first = Fixed::panel(m, panel);
    for (int v = 0; v < 2; ++v) {
      const FixedColumn column{Fixed::blocks(first), acts.groups, v, tiles};
      const Vec steps = load(Fixed::column_steps(first) + 16 * v);
      for (int row = 0; row < acts.rows; row += kTileRows) {
        ask_for_keys(acts);
        multiply_fixed(column, fixed_row(acts, row), stride, row == 0, sums);
        emit_fixed(m, panel * kPanel + 16 * v, steps, acts, row, sums, sink);
      }
    }
  }
  asm volatile("tilerelease");
}

constexpr LinearKernel kAmxFixed{pack_fixed, amx_fixed_panels};
