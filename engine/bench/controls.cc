#include "engine/bench/controls.h"

#include <algorithm>

namespace kvferry::bench {
namespace {

struct Control {
  const char* name;
  Result<std::vector<Figure>> (*measure)();
};

constexpr Control kControls[] = {
    {"contact", measure_contact}, {"notify", measure_notify}, {"register", measure_register},
    {"stopped", measure_stopped}, {"crowd", measure_crowd},   {"fairness", measure_fairness},
    {"parcels", measure_parcels},
};

}  // namespace

std::vector<std::string> control_names() {
  std::vector<std::string> names;
  for (const Control& control : kControls) names.emplace_back(control.name);
  return names;
}

Result<std::vector<Figure>> run_control(const std::string& name) {
  for (const Control& control : kControls)
    if (name == control.name) return control.measure();
  return Error{ErrorCode::invalid_argument, "no control figure \"" + name + "\""};
}

}  // namespace kvferry::bench
