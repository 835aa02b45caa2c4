#pragma once

#include <string>

namespace kvferry::ucx {

// The port of an RDMA device that has an interface, as UCX names it ("mlx5_0:1"); empty where none has it. `sys`: where
// the kernel's folder of that name is.
std::string rdma_port_of(const std::string& interface, const std::string& sys = "/sys");

// Of the interface that has this numeric address.
std::string rdma_port_at(const std::string& host);

}  // namespace kvferry::ucx
