// What a file of kernels for one instruction set stands in: the headers, which are compiled for every
// processor, and the marks between which code is compiled for its features.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <memory>
#include <new>
#include <type_traits>

#include "../paged_attention/upcoming.h"
#include "kernels.h"

#define PLAIT_PRAGMA(...) _Pragma(#__VA_ARGS__)

#if defined(__clang__)
#define PLAIT_BEGIN_ISA(features) \
  PLAIT_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define PLAIT_END_ISA PLAIT_PRAGMA(clang attribute pop)
#else
#define PLAIT_BEGIN_ISA(features) PLAIT_PRAGMA(GCC push_options) PLAIT_PRAGMA(GCC target(features))
#define PLAIT_END_ISA PLAIT_PRAGMA(GCC pop_options)
#endif
