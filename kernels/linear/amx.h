// Products on AMX tiles, the same bits as those of integers.h and floats.h. Included inside a
// namespace, after them.
//
// A tile of inputs holds the 32 k of a group for up to 16 rows, 64 bytes each; a tile of weights
// holds them for 16 columns, k after k in fours (bf16: in twos). Inputs of 16 bits are two planes
// of bytes. For int4 weights they stand side by side, x = 16 * high + low, and the weights are there
// twice, once 16 times as large: one product sums both. For int8 weights, x = 256 * high + low, each
// plane has sums of its own.
//
// While tiles are in use, 512-bit additions run at half their rate (seen on a Granite Rapids), so
// the scaling of sums is most of an integer product's time.

// The compiler's own intrinsics do not say which memory they read.
template <int T>
inline void load_tile(const void* p, size_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(stride), "i"(T) : "memory");
}
template <int T>
inline void store_tile(void* p, size_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(p), "r"(stride), "i"(T) : "memory");
}
template <int T>
inline void clear_tile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(T));
}
// Tile C += A times B: A of signed bytes and B of unsigned ones, both signed, the other way round.
template <int C, int A, int B>
inline void dot_signed_unsigned() {
  asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}
template <int C, int A, int B>
inline void dot_signed() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}
template <int C, int A, int B>
inline void dot_unsigned_signed() {
  asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}
template <int C, int A, int B>
inline void dot_bf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

// Shapes of the tiles: 0 and 1 hold sums, 2 and 3 inputs, 4 and 5 weights.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  TileShapes(int tile_rows, int input_bytes, int weight_rows) {
    const int bytes[6] = {64, 64, input_bytes, input_bytes, 64, 64};
    const int counts[6] = {tile_rows, tile_rows, tile_rows, tile_rows, weight_rows, weight_rows};
    for (int i = 0; i < 6; ++i) {
      row_bytes[i] = static_cast<uint16_t>(bytes[i]);
      rows[i] = static_cast<uint8_t>(counts[i]);
    }
  }
  void use() const { asm volatile("ldtilecfg %0" : : "m"(*this)); }
};

constexpr int kTileRows = 16;
constexpr int kTileBytes = 1024;  // of a full tile
constexpr int kAhead = 2;   // groups between a weight's unpacking and its product
constexpr int kBehind = 2;  // groups between a product and the scaling of its sums
constexpr int kRing = 4;    // groups whose sums are kept, a power of two above kBehind

// Tiles of 4, 8, 12 or 16 rows; those beyond the last hold what was in memory.
struct TileInput : Rows<kTileRows, 64> {
  static int taken(int left) { return std::min(kRows, (left + 3) / 4 * 4); }

  static __m512i integers(Vec v) { return _mm512_cvtps_epi32(v); }
  static void put(uint8_t* out, __m512i a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(a));
  }
};

struct HalfInput : TileInput {
  static void put(uint8_t* out, Vec low, Vec high) {
    store(reinterpret_cast<uint16_t*>(out), low);
    store(reinterpret_cast<uint16_t*>(out) + 16, high);
  }
};

struct WordInput : TileInput {
  static void put(uint8_t* out, Vec low, Vec high) {
    split(out, integers(low));
    split(out + 16, integers(high));
  }

 private:
  static void split(uint8_t* out, __m512i x) {
    TileInput::put(out, _mm512_srai_epi32(x, 8));
    TileInput::put(out + 32, x);  // its low byte
  }
};

struct ByteInput : TileInput {
  static void put(uint8_t* out, const ByteGroup& group) {
    split(out, integers(group.steps_low()));
    split(out + 16, integers(group.steps_high()));
  }

 private:
  static void split(uint8_t* out, __m512i x) {
    const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(8)), 4);
    TileInput::put(out, high);
    TileInput::put(out + 32, _mm512_sub_epi32(x, _mm512_slli_epi32(high, 4)));
  }
};

// How a group of one vector of columns becomes a tile of weights, and is multiplied.
template <class W>
struct Int4Tiles : W {
  using Input = ByteInput;
  static constexpr int kInputBytes = 64, kWeightRows = 16, kSums = 1;

