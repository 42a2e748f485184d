// Chooses kernels, by a short measurement where several paths have the same bits.

#include "choice.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>

namespace plait {
namespace {

const std::vector<const Path*>& supported() {
  static const std::vector<const Path*> found = [] {
    std::vector<const Path*> paths;
#if defined(__x86_64__)
    for (const Path* path :
         {&kAmxPath, &kAvx512Bf16Path, &kAvx512Vnni16Path, &kAvx512VnniPath, &kAvx512Path,
          &kAvxVnniPath, &kAvx2Path}) {
      if (path->supported()) paths.push_back(path);
    }
#endif
    paths.push_back(&kGenericPath);
    return paths;
  }();
  return found;
}

// The path, among a path and its bases, that has an operation.
template <class Has>
const Path* holder(const Path* path, const Has& has) {
  while (!has(*path)) path = path->base;
  return path;
}

const Path* holder_of(const Path* path, int mode) {
  return holder(path, [&](const Path& own) { return own.linear[mode].panels != nullptr; });
}

// The kernels in use, and where they are from.
struct Choice {
  std::string name;
  Operations operations;
  const Path* linear[kModes][kRowClasses];
  const Path *rows, *attention;

  void use(int mode, int size, const Path* path) {
    linear[mode][size] = path;
    operations.by_rows[mode][size] = path->linear[mode];
  }
};

Choice choice_of(const Path* path, const std::string& name) {
  Choice choice{};
  choice.name = name;
  for (int mode = 0; mode < kModes; ++mode) {
    for (int size = 0; size < kRowClasses; ++size) choice.use(mode, size, holder_of(path, mode));
  }
  choice.rows = holder(path, [](const Path& own) { return own.rows.rms_norm != nullptr; });
  choice.attention = holder(path, [](const Path& own) { return own.attention != nullptr; });
  choice.operations.rows = choice.rows->rows;
  choice.operations.attention = choice.attention->attention;
  return choice;
}

// A product of some panels that stay in a core's cache, timed.
class Trial {
 public:
  Trial(int mode, int rows)
      : panels_(size_t{kPanels} * (kGroups + kFormats[mode].lead) * kFormats[mode].block_bytes + kMargin, 0x11),
        inputs_(kGroups * kGroup, 0.5f),
        outputs_(size_t{kPanels} * kPanel * rows),
        values_(round_up(rows, 16) * kGroups * kGroup),
        steps_(round_up(rows, 16) * kGroups),
        sums_(steps_.size()),
        row_steps_(round_up(rows, 16)),
        matrix_{static_cast<Mode>(mode), kPanels * kPanel, kGroups * kGroup, panels_.data(), nullptr},
        acts_{values_.data(), steps_.data(), sums_.data(), row_steps_.data(), rows, kGroups} {}

  // Seconds. Inputs are packed once for some 50 panels, those of all matrices that they go through.
  double run(const LinearKernel& kernel) {
    const double pack = seconds([&] {
      for (int row = 0; row < acts_.rows; ++row) {
        kernel.pack(inputs_.data(), matrix_.k, row, acts_);
      }
    });
    const double multiply = seconds([&] {
      kernel.panels(matrix_, 0, kPanels, acts_, {outputs_.data(), matrix_.n, false});
    });
    return pack + kTimes * multiply;
  }

 private:
  static constexpr int kPanels = 6, kGroups = 18, kTimes = 8;
  static constexpr size_t kMargin = 8192;  // kernels ask for weights ahead

  template <class Work>
  static double seconds(const Work& work) {
    const auto begun = std::chrono::steady_clock::now();
    work();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
  }

  std::vector<uint8_t> panels_;
  std::vector<float> inputs_, outputs_, values_, steps_, sums_, row_steps_;
  Matrix matrix_;
  Acts acts_;
};

// The shortest of some times of each path's kernel, which are measured in turns.
std::vector<double> times(int mode, int rows, const std::vector<const Path*>& paths) {
  constexpr int kRounds = 5;
  Trial trial(mode, rows);
  std::vector<double> best(paths.size(), std::numeric_limits<double>::infinity());
  for (int round = 0; round < kRounds; ++round) {
    for (size_t i = 0; i < paths.size(); ++i) {
      best[i] = std::min(best[i], trial.run(paths[i]->linear[mode]));
    }
  }
  return best;
}

// The paths with kernels of their own for a mode, best first; has_own_bits: those, or the others.
std::vector<const Path*> paths_with(int mode, bool has_own_bits) {
  std::vector<const Path*> paths;
  for (const Path* path : supported()) {
    const LinearKernel& kernel = path->linear[mode];
    if (kernel.panels && kernel.has_own_bits == has_own_bits) paths.push_back(path);
  }
  return paths;
}

// The best of the paths whose kernels of a mode are within a twentieth of the fastest, for so many rows.
const Path* fastest(int mode, int rows) {
  std::vector<const Path*> paths = paths_with(mode, false);
  if (paths.size() > 1) paths.pop_back();  // the generic one is last
  if (paths.size() == 1) return paths.front();
  const std::vector<double> best = times(mode, rows, paths);
  const double enough = 1.05 * *std::min_element(best.begin(), best.end());
  return paths[std::find_if(best.begin(), best.end(), [&](double t) { return t <= enough; }) -
               best.begin()];
}

// Whether a kernel with bits of its own is so much faster than what is chosen for many rows that no
// disturbance can tell: then it serves all numbers of rows, since a text must not depend on them.
bool pays(const Path* path, const Path* chosen, int mode) {
  constexpr int kRows = 32;
  const std::vector<double> both = times(mode, kRows, {path, chosen});
  return 1.25 * both[0] < both[1];
}

Choice measure() {
  Choice choice = choice_of(supported().front(), "fastest");
  for (int mode = 0; mode < kModes; ++mode) {
    for (int size = 0; size < kRowClasses; ++size) {
      choice.use(mode, size, fastest(mode, 1 << size));
    }
    for (const Path* path : paths_with(mode, true)) {
      if (!pays(path, choice.linear[mode][row_class(32)], mode)) continue;
      for (int size = 0; size < kRowClasses; ++size) choice.use(mode, size, path);
    }
  }
  return choice;
}

// Measured once, however often it is asked for.
const Choice& measured() {
  static const Choice choice = measure();
  return choice;
}

Choice& current() {
  static Choice choice = measured();
  return choice;
}

}  // namespace

const Operations& active() { return current().operations; }

std::vector<std::string> path_names() {
  std::vector<std::string> names;
  for (const Path* path : supported()) names.emplace_back(path->name);
  return names;
}

std::string path_name() { return current().name; }

bool use_path(const std::string& name) {
  if (name == "fastest") {
    current() = measured();
    return true;
  }
  for (const Path* path : supported()) {
    if (name != path->name) continue;
    current() = choice_of(path, name);
    return true;
  }
  return false;
}

Sources sources() {
  const Choice& choice = current();
  Sources found;
  for (int mode = 0; mode < kModes; ++mode) {
    std::vector<std::string> names;
    for (const Path* path : choice.linear[mode]) names.emplace_back(path->name);
    found.linear.emplace_back(kFormats[mode].name, names);
  }
  found.rows = choice.rows->name;
  found.attention = choice.attention->name;
  return found;
}

}  // namespace plait
