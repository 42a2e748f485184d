// The kernels for avx512bf16.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <type_traits>

#include "kernels.h"

#if defined(__x86_64__)

// System headers are above: only the code below is compiled for the instruction set.
#if defined(__clang__)
#pragma clang attribute push(                                                             \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")
#endif

namespace plait {
namespace avx512_isa {
namespace {

#include "simd_avx512.h"
#include "dot_fp32.h"
#include "dot_bf16.h"
#include "math.h"
#include "../linear/pack.h"
#include "../linear/tiles.h"
#include "../linear/integers.h"
#include "../linear/linear.h"
#include "../elementwise/elementwise.h"
#include "../paged_attention/attention.h"
#include "../decoder_stack/stack.h"

}  // namespace
}  // namespace avx512_isa
}  // namespace plait

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace plait {

static bool supported() {
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni") &&
          __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

const Kernels kAvx512Kernels{
    "avx512bf16",          supported,        avx512_isa::linear, avx512_isa::attention,
    avx512_isa::stack, avx512_isa::rms_norm,
};

}  // namespace plait

#endif
