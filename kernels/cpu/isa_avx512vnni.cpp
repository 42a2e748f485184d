// Products of integers for AVX-512 VNNI; the rest is that of AVX-512.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <new>
#include <type_traits>

#include "kernels.h"

#if defined(__x86_64__)

// System headers are above: only the code below is compiled for the instruction set.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,avx512vnni"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,avx512vnni")
#endif

namespace plait {
namespace avx512vnni_isa {
namespace {

#include "simd_avx512.h"
#include "dot_avx512vnni.h"
#include "../linear/pack.h"
#include "../linear/tiles.h"
#include "../linear/integers.h"

}  // namespace
}  // namespace avx512vnni_isa
}  // namespace plait

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace plait {

static bool supported() {
  return __builtin_cpu_supports("avx512vnni") &&
         __builtin_cpu_supports("avx512f") &&
         __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx2") &&
         __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

const Path kAvx512VnniPath{
    "avx512vnni",
    &kAvx512Path,
    supported,
    {{}, {}, avx512vnni_isa::kInt8, avx512vnni_isa::kInt4, avx512vnni_isa::kInt4Wide},
    {},
    nullptr,
};

}  // namespace plait

#endif
