// The kernels for AVX2 with FMA and F16C.

#include "isa.h"

#if defined(__x86_64__)

PLAIT_BEGIN_ISA("avx2,fma,f16c")

namespace plait {
namespace avx2_isa {
namespace {

#include "simd_avx2.h"
#include "dot_avx2.h"
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
}  // namespace avx2_isa
}  // namespace plait

PLAIT_END_ISA

namespace plait {

static bool supported() {
  return __builtin_cpu_supports("avx2") &&
         __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

const Path kAvx2Path{
    "avx2",
    nullptr,
    supported,
    {avx2_isa::kFp32, avx2_isa::kBf16, avx2_isa::kInt8, avx2_isa::kInt4, avx2_isa::kInt4Wide,
     avx2_isa::kFixedScalar},
    avx2_isa::kRowKernels,
    avx2_isa::attention,
};

}  // namespace plait

#endif
