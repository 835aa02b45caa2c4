#include "engine/fabric/plugin_abi.h"

// A plug-in that was built for another plug-in interface than the engine's: nothing of its table may be used but the
// interface's number. It goes by the name of ucx, because engines know no other.

namespace {

constexpr kvf_fabric_table table_of_another() {
  kvf_fabric_table table{};
  table.abi = KVF_FABRIC_ABI + 1;
  return table;
}
constexpr kvf_fabric_table kTable = table_of_another();

}  // namespace

extern "C" __attribute__((visibility("default"))) const kvf_fabric_table* kvferry_fabric_v1() {
  return &kTable;
}
