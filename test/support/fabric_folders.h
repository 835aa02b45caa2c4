#pragma once

#include <string>

namespace kvferry::test {

// Folders of the tests' own plug-ins, for EngineConfig::plugin_folder: a NIC between the engines of a process, what
// moves nothing, and what was built for another plug-in interface.
std::string nic_fabric_folder();
std::string null_fabric_folder();
std::string other_abi_folder();

}  // namespace kvferry::test
