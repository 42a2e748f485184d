// Products on AMX tiles of bytes and of bf16; the rest is that of AVX-512 VNNI.

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "isa.h"

#if defined(__x86_64__)

PLAIT_BEGIN_ISA("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,avx512vnni,amx-tile,amx-int8,amx-bf16")

namespace plait {
namespace amx_isa {
namespace {

#include "simd_avx512.h"
#include "dot_avx512vnni.h"
#include "../linear/pack.h"
#include "../linear/tiles.h"
#include "../linear/integers.h"
#include "../linear/floats.h"
#include "../linear/amx.h"
#include "../linear/fixed.h"
#include "../linear/amx_fixed.h"

}  // namespace
}  // namespace amx_isa
}  // namespace plait

PLAIT_END_ISA

namespace plait {

// Asks the system to keep the tiles of this process's threads; it does not do so on its own.
static bool tiles_are_kept() {
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

static bool supported() {
  return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-int8") &&
         __builtin_cpu_supports("amx-bf16") && kAvx512VnniPath.supported() && tiles_are_kept();
}

const Path kAmxPath{
    "amx",
    &kAvx512VnniPath,
    supported,
    {{}, amx_isa::kAmxBf16, amx_isa::kAmxInt8, amx_isa::kAmxInt4, amx_isa::kAmxInt4Wide, amx_isa::kAmxFixed},
    {},
    nullptr,
};

}  // namespace plait

#endif
