// The kernels for generic.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <type_traits>

#include "kernels.h"

namespace plait {
namespace generic_isa {
namespace {

#include "simd_generic.h"
#include "dot_fp32.h"
#include "dot_wide.h"
#include "math.h"
#include "../linear/pack.h"
#include "../linear/tiles.h"
#include "../linear/integers.h"
#include "../linear/linear.h"
#include "../elementwise/elementwise.h"
#include "../paged_attention/attention.h"
#include "../decoder_stack/stack.h"

}  // namespace
}  // namespace generic_isa
}  // namespace plait

namespace plait {

static bool supported() {
  return true;
}

const Kernels kGenericKernels{
    "generic",          supported,        generic_isa::linear, generic_isa::attention,
    generic_isa::stack, generic_isa::rms_norm,
};

}  // namespace plait
