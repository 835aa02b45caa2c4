#pragma once

#include <cstdint>
#include <string>

#include "common/result.h"

namespace kvferry::bootstrap {

constexpr uint16_t kDefaultPort = 8998;
constexpr const char* kPortVariable = "VLLM_MOONCAKE_BOOTSTRAP_PORT";

// base + dp_rank * tp_size + tp_rank: where the server of a worker of pipeline rank 0 listens. Other pipeline ranks
// take any free port.
Result<uint16_t> port_of_worker(uint16_t base, uint32_t dp_rank, uint32_t tp_size, uint32_t tp_rank);

// Who listens on a TCP port of this host, for an error message: "pid 17 (python3 -m vllm ...)", or why that cannot be
// said. `proc` is where procfs is mounted.
std::string port_holder(uint16_t port, const std::string& proc = "/proc");

}  // namespace kvferry::bootstrap
