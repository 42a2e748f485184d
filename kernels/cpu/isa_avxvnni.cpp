// Products of integers for AVX-VNNI; the rest is that of AVX2.

#include "isa.h"

#if defined(__x86_64__)

PLAIT_BEGIN_ISA("avx2,fma,f16c,avxvnni")

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

PLAIT_END_ISA

namespace plait {

static bool supported() {
  return __builtin_cpu_supports("avxvnni") && kAvx2Path.supported();
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
