// Which kernels are in use: the fastest ones of the processor, or those of one path.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "kernels.h"

namespace plait {

const Operations& active();

// The paths that the processor can run, best first, and the one in use; "fastest" unless one was
// named.
std::vector<std::string> path_names();
std::string path_name();
// Uses a path, or "fastest"; false where the processor has no path of that name.
bool use_path(const std::string& name);

// The path of each operation in use. For products: [mode][row class].
struct Sources {
  std::vector<std::pair<std::string, std::vector<std::string>>> linear;
  std::string rows, attention;
};
Sources sources();

}  // namespace plait
