#pragma once

#include <string>

namespace kvferry::test {

// Where the plug-ins of the tests' own are, for EngineConfig::plugin_folder: a NIC between the engines of a process, and
// a fabric that moves nothing.
std::string nic_fabric_folder();
std::string null_fabric_folder();

}  // namespace kvferry::test
