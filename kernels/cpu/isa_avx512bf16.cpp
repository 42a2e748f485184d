// Products with bf16 weights for AVX-512 BF16; the rest is that of AVX-512 VNNI.

#include "isa.h"

#if defined(__x86_64__)

PLAIT_BEGIN_ISA("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,avx512vnni,avx512bf16")

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

PLAIT_END_ISA

namespace plait {

static bool supported() {
  return __builtin_cpu_supports("avx512bf16") && kAvx512VnniPath.supported();
}

const Path kAvx512Bf16Path{
    "avx512bf16",
    &kAvx512Vnni16Path,
    supported,
    {{}, avx512bf16_isa::kBf16Pairs, {}, {}, {}},
    {},
    nullptr,
};

}  // namespace plait

#endif
