#include "bind_policy.h"

#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include <vector>

#include "auto_policy.h"

namespace py = pybind11;

namespace specdec {
namespace {

py::tuple branch(AutoPolicy& self, std::int32_t depth, const std::vector<float>& probabilities,
                 std::int32_t n) {
  const bool known = !probabilities.empty();
  const auto count = known ? static_cast<std::int32_t>(probabilities.size()) : n;
  const Branch result = self.branch(depth, known ? probabilities.data() : nullptr, count);
  return py::make_tuple(result.nodes, result.go_on);
}

}  // namespace

void bind_policy(py::module_& m) {
  py::class_<StepCosts>(m, "StepCosts")
      .def(py::init<std::int32_t>(), py::arg("max_rows"))
      .def("add_target", &StepCosts::add_target, py::arg("rows"), py::arg("seconds"))
      .def("add_draft", &StepCosts::add_draft, py::arg("seconds"))
      .def("pause", &StepCosts::pause)
      .def("move_behind", &StepCosts::move_behind, py::arg("length"))
      .def("target", &StepCosts::target, py::arg("rows"))
      .def_property_readonly("draft", &StepCosts::draft);

  py::class_<Company>(m, "Company")
      .def(py::init<>())
      .def("begin", &Company::begin, py::arg("sequences"), py::arg("gain"))
      .def("add", &Company::add, py::arg("depth"), py::arg("drafting"))
      .def("at", &Company::at, py::arg("depth"))
      .def_property_readonly("round", [](const Company& self) {
        switch (self.round()) {
          case Company::Round::look: return "look";
          case Company::Round::plain: return "plain";
          default: return "free";
        }
      });

  py::class_<AutoPolicy>(m, "AutoPolicy")
      .def(py::init<std::int32_t, std::int32_t>(), py::arg("longest"), py::arg("rows"))
      .def("start_stream", &AutoPolicy::start_stream)
      .def("move_behind", &AutoPolicy::move_behind, py::arg("length"))
      .def("set_width", &AutoPolicy::set_width, py::arg("width"))
      .def(
          "set_shared",
          [](AutoPolicy& self, const StepCosts& target, const StepCosts* draft, const Company& company,
             std::int32_t sequences) {
            self.set_shared(SharedCosts{&target, draft, &company, sequences});
          },
          py::arg("target"), py::arg("draft"), py::arg("company"), py::arg("sequences"),
          py::keep_alive<1, 2>(), py::keep_alive<1, 3>(), py::keep_alive<1, 4>())
      .def(
          "gain",
          [](AutoPolicy& self, std::int32_t depth, std::int32_t nodes, std::int32_t width) {
            return self.gain({depth, nodes, width});
          },
          py::arg("depth"), py::arg("nodes"), py::arg("width"))
      .def(
          "begin",
          [](AutoPolicy& self, std::int32_t depth, std::int32_t nodes, std::int32_t width,
             bool blocks, float lookup) -> py::tuple {
            const DraftPlan plan = self.begin({depth, nodes, width, blocks, lookup});
            if (lookup > 0) return py::make_tuple(plan.depth, plan.width, plan.lookup);
            return py::make_tuple(plan.depth, plan.width, plan.probabilities);
          },
          py::arg("depth"), py::arg("nodes"), py::arg("width"), py::arg("blocks") = false,
          py::arg("lookup") = 0.0f)
      .def("branch", &branch, py::arg("depth"), py::arg("probabilities"), py::arg("n") = 1)
      .def(
          "observe",
          [](AutoPolicy& self, std::int32_t drafted, std::int32_t rows, std::int32_t accepted,
             std::int32_t chosen, bool all_compared, double draft_seconds, double target_seconds,
             const std::vector<double>& by_token, const std::vector<double>& by_block) {
            const bool block = !by_token.empty();
            self.observe({drafted, rows, accepted, chosen, all_compared, draft_seconds,
                          target_seconds, block ? by_token.data() : nullptr,
                          block ? by_block.data() : nullptr});
          },
          py::kw_only(), py::arg("drafted"), py::arg("rows"), py::arg("accepted"),
          py::arg("chosen"), py::arg("all_compared"), py::arg("draft_seconds"),
          py::arg("target_seconds"), py::arg("by_token") = std::vector<double>{},
          py::arg("by_block") = std::vector<double>{})
      .def("seconds", &AutoPolicy::seconds, py::arg("rows"))
      .def_property_readonly("expected_rate", &AutoPolicy::expected_rate)
      .def_property_readonly("plain_rate", &AutoPolicy::plain_rate);
}

}  // namespace specdec