  static void unpack(const uint8_t* block, int v, uint8_t* out) {
    const __m512i low = _mm512_set1_epi8(15), high = _mm512_set1_epi8(static_cast<char>(0xf0));
#pragma GCC unroll 4
    for (int eight = 0; eight < 4; ++eight) {
      const __m512i all = _mm512_loadu_si512(block + W::kQuants + 128 * eight + 64 * v);
      uint8_t* at = out + 128 * eight;
      _mm512_store_si512(at, _mm512_and_si512(_mm512_slli_epi16(all, 4), high));
      _mm512_store_si512(at + 64, _mm512_and_si512(all, high));
      _mm512_store_si512(at + 512, _mm512_and_si512(all, low));
      _mm512_store_si512(at + 576, _mm512_and_si512(_mm512_srli_epi16(all, 4), low));
    }
  }
  static void multiply(const uint8_t* x, const uint8_t* weights, int32_t* sums) {
    clear_tile<0>();
    load_tile<2>(x, 64);
    load_tile<4>(weights, 64);
    dot_signed_unsigned<0, 2, 4>();
    store_tile<0>(sums, 64);
  }
  static Vec sum_of(const int32_t* sums) { return _mm512_cvtepi32_ps(_mm512_load_si512(sums)); }
};

struct Int8Tiles : Int8 {
  using Input = WordInput;
  static constexpr int kInputBytes = 32, kWeightRows = 8, kSums = 2;

  static Vec minimum(const uint8_t*, int) { return zero(); }
  static void unpack(const uint8_t* block, int v, uint8_t* out) {
#pragma GCC unroll 8
    for (int four = 0; four < 8; ++four) {
      const uint8_t* pairs = block + kQuants + 128 * four + 32 * v;
      const __m512i first = words_at(pairs), second = words_at(pairs + 64);
      _mm512_store_si512(out + 64 * four, _mm512_or_si512(first, _mm512_slli_epi32(second, 16)));
    }
  }
  static void multiply(const uint8_t* x, const uint8_t* weights, int32_t* sums) {
    clear_tile<0>();
    clear_tile<1>();
    load_tile<2>(x, 64);
    load_tile<3>(x + 32, 64);
    load_tile<4>(weights, 64);
    dot_signed<0, 2, 4>();
    dot_unsigned_signed<1, 3, 4>();
    store_tile<0>(sums, 64);
    store_tile<1>(sums + kTileBytes / 4, 64);
  }
  static Vec sum_of(const int32_t* sums) {
    const __m512i high = _mm512_load_si512(sums), low = _mm512_load_si512(sums + kTileBytes / 4);
    return _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(high, 8), low));
  }

 private:
  static __m512i words_at(const uint8_t* p) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
};

// total[r] += the scaled sums of one group, whose rows have such steps and sums of inputs.
template <int R, class W>
inline void add_group(const uint8_t* block, int v, const int32_t* sums, const float* steps,
                      const float* of_inputs, Vec (&total)[R]) {
  const Vec scale = W::scale(block, v), minimum = W::minimum(block, v);
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    const Vec sum = W::sum_of(sums + 16 * r);
    total[r] = fma(scale, mul(splat(steps[r]), sum), total[r]);
    if constexpr (W::kMinimum) total[r] = fma(minimum, splat(of_inputs[r]), total[r]);
  }
}

// The unpacked weights of one panel, for the tiles of rows one after the other.
struct PanelTiles {
  const uint8_t* panel;  // packed
  uint8_t* memory;
  bool fresh;  // still to be unpacked
  int mask;    // of groups: where one tile reads them there is room for a few only

  uint8_t* at(int group, int v) const { return memory + (2 * (group & mask) + v) * kTileBytes; }
};

// One vector of a panel's columns times a tile of R rows, from `row` on, to out [R][16].
template <int R, class W>
[[gnu::noinline]] void integer_column(PanelTiles tiles, int v, const Acts& acts, int row,
                                      float* out) {
  Vec total[R];  // never in memory, which tiles may overwrite for all the compiler knows
  alignas(64) int32_t sums[kRing][W::kSums * kTileBytes / 4];
  const int groups = acts.groups;
  const size_t start = static_cast<size_t>(row) * groups;
  const uint8_t* x = static_cast<const uint8_t*>(acts.values) + start * 64;
  const float *steps = acts.steps + start, *of_inputs = acts.sums + start;
  const auto unpack = [=](int g) {
    if (!tiles.fresh || g >= groups) return;
    const uint8_t* block = tiles.panel + static_cast<size_t>(g) * W::kBytes;
    if (v == 0) prefetch_ahead<W::kBytes>(block);
    W::unpack(block, v, tiles.at(g, v));
  };
  for (int r = 0; r < R; ++r) total[r] = zero();
  for (int g = 0; g < kAhead; ++g) unpack(g);
  for (int g = 0; g < groups + kBehind; ++g) {
    if (g < groups) {
      ask_for_keys(acts);
      unpack(g + kAhead);
      W::multiply(x + static_cast<size_t>(g) * R * 64, tiles.at(g, v), sums[g % kRing]);
    }
    const int done = g - kBehind;
    if (done < 0) continue;
    const uint8_t* block = tiles.panel + static_cast<size_t>(done) * W::kBytes;
    add_group<R, W>(block, v, sums[done % kRing], steps + done * R, of_inputs + done * R, total);
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) store(out + 16 * r, total[r]);
}

