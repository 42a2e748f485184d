// The Python module plait.kernels._cpu; its signatures are in kernels/_cpu.pyi.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <map>

#include "../decoder_stack/compiled.h"
#include "../kv_copy/kv_copy.h"
#include "../linear/linear.h"
#include "../linear/rows.h"
#include "../noise/noise.h"
#include "../paged_attention/segments.h"
#include "choice.h"
#include "views.h"

namespace py = pybind11;

namespace plait {
namespace {

void use_isa(const std::string& name) {
  TORCH_CHECK_VALUE(use_path(name), "this processor has no kernels named ", name);
}

// For each operation the names of the paths in use, of products for 1, 2, 4, ... rows and more.
std::map<std::string, std::vector<std::string>> operations() {
  const Sources found = sources();
  std::map<std::string, std::vector<std::string>> all{{"rows", {found.rows}},
                                                      {"attention", {found.attention}}};
  all.insert(found.linear.begin(), found.linear.end());
  return all;
}

at::Tensor linear(const at::Tensor& x, const std::string& mode, int64_t n, const at::Tensor& panels,
                  const std::optional<at::Tensor>& bias) {
  const at::Tensor input = x.contiguous();
  const float* data = data_of<float>(input, 2, "x");
  const int rows = static_cast<int>(input.size(0)), k = static_cast<int>(input.size(1));
  const Matrix matrix = matrix_of(mode, n, k, panels, bias);
  at::Tensor out = at::empty({rows, n}, input.options());

  const int threads = threads_for(1.0 * rows * n * k);
  LinearCall call{matrix, data, out.data_ptr<float>(), rows, {}};
  const auto carve = [&](char* memory) {
    Carver carver(memory);
    call.acts = carve_acts(carver, rows, k);
    return carver.used();
  };
  thread_local Buffer buffer;
  carve(buffer.reserve(carve(nullptr)));
  const Operations& kernels = active();
  Team::run(threads, [&](Team& team) { run_linear(team, kernels, call); });
  return out;
}

at::Tensor take_rows(const std::string& mode, int64_t n, int64_t k, const at::Tensor& panels,
                     const at::Tensor& ids, bool half) {
  const at::Tensor contiguous = ids.contiguous();
  const int64_t* rows = data_of<int64_t>(contiguous, 1, "ids");
  const Matrix matrix = matrix_of(mode, n, k, panels, std::nullopt);
  const int64_t count = ids.size(0);
  for (int64_t i = 0; i < count; ++i) {
    TORCH_CHECK_INDEX(rows[i] >= 0 && rows[i] < n, "no row ", rows[i], " of ", n);
  }
  at::Tensor out = at::empty({count, k}, at::kFloat);
  float* to = out.data_ptr<float>();
  for (int64_t i = 0; i < count; ++i) take_row(matrix, rows[i], half, to + i * k);
  return out;
}

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& gain, double eps) {
  const at::Tensor input = x.contiguous();
  const float* data = data_of<float>(input, 2, "x");
  const int64_t n = input.size(1);
  const float* gains = vector_of(gain, n, "gain");
  at::Tensor out = at::empty_like(input);
  float* to = out.data_ptr<float>();
  for (int64_t row = 0; row < input.size(0); ++row) {
    active().rows.rms_norm(data + row * n, gains, to + row * n, static_cast<int>(n),
                           static_cast<float>(eps));
  }
  return out;
}

at::Tensor paged_attention(const at::Tensor& q, const at::Tensor& k_layer,
                           const at::Tensor& v_layer, py::handle metadata, double scale,
                           int64_t window) {
  const at::Tensor queries = q.contiguous();
  const CacheView cache(k_layer, v_layer, false);
  const float* data = data_of<float>(queries, 3, "q");
  const int rows = static_cast<int>(queries.size(0)), heads = static_cast<int>(queries.size(1));
  TORCH_CHECK_VALUE(heads % cache.kv_heads == 0 && queries.size(2) == cache.head_dim, "q ",
                    queries.sizes(), " does not fit the cache ", k_layer.sizes());
  const AttentionMetadataView view(metadata, rows, cache.num_blocks, 1);
  const std::vector<RowTile> tiles = view.tiles(static_cast<int>(heads / cache.kv_heads));
  at::Tensor out = at::empty_like(queries);

  const py::gil_scoped_release release;
  const int dim = static_cast<int>(cache.head_dim), longest = view.view().max_blocks * kBlock;
  const int threads = threads_for(2.0 * rows * heads * dim * longest);
  const size_t own = own_bytes(0, dim, rows);
  thread_local Buffer buffer;
  char* memory = buffer.reserve(own * threads);
  const AttentionCall call{data, out.data_ptr<float>(), heads, static_cast<float>(scale),
                           static_cast<int>(window), view.view(), tiles.data(),
                           static_cast<int>(tiles.size())};
  Team::run(threads, [&](Team& team) {
    active().attention(team, call, cache.layer(0), memory + team.thread() * own);
  });
  return out;
}

}  // namespace
}  // namespace plait

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  const auto release = py::call_guard<py::gil_scoped_release>();
  m.def("isa", &plait::path_name);
  m.def("isas", &plait::path_names);
  m.def("use_isa", &plait::use_isa);
  m.def("operations", &plait::operations);
  m.def("linear", &plait::linear, release);
  m.def("take_rows", &plait::take_rows, release);
  m.def("rms_norm", &plait::rms_norm, release);
  m.def("paged_attention", &plait::paged_attention);
  m.def("pack_segments", &plait::pack_segments);
  m.def("draw_rows", &plait::draw_rows, release);
  m.def("copy_blocks", &plait::copy_blocks, release);
  m.def("move_slots", &plait::move_slots, release);
  plait::bind_stack(m);
}
