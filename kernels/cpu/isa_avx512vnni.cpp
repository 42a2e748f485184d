// Products of integers for AVX-512 VNNI, in two ways for int4; the rest is that of AVX-512.

#include "isa.h"

#if defined(__x86_64__)

PLAIT_BEGIN_ISA("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,avx512vnni")

namespace plait {
namespace avx512vnni_isa {
namespace {

#include "simd_avx512.h"
#include "dot_avx512vnni.h"
#include "../linear/pack.h"
#include "../linear/tiles.h"
#include "../linear/integers.h"
#include "../linear/sixteens.h"
#include "../linear/both_vnni.h"
#include "../linear/fixed.h"
#include "../linear/fixed_vnni.h"

}  // namespace
}  // namespace avx512vnni_isa
}  // namespace plait

PLAIT_END_ISA

namespace plait {

static bool supported() {
  return __builtin_cpu_supports("avx512vnni") && kAvx512Path.supported();
}

const Path kAvx512VnniPath{
    "avx512vnni",
    &kAvx512Path,
    supported,
    {{}, {}, avx512vnni_isa::kInt8Both, avx512vnni_isa::kInt4Both, avx512vnni_isa::kInt4WideBoth,
     avx512vnni_isa::kFixedVnni},
    {},
    nullptr,
};

const Path kAvx512Vnni16Path{
    "avx512vnni16",
    &kAvx512VnniPath,
    supported,
    {{}, {}, {}, avx512vnni_isa::kInt4Sixteens, avx512vnni_isa::kInt4WideSixteens},
    {},
    nullptr,
};

}  // namespace plait

#endif
