// The kernels in the compiler's own vector types, for any processor.

#include "isa.h"

namespace plait {
namespace generic_isa {
namespace {

#include "simd_generic.h"
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
}  // namespace generic_isa

static bool supported() { return true; }

const Path kGenericPath{
    "generic",
    nullptr,
    supported,
    {generic_isa::kFp32, generic_isa::kBf16, generic_isa::kInt8, generic_isa::kInt4, generic_isa::kInt4Wide,
     generic_isa::kFixedScalar},
    generic_isa::kRowKernels,
    generic_isa::attention,
};

}  // namespace plait
