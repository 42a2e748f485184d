// Products of integers for AVX-VNNI; the rest is that of AVX2.

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
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avxvnni"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avxvnni")
#endif

namespace plait {
namespace avxvnni_isa {
namespace {

#include "simd_avx2.h"
#include "dot_avxvnni.h"
#include "../linear/pack.h"
#include "../linear/tiles.h"
#include "../linear/integers.h"

}  // namespace
}  // namespace avxvnni_isa
}  // namespace plait

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace plait {

static bool supported() {
  return __builtin_cpu_supports("avxvnni") &&
         __builtin_cpu_supports("avx2") &&
         __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

const Path kAvxVnniPath{
    "avxvnni",
    &kAvx2Path,
    supported,
    {{}, {}, avxvnni_isa::kInt8, avxvnni_isa::kInt4, avxvnni_isa::kInt4Wide},
    {},
    nullptr,
};

}  // namespace plait

#endif
