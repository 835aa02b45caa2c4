#pragma once

#include <string>

namespace kvferry::test {

// Folders of the tests' own plug-ins, for EngineConfig::plugin_folder: a NIC between the engines of a process, and what
// moves nothing.
std::string nic_fabric_folder();
std::string null_fabric_folder();

}  // namespace kvferry::test
