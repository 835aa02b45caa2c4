// Any bytes as a body, a path or a description of a worker: what is taken can be written again and says the same.

#include <cstdint>

#include "bootstrap/bodies.h"
#include "bootstrap/limits.h"
#include "bootstrap/paths.h"
#include "bootstrap/worker_info.h"
#include "common/check.h"

namespace kvferry::bootstrap {
namespace {

void check_bodies(std::string_view body) {
  const auto registration = parse_registration(body);
  if (registration.ok()) {
    const auto again = parse_registration(format_registration(*registration));
    KVF_CHECK(again.ok() && again->engine_id == registration->engine_id && again->rank == registration->rank);
    KVF_CHECK(again->incarnation == registration->incarnation && again->ttl == registration->ttl);
    // Whatever the directory takes, its own answers can be read.
    Directory directory({});
    if (directory.add("", *registration, TimePoint(std::chrono::hours(1))).ok()) {
      const auto workers = parse_workers(format_workers(directory.workers("")));
      const auto query = parse_query(directory.query(""));
      KVF_CHECK(workers.ok() && workers->size() == 1 && workers->front().engine_id == registration->engine_id);
      KVF_CHECK(query.ok() && query->size() == 1 && query->front().addr == registration->addr);
    }
  }
  const auto name = parse_worker_name(body);
  if (name.ok()) KVF_CHECK(parse_worker_name(format_worker_name(*name)).ok());
  static_cast<void>(parse_removal(body).ok());
  static_cast<void>(parse_workers(body).ok());
  static_cast<void>(parse_query(body).ok());
}

void check_path(std::string_view text) {
  const auto path = parse_path(text);
  if (!path) return;
  KVF_CHECK(valid_namespace(path->space));
  if (path->endpoint != Endpoint::parcel) return;
  KVF_CHECK(!path->id.empty() && path->id.size() <= kMaxTransferId);
  KVF_CHECK(percent_decode(percent_encode(path->id)) == path->id);
}

void check_worker(std::string_view bytes) {
  const auto worker = parse_worker(bytes);
  if (!worker.ok()) return;
  KVF_CHECK(parse_worker(to_protobuf(*worker)).ok());
  KVF_CHECK(to_json(*worker).ends_with("]}"));
}

}  // namespace
}  // namespace kvferry::bootstrap

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kvferry::bootstrap;
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  check_bodies(bytes);
  check_path(bytes);
  check_worker(bytes);
  return 0;
}
