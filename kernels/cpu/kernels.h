// What the binding hands to the kernels: plain views of tensors; and the operations that are compiled
// for each instruction set. Shapes as in the Python packages of the same names.
#pragma once

#include <cstddef>
#include <cstdint>

#include "team.h"

namespace plait {

constexpr int kPanel = 32;      // columns of a weight panel
constexpr int kGroup = 32;      // k of a weight block
constexpr int kBlock = 16;      // tokens of a KV block
constexpr int kQueries = 48;    // queries (row, head) that share the keys of an attention task
constexpr int kSlots = kQueries + 16;  // of numbers by query: 16 are read at once, from any query on
constexpr int kStrip = 64;      // keys between two corrections of the running softmax

enum class Mode { fp32, bf16, int8, int4, int4wide, int4fixed };
constexpr int kModes = 6;

// A mode's name in Python, the bytes of a block of 32 columns x 32 k, and how many blocks a panel has
// in front of those of its weights.
struct WeightFormat {
  const char* name;
  int block_bytes;
  int lead = 0;
};
constexpr WeightFormat kFormats[kModes] = {
    {"fp32", 4096}, {"bf16", 2048},    {"int8", 1088},
    {"int4", 640},  {"int4wide", 768}, {"int4fixed", 640, 1}};

enum AttentionMode { kCausal = 0, kTree = 1, kFull = 2, kBranches = 3, kShadow = 4, kContext = 5 };

// Asks for a cache line that is read soon, or after much else.
inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }
inline void prefetch_far(const void* p) { __builtin_prefetch(p, 0, 2); }

inline int ceil_div(int a, int b) { return (a + b - 1) / b; }
inline int round_up(int a, int b) { return ceil_div(a, b) * b; }

struct Matrix {
  Mode mode;
  int n, k;
  const uint8_t* panels;
  const float* bias;  // may be null

  int groups() const { return ceil_div(k, kGroup); }
  int panel_count() const { return ceil_div(n, kPanel); }
  const WeightFormat& format() const { return kFormats[static_cast<int>(mode)]; }
  int panel_blocks() const { return groups() + format().lead; }
  size_t panel_bytes() const { return static_cast<size_t>(panel_blocks()) * format().block_bytes; }
};

class UpcomingKeys;

// Rows of a matrix product's input, packed for the weights' mode as linear/pack.h says. Beside
// integers their groups' steps and sums.
struct Acts {
  void* values;
  float *steps, *sums;
  float* row_steps;  // of int4fixed: of whole rows
  int rows, groups;
  UpcomingKeys* upcoming;  // what the thread asks for while it multiplies; may be null
};

struct AttentionMetadata {
  const int32_t* cu_seqlens_q;
  const int32_t* context_lens;
  const int32_t* block_tables;  // [count, max_blocks], of layer 0 if the layers differ
  const int32_t* attention_modes;
  const int32_t* parents;
  const int32_t* positions;
  const int64_t* slot_mapping;  // [rows], likewise
  int count, max_blocks, rows;
  size_t table_stride, slot_stride;  // elements from layer to layer; 0: all layers share them

  AttentionMetadata at_layer(int layer) const {
    AttentionMetadata own = *this;
    own.block_tables += layer * table_stride;
    own.slot_mapping += layer * slot_stride;
    return own;
  }
};

// Rows first .. last - 1 (of the pass) of one segment, read together.
struct RowTile {
  int segment, first, last;
};

// Of one layer.
struct Cache {
  void* k;
  void* v;
  bool half;  // bf16
  int kv_heads, head_dim;
  size_t block_stride;  // elements from block to block

  // Elements before a block's keys, or values, for one KV head.
  size_t page(size_t block, int kv_head) const {
    return block * block_stride + static_cast<size_t>(kv_head) * head_dim * kBlock;
  }
};

struct AttentionCall {
  const float* q;  // [rows, heads, head_dim]
  float* out;      // likewise
  int heads;
  float scale;
  int window;
  AttentionMetadata metadata;
  const RowTile* tiles;
  int tile_count;
};