// Calls f(std::integral_constant<int, rows>()) for the sizes that TileInput::taken gives.
template <class F>
inline void with_tile_rows(int rows, const F& f) {
  with_rows<4>(rows / 4, [&](auto fours) {
    f(std::integral_constant<int, 4 * decltype(fours)::value>());
  });
}

// Calls tile(panel, row, rows taken, is first of its panel) with the tiles' shapes set.
template <class W, class F>
inline void each_amx_tile(int begin, int end, int rows, const F& tile) {
  constexpr int kRows = 256;  // of inputs, half of a core's L2 cache
  int taken = 0;
  for (int first = 0; first < rows; first += kRows) {
    const int last = std::min(first + kRows, rows);
    for (int panel = begin; panel < end; ++panel) {
      for (int row = first; row < last; row += kTileRows) {
        const int next = TileInput::taken(last - row);
        if (next != taken) TileShapes(taken = next, W::kInputBytes, W::kWeightRows).use();
        tile(panel, row, taken, row == first);
      }
    }
  }
  asm volatile("tilerelease");
}

// Rows of 16 columns.
inline void emit_tile(const Matrix& m, int column, int row, int count, const float* from,
                      const Sink& sink) {
  for (int r = 0; r < count; ++r) {
    float* out = sink.out + static_cast<size_t>(row + r) * sink.stride;
    emit_vector(m, column, load(from + 16 * r), out, sink.accumulate);
  }
}

template <class W>
void amx_integer_panels(const Matrix& m, int begin, int end, const Acts& acts, const Sink& sink) {
  constexpr int kFew = 4;  // groups, a power of two above kAhead
  const bool many = acts.rows > kTileRows;
  const size_t room = static_cast<size_t>(many ? acts.groups : kFew) * 2 * kTileBytes;
  PanelTiles tiles{nullptr, weight_memory(room), true, many ? -1 : kFew - 1};
  each_amx_tile<W>(begin, end, acts.rows, [&](int panel, int row, int taken, bool first) {
    tiles.panel = panel_at<W>(m, panel);
    tiles.fresh = first;
    with_tile_rows(taken, [&](auto size) {
      constexpr int R = decltype(size)::value;
      for (int v = 0; v < 2; ++v) {
        alignas(64) float total[R * 16];
        integer_column<R, W>(tiles, v, acts, row, total);
        emit_tile(m, panel * kPanel + 16 * v, row, std::min(R, acts.rows - row), total, sink);
      }
    });
  });
}

struct Bf16Tiles : Bf16 {
  static constexpr int kInputBytes = 64, kWeightRows = 16;
};

void amx_bf16_panels(const Matrix& m, int begin, int end, const Acts& acts, const Sink& sink) {
  constexpr size_t kPair = 128;  // bytes of a pair of k, of both vectors
  alignas(64) float sums[2][kTileBytes / 4];
  each_amx_tile<Bf16Tiles>(begin, end, acts.rows, [&](int panel, int row, int taken, bool) {
    const uint8_t* block = panel_at<Bf16>(m, panel);
    const uint8_t* x = static_cast<const uint8_t*>(acts.values) +
                       static_cast<size_t>(row) * acts.groups * 64;
    clear_tile<0>();
    clear_tile<1>();
    for (int g = 0; g < acts.groups; ++g, block += Bf16::kBytes, x += taken * 64) {
      if (row == 0) prefetch_ahead<Bf16::kBytes>(block);
      ask_for_keys(acts);
      load_tile<2>(x, 64);
      load_tile<4>(block, kPair);
      dot_bf16<0, 2, 4>();
      load_tile<5>(block + 64, kPair);
      dot_bf16<1, 2, 5>();
    }
    store_tile<0>(sums[0], 64);
    store_tile<1>(sums[1], 64);
    const int count = std::min(taken, acts.rows - row);
    for (int v = 0; v < 2; ++v) emit_tile(m, panel * kPanel + 16 * v, row, count, sums[v], sink);
  });
}

constexpr LinearKernel kAmxBf16{pack_floats<HalfInput>, amx_bf16_panels};
constexpr LinearKernel kAmxInt8{pack_words<WordInput>, amx_integer_panels<Int8Tiles>};
constexpr LinearKernel kAmxInt4{pack_bytes<ByteInput>, amx_integer_panels<Int4Tiles<Int4>>};
constexpr LinearKernel kAmxInt4Wide{pack_bytes<ByteInput>,
                                    amx_integer_panels<Int4Tiles<Int4Wide>>};
