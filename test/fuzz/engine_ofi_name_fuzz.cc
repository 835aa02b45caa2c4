#include <cstddef>
#include <cstdint>
#include <string>

#include "common/check.h"
#include "engine/fabric/ofi/name.h"

// Names come from peers, as text in their hellos and as bytes in letters. Each input is taken as both.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using kvferry::ofi::Name;
  const Name told = Name::parse(std::string(reinterpret_cast<const char*>(data), size));
  KVF_CHECK(Name::parse(told.to_text()).bytes() == told.bytes());

  const Name sent({data, data + size});
  const Name moved = sent.at_host_of(told);
  KVF_CHECK(moved.bytes().size() == sent.bytes().size());
  if (sent.is_wildcard()) KVF_CHECK(sent.is_socket() && moved.is_socket());
  const Name elsewhere = told.at_host_of(sent);
  KVF_CHECK(elsewhere.is_socket() == told.is_socket());
  if (!sent.is_socket()) KVF_CHECK(elsewhere.bytes() == told.bytes());
  return 0;
}
