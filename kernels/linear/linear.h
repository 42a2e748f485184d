// A product of rows with a matrix, on all threads of a team.
#pragma once

#include "../cpu/kernels.h"

namespace plait {

constexpr int kClaim = 8;  // panels taken at once: their weights fit a core's L2 cache

inline void run_linear(Team& team, const Operations& operations, const LinearCall& call) {
  const Matrix& m = call.matrix;
  const LinearKernel& kernel = operations.linear(m.mode, call.rows);
  Acts acts = call.acts;
  acts.rows = call.rows;
  acts.groups = m.groups();
  team.share(acts.rows, 64, [&](int begin, int end) {
    for (int row = begin; row < end; ++row) {
      kernel.pack(call.x + static_cast<size_t>(row) * m.k, m.k, row, acts);
    }
  });
  const Sink sink{call.out, m.n, false};
  team.share(m.panel_count(), kClaim,
             [&](int begin, int end) { kernel.panels(m, begin, end, acts, sink); });
}

}  // namespace plait
