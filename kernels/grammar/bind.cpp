// The Python module plait.kernels._grammar; its signatures are in kernels/_grammar.pyi.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <bit>
#include <cstring>

#include "automaton.h"
#include "determinise.h"
#include "fragments.h"
#include "saturation.h"

namespace py = pybind11;

namespace plait::grammar {
namespace {

// (classes, number of classes, next as int32, accepts, boundaries), as kernels/_grammar.pyi has it.
using DfaParts = std::tuple<py::bytes, int, py::bytes, py::bytes, py::bytes>;

Dfa dfa_of(const DfaParts& parts) {
  Dfa dfa;
  dfa.classes = std::string(std::get<0>(parts));
  dfa.num_classes = std::get<1>(parts);
  const std::string next(std::get<2>(parts));
  dfa.next.resize(next.size() / sizeof(int32_t));
  std::memcpy(dfa.next.data(), next.data(), dfa.next.size() * sizeof(int32_t));
  dfa.accepts = std::string(std::get<3>(parts));
  dfa.boundaries = std::string(std::get<4>(parts));
  const size_t entries = dfa.accepts.size() * static_cast<size_t>(dfa.num_classes);
  if (dfa.classes.size() != 256 || dfa.next.size() != entries ||
      dfa.boundaries.size() != dfa.accepts.size()) {
    throw py::value_error("the parts of an automaton do not fit each other");
  }
  return dfa;
}

std::shared_ptr<Vocabulary> make_vocabulary(std::vector<std::string> spelled, size_t shared) {
  auto vocabulary = std::make_shared<Vocabulary>(std::move(spelled));
  if (shared > 0) vocabulary->fragments = std::make_shared<Fragments>(*vocabulary, shared);
  return vocabulary;
}

size_t num_shared_bytes(const Vocabulary& vocabulary) {
  return vocabulary.fragments ? vocabulary.fragments->num_bytes() : 0;
}

Operation operation_of(const py::tuple& row, const std::vector<DfaParts>& dfas) {
  Operation operation;
  operation.kind = static_cast<Kind>(row[0].cast<int>());
  switch (operation.kind) {
    case Kind::kText:
      operation.text = row[1].cast<std::string>();
      break;
    case Kind::kSet:
      for (char byte : row[1].cast<std::string>()) operation.set.set(static_cast<uint8_t>(byte));
      break;
    case Kind::kSeq:
    case Kind::kChoice:
      operation.items = row[1].cast<std::vector<int>>();
      break;
    case Kind::kRepeat:
      operation.items = {row[1].cast<int>()};
      operation.least = row[2].cast<int>();
      operation.most = row[3].cast<int>();
      break;
    case Kind::kRule:
      operation.items = {row[1].cast<int>()};
      break;
    case Kind::kListed:
      operation.listed = row[1].cast<std::vector<std::string>>();
      break;
    case Kind::kMark:
      operation.mark = row[1].cast<int>();
      break;
    case Kind::kAnyOrder:
      operation.items = row[1].cast<std::vector<int>>();
      operation.flags = row[2].cast<std::string>();
      operation.separator = row[3].cast<int>();
      operation.least = row[4].cast<int>();
      operation.most = row[5].cast<int>();
      break;
    default:
      operation.lexeme = std::make_shared<const Lexeme>(dfa_of(dfas.at(row[1].cast<size_t>())),
                                                  row[2].cast<int>(), row[3].cast<int>());
  }
  return operation;
}

std::unique_ptr<Automaton> make(const std::vector<py::tuple>& rows,
                                const std::vector<DfaParts>& dfas, int root,
                                std::shared_ptr<Vocabulary> vocabulary) {
  std::vector<Operation> operations;
  operations.reserve(rows.size());
  for (const py::tuple& row : rows) operations.push_back(operation_of(row, dfas));
  return std::make_unique<Automaton>(std::move(operations), root, std::move(vocabulary));
}

std::vector<Expression> expressions_of(const std::vector<py::tuple>& rows) {
  std::vector<Expression> expressions;
  for (const py::tuple& row : rows) {
    Expression e;
    e.kind = static_cast<Expression::Kind>(row[0].cast<int>());
    e.items = row[1].cast<std::vector<int>>();
    e.ranges = row[2].cast<std::vector<Range>>();
    e.least = row[3].cast<int>();
    e.most = row[4].cast<int>();
    expressions.push_back(std::move(e));
  }
  return expressions;
}

std::optional<DfaParts> determinise_rows(const std::vector<py::tuple>& rows, bool is_quoted,
                                         int max_states, int64_t max_steps) {
  const auto found = determinise(expressions_of(rows), is_quoted, {max_states, max_steps});
  if (!found) return std::nullopt;
  std::vector<int32_t> next(found->next.begin(), found->next.end());
  const py::bytes table(reinterpret_cast<const char*>(next.data()), next.size() * sizeof(int32_t));
  return DfaParts{py::bytes(found->classes), found->num_classes, table, py::bytes(found->accepts),
                  py::bytes(found->boundaries)};
}

bool is_possible(const DfaParts& parts, int least, int most) {
  return Lexeme(dfa_of(parts), least, most).missing(0, 0) >= 0;
}

// Wrap a method whose first argument is a state: whoever goes on behind a dead byte gets an error.
template <typename Result, typename Self, typename... Args>
auto checked(Result (Self::*method)(int, Args...)) {
  return [method](Automaton& automaton, int state, Args... args) {
    if (state < 0 || state >= automaton.size()) throw py::index_error("there is no such state");
    return (automaton.*method)(state, args...);
  };
}

using Words = py::array_t<int32_t, py::array::c_style>;

// Write the mask to the first words of the row; the others are cleared.
void write_mask(Automaton& automaton, int state, Words& row) {
  if (state < 0 || state >= automaton.size()) throw py::index_error("there is no such state");
  const std::vector<uint32_t>& mask = automaton.mask(state);
  auto out = row.mutable_unchecked<1>();
  for (py::ssize_t i = 0; i < out.shape(0); ++i) {
    out(i) = static_cast<size_t>(i) < mask.size() ? static_cast<int32_t>(mask[i]) : 0;
  }
}

// Return the legal tokens of a state, and the states behind them.
std::pair<py::array_t<int64_t>, py::array_t<int64_t>> successors(Automaton& automaton, int state) {
  if (state < 0 || state >= automaton.size()) throw py::index_error("there is no such state");
  const std::vector<uint32_t> mask = automaton.mask(state);  // a copy: states are added below
  std::vector<int64_t> tokens, targets;
  for (size_t word = 0; word < mask.size(); ++word) {
    for (uint32_t bits = mask[word]; bits; bits &= bits - 1) {
      const int token = static_cast<int>(word * 32) + std::countr_zero(bits);
      tokens.push_back(token);
      targets.push_back(automaton.advance(state, token));
    }
  }
  return {py::array_t<int64_t>(static_cast<py::ssize_t>(tokens.size()), tokens.data()),
          py::array_t<int64_t>(static_cast<py::ssize_t>(targets.size()), targets.data())};
}

using EdgeRow = std::tuple<int, int, int, int>;  // state, kind, value, target; by rising state

std::unique_ptr<Saturation> make_saturation(const std::vector<EdgeRow>& edges, int num_states,
                                            std::vector<int> starts, std::vector<int> finals,
                                            const std::vector<std::string>& sets, int root,
                                            const std::vector<int>& byte_costs,
                                            std::shared_ptr<Vocabulary> vocabulary) {
  Network network;
  network.first.assign(static_cast<size_t>(num_states) + 1, 0);
  for (const auto& [state, kind, value, target] : edges) {
    ++network.first.at(static_cast<size_t>(state) + 1);
    network.edges.push_back({kind, value, target});
  }
  for (int i = 0; i < num_states; ++i) network.first[i + 1] += network.first[i];
  for (const std::string& members : sets) {
    network.sets.emplace_back();
    for (char byte : members) network.sets.back().set(static_cast<uint8_t>(byte));
  }
  network.starts = std::move(starts);
  network.finals = std::move(finals);
  network.root = root;
  if (byte_costs.size() != 256) throw py::value_error("a byte has one of 256 values");
  return std::make_unique<Saturation>(std::move(network), byte_costs, std::move(vocabulary));
}

std::pair<int, std::vector<std::pair<int, int>>> fill(Saturation& saturation,
                                                      const std::vector<int>& leave,
                                                      const std::vector<int>& loops,
                                                      size_t max_items) {
  if (loops.size() != leave.size() + 1) throw py::value_error("a position has one loop");
  bool has_tokens = false;
  for (size_t i = 0; i < loops.size(); ++i) {
    const int each = i < leave.size() ? leave[i] : 0;
    if (each < 0 || each > Saturation::kTokenOrNothing) throw py::value_error("no such byte");
    const bool is_left_by_token = each > Saturation::kAnyByte;
    if (is_left_by_token && loops[i]) throw py::value_error("a position has tokens once");
    has_tokens |= is_left_by_token || loops[i] == Saturation::kTokens;
  }
  if (has_tokens && !saturation.has_tokens()) throw py::value_error("there is no vocabulary");
  std::vector<std::pair<int, int>> filling;
  const int found = saturation.fill(leave, loops, max_items, filling);
  return {found, std::move(filling)};
}

}  // namespace
}  // namespace plait::grammar