struct Layer {
  const float *attn_norm, *ffn_norm, *q_norm, *k_norm;  // the last two may be null
  Matrix q, k, v, o, gate, up, down;
  int window;
  bool rotary;
};

struct Shape {
  int hidden, heads, kv_heads, head_dim, ffn, half_rotary;
  float eps, scale;
  const float *cos, *sin;  // [max_positions, half_rotary]
};

// Memory for one pass. Every thread has its own slice of `own`.
struct Scratch {
  Acts acts[kModes];           // each fits the widest input
  float *q, *k, *v, *read;     // [rows, heads or kv_heads, head_dim]
  float *gate, *up;            // [rows, ffn]
  float* x;                    // [rows that are read, hidden]
  char* own;
  size_t own_bytes;
};

// Where a product goes: out[row * stride + column], in place of what is there or on top of it.
struct Sink {
  float* out;
  int stride;
  bool accumulate;
};

// A way to multiply rows with weights: rows are packed as the products read them. All ways of a mode
// give the same bits, but those with bits of their own.
struct LinearKernel {
  void (*pack)(const float* x, int k, int row, const Acts& acts);
  // Panels begin .. end - 1 of the product of all rows.
  void (*panels)(const Matrix& m, int begin, int end, const Acts& acts, const Sink& sink);
  bool has_own_bits = false;
};

// One row each.
struct RowKernels {
  void (*rms_norm)(const float* x, const float* gain, float* out, int n, float eps);
  void (*silu_mul)(float* gate, const float* up, int n);
  void (*rotate)(float* x, const float* cos, const float* sin, int half);
  void (*write_kv)(const float* k, const float* v, const Cache& cache, int64_t slot);
};

// Every thread of the team calls it with memory of its own.
using Attention = void (*)(Team& team, const AttentionCall& call, const Cache& cache, char* own);

// What is compiled for one instruction set. What is null there is that of `base`.
struct Path {
  const char* name;
  const Path* base;
  bool (*supported)();
  LinearKernel linear[kModes];
  RowKernels rows;
  Attention attention;
};

extern const Path kGenericPath;
#if defined(__x86_64__)
extern const Path kAvx2Path, kAvxVnniPath, kAvx512Path, kAvx512VnniPath, kAvx512Vnni16Path,
    kAvx512Bf16Path, kAmxPath;
#endif

// Numbers of rows that are told apart when a kernel is chosen: 1, 2, 3-4, 5-8, 9-16, 17-32, more.
constexpr int kRowClasses = 7;

inline int row_class(int rows) {
  int found = 0;
  while (found < kRowClasses - 1 && rows > 1 << found) ++found;
  return found;
}

// The kernels in use.
struct Operations {
  LinearKernel by_rows[kModes][kRowClasses];
  RowKernels rows;
  Attention attention;

  const LinearKernel& linear(Mode mode, int count) const {
    return by_rows[static_cast<int>(mode)][row_class(count)];
  }
};

struct StackCall {
  const Shape* shape;
  const Layer* layers;
  int first, last;
  float* x;  // [rows, hidden]
  Cache cache;          // of layer 0
  size_t layer_stride;  // bytes from layer to layer
  AttentionMetadata metadata;
  const RowTile* tiles;
  int tile_count;
  bool reads_all;
  const int64_t* read;  // else the rows whose output is read, ascending, and the tiles of these
  int read_count;
  const RowTile* read_tiles;
  int read_tile_count;
  Scratch scratch;
};

struct LinearCall {
  Matrix matrix;
  const float* x;
  float* out;
  int rows;
  Acts acts;
};

// Bytes of a thread's own scratch.
// width: of the rows that are normed.
inline size_t own_bytes(int width, int head_dim, int rows) {
  const size_t dim = round_up(head_dim, 16);
  const size_t floats = kQueries * (2 * dim + 32 + kStrip) + 2 * kSlots + 3 * kStrip * dim;
  const size_t attention = floats * sizeof(float) + kQueries * rows;
  return (std::max(attention, sizeof(float) * width) + 63) / 64 * 64;
}

}  // namespace plait
