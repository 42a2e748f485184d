// Products with bf16 weights for AVX-512 BF16; the rest is that of AVX-512 VNNI.

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
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,avx512vnni,avx512bf16"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,avx512vnni,avx512bf16")
#endif

namespace plait {
namespace avx512bf16_isa {
namespace {

#include "simd_avx512.h"
#include "dot_avx512vnni.h"
#include "../linear/pack.h"
#include "../linear/tiles.h"
#include "../linear/pairs.h"

}  // namespace
}  // namespace avx512bf16_isa
}  // namespace plait

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace plait {

static bool supported() {
  return __builtin_cpu_supports("avx512bf16") && kAvx512VnniPath.supported();
}

const Path kAvx512Bf16Path{
    "avx512bf16",
    &kAvx512VnniPath,
    supported,
    {{}, avx512bf16_isa::kBf16Pairs, {}, {}, {}},
    {},
    nullptr,
};

}  // namespace plait

#endif
