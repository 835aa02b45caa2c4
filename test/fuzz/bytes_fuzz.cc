#include <cstddef>
#include <cstdint>
#include <span>

#include "common/bytes.h"
#include "common/check.h"

// The input is a program for a ByteReader: each byte picks the next read, from the same bytes. Whatever is read lies
// within them, and a reader that has failed gives nothing any more.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const kvferry::ByteSpan input = std::as_bytes(std::span(data, size));
  kvferry::ByteReader reader(input);
  for (const std::byte step : input) {
    const bool ok_before = reader.ok();
    const size_t rest_before = reader.rest().size();
    const auto argument = static_cast<size_t>(step) >> 2;
    size_t taken = 0;
    switch (static_cast<unsigned>(step) & 3) {
      case 0:
        taken = reader.get<uint8_t>() * size_t{0} + 1;
        break;
      case 1:
        taken = reader.get<uint32_t>() * size_t{0} + 4;
        break;
      case 2:
        taken = reader.get_bytes(argument).size();
        break;
      default:
        taken = 4 + reader.get_string(argument).size();
        KVF_CHECK(!reader.ok() || taken <= 4 + argument);
    }
    KVF_CHECK(ok_before || !reader.ok());
    KVF_CHECK(reader.ok() ? rest_before == reader.rest().size() + taken : reader.at_end());
  }
  return 0;
}