PYBIND11_MODULE(_grammar, m) {
  using namespace plait::grammar;
  py::register_exception<TooLarge>(m, "TooLargeError", PyExc_ValueError);
  py::class_<Vocabulary, std::shared_ptr<Vocabulary>>(m, "Vocabulary")
      .def(py::init(&make_vocabulary), py::arg("spelled"), py::arg("shared_bytes") = 0)
      .def_property_readonly("num_shared_bytes", &num_shared_bytes);
  py::class_<Automaton>(m, "Automaton")
      .def(py::init(&make), py::arg("operations"), py::arg("dfas"), py::arg("root"),
           py::arg("vocabulary"))
      .def_property_readonly("start", &Automaton::start)
      .def_property_readonly("num_bytes", &Automaton::num_bytes)
      .def("step", checked(&Automaton::step))
      .def("advance", checked(&Automaton::advance))
      .def("write_mask", &write_mask)
      .def("successors", &successors)
      .def("is_accepting", checked(&Automaton::is_accepting))
      .def("is_final", checked(&Automaton::is_final))
      .def("num_closing", checked(&Automaton::num_closing))
      .def("closing_tokens", checked(&Automaton::closing_tokens))
      .def("forced", checked(&Automaton::forced))
      .def("marks", checked(&Automaton::marks));
  py::class_<Saturation>(m, "Saturation")
      .def(py::init(&make_saturation), py::arg("edges"), py::arg("num_states"), py::arg("starts"),
           py::arg("finals"), py::arg("sets"), py::arg("root"), py::arg("byte_costs"),
           py::arg("vocabulary") = nullptr)
      .def("fill", &fill, py::arg("leave"), py::arg("loops"), py::arg("max_items"));
  m.def("determinise", &determinise_rows, py::arg("expressions"), py::arg("is_quoted"),
        py::arg("max_states"), py::arg("max_steps"));
  m.def("is_possible", &is_possible);
}
