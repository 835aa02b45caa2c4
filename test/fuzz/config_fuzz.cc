#include <cstddef>
#include <cstdint>
#include <string>

#include "common/check.h"
#include "common/config.h"

// Durations, sizes and lists also come in HTTP queries, so from strangers.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  if (const auto duration = kvferry::parse_duration(text)) KVF_CHECK(duration->count() >= 0);
  if (const auto bytes = kvferry::parse_size(text)) KVF_CHECK(*bytes <= uint64_t{1} << 60);
  for (const auto& part : kvferry::split_list(text)) KVF_CHECK(!part.empty() && part.find(',') == std::string::npos);
  return 0;
}
