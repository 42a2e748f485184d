// What a row sees. Included inside a namespace.

// What one row sees.
struct Sight {
  int context, own, kind;  // own: rows of the segment, of the branch or of the path
  int row, position, window;
  const int32_t* positions;  // of these rows
  const uint8_t* kin;        // of this row

  bool sees(int key) const {
    const int mate = key - context;
    if (mate >= own) return false;
    if (window && (mate < 0 ? key : positions[mate]) <= position - window) return false;
    if (mate < 0) return true;
    return kind == kFull || (kind == kCausal ? mate <= row : kin[mate] != 0);
  }
  // The keys from 0 on that are all seen, if there is no window.
  int all_before() const {
    return kind == kFull ? context + own : kind == kCausal ? context + row + 1 : context;
  }
  // Whether all of key .. key + count - 1 are seen, if that is cheap to tell.
  bool sees_all(int key, int count) const {
    const int end = window ? context : all_before();
    return key + count <= end && (!window || key > position - window);
  }
  // Of kBlock keys, each a bit.
  uint16_t bits(int key) const {
    const auto first = [](int count) { return (1u << std::clamp(count, 0, kBlock)) - 1; };
    if (key + kBlock <= context || (!window && (kind == kFull || kind == kCausal))) {
      const unsigned early = window ? first(position - window + 1 - key) : 0;
      const unsigned reached = key + kBlock <= context ? first(kBlock) : first(all_before() - key);
      return static_cast<uint16_t>(reached & ~early);
    }
    unsigned bits = 0;
    for (int i = 0; i < kBlock; ++i) bits |= static_cast<unsigned>(sees(key + i)) << i;
    return static_cast<uint16_t>(bits);
  }
};

// Marks what each row of the tile sees: rows of the first half, but row i of the second half sees
// itself instead of row i of the first.
inline void mark_shadowed(const RowTile& tile, int start, int own, uint8_t* kin) {
  const int half = own / 2;
  for (int row = tile.first - start; row < tile.last - start; ++row, kin += own) {
    std::memset(kin, 1, half);
    std::memset(kin + half, 0, half);
    if (row >= half) std::swap(kin[row - half], kin[row]);
  }
}
