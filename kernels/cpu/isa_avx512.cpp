// The kernels for AVX-512 F, BW, VL and DQ.

#include "isa.h"

#if defined(__x86_64__)

PLAIT_BEGIN_ISA("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")

namespace plait {
namespace avx512_isa {
namespace {

#include "simd_avx512.h"
#include "dot_avx512.h"
#include "math.h"
#include "../linear/pack.h"
#include "../linear/tiles.h"
#include "../linear/integers.h"
#include "../linear/floats.h"
#include "../linear/fixed.h"
#include "../linear/fixed_scalar.h"
#include "../elementwise/elementwise.h"
#include "../paged_attention/attention.h"

}  // namespace
}  // namespace avx512_isa
}  // namespace plait

PLAIT_END_ISA

namespace plait {

static bool supported() {
  return __builtin_cpu_supports("avx512f") &&
         __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") &&
         kAvx2Path.supported();
}

const Path kAvx512Path{
    "avx512",
    nullptr,
    supported,
    {avx512_isa::kFp32, avx512_isa::kBf16, avx512_isa::kInt8, avx512_isa::kInt4, avx512_isa::kInt4Wide,
     avx512_isa::kFixedScalar},
    avx512_isa::kRowKernels,
    avx512_isa::attention,
};

}  // namespace plait

#endif
