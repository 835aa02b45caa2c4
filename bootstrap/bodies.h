#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "bootstrap/directory.h"
#include "common/result.h"

namespace kvferry::bootstrap {

// The JSON that workers and servers exchange, both ways. docs/bootstrap.md shows examples. Unknown members are ignored;
// everything wrong is invalid_argument with the member's name.

// {"engine_id","dp_rank","tp_rank","pp_rank","addr"} of vLLM, and ours: "http","incarnation","age_ms","ttl_ms".
Result<Registration> parse_registration(std::string_view body);
std::string format_registration(const Registration& registration);

// {"engine_id","dp_rank","tp_rank","pp_rank","incarnation"} of a heartbeat.
Result<WorkerName> parse_worker_name(std::string_view body);
std::string format_worker_name(const WorkerName& name);

// The same for DELETE /register, where the ranks may be missing, all together: then the whole engine is meant.
struct Removal {
  std::string engine_id;
  std::optional<Rank> rank;
  uint64_t incarnation = 0;
};
Result<Removal> parse_removal(std::string_view body);

// {"workers":[{...registration without ttl and age...}]}: the answer to GET /v1/workers.
std::string format_workers(const std::vector<const Registration*>& workers);
Result<std::vector<Registration>> parse_workers(std::string_view body);

// vLLM's answer to GET /query, as the workers that it names.
Result<std::vector<Registration>> parse_query(std::string_view body);

}  // namespace kvferry::bootstrap
