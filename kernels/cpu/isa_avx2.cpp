// The kernels for avx2.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <type_traits>

#include "kernels.h"

#if defined(__x86_64__)

// System headers are above: only the code below is compiled for the instruction set.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

namespace plait {
namespace avx2_isa {
namespace {

#include "simd_avx2.h"
#include "dot_fp32.h"
#include "dot_wide.h"
#include "math.h"
#include "../linear/pack.h"
#include "../linear/tiles.h"
#include "../linear/integers.h"
#include "../linear/linear.h"
#include "../elementwise/elementwise.h"
#include "../paged_attention/attention.h"
#include "../decoder_stack/stack.h"

}  // namespace
}  // namespace avx2_isa
}  // namespace plait

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace plait {

static bool supported() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

const Kernels kAvx2Kernels{
    "avx2",          supported,        avx2_isa::linear, avx2_isa::attention,
    avx2_isa::stack, avx2_isa::rms_norm,
};

}  // namespace plait

#endif
