#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <sstream>
#include <thread>

#include "engine/bench/controls.h"
#include "engine/bench/measuring.h"
#include "engine/bench/parcel_target.h"
#include "engine/bench/placement.h"
#include "engine/bench/raw.h"
#include "engine/bench/remote.h"

// Control figures of parcels: one small one, many small ones, their ends, and what a digest costs.

namespace kvferry::bench {
namespace {

constexpr uint64_t kPool = uint64_t{256} << 20;

// A decoder's rank: a cache in a pool of its own, and the owner that it reads from.
class ParcelClient {
 public:
  static Result<std::unique_ptr<ParcelClient>> create(const std::string& fabric, const std::string& owner,
                                                      uint64_t bytes) {
    auto client = std::make_unique<ParcelClient>();
    KVF_ASSIGN_OR_RETURN(client->pool_, Pool::create(bytes));
    KVF_ASSIGN_OR_RETURN(client->engine_, Engine::create(client_config(fabric)));
    KVF_ASSIGN_OR_RETURN(client->region_,
                         client->engine_->register_memory(client->pool_->base(), bytes, MemoryKind::host, kPrivate));
    client->parcels_ = std::make_unique<Parcels>(*client->engine_);
    client->pages_ = static_cast<uint32_t>(bytes / kParcelPage);
    KVF_RETURN_IF_ERROR(client->parcels_->set_cache("bench-reader", page_layout(client->region_.id(), client->pages_)));
    KVF_ASSIGN_OR_RETURN(client->owner_, client->engine_->peer(owner));
    KVF_RETURN_IF_ERROR(client->owner_.connect(std::chrono::seconds(10)));
    return client;
  }

  ParcelReadRequest request(const std::string& id, uint32_t pages) {
    ParcelReadRequest made;
    made.transfer_id = id;
    made.owners = {owner_};
    made.group_instance_id = "bench";
    made.fingerprint = "bench";
    made.end_token = pages * 16;
    BlockList& list = made.blocks.emplace_back();
    for (uint32_t i = 0; i < pages; ++i) list.ids.push_back(next_page_++ % pages_);
    return made;
  }
  Result<ParcelReading> start(const std::string& id, uint32_t pages) { return parcels_->read(request(id, pages)); }
  // The microseconds that one took.
  Result<double> read(const std::string& id, uint32_t pages) {
    Status status;
    const double took = timed([&] { status = parcels_->read_and_wait(request(id, pages)).status; });
    KVF_RETURN_IF_ERROR(std::move(status));
    return took;
  }

 private:
  std::unique_ptr<Pool> pool_;
  std::unique_ptr<Engine> engine_;
  Region region_;
  std::unique_ptr<Parcels> parcels_;
  PeerRef owner_;
  uint32_t pages_ = 0;
  uint32_t next_page_ = 0;
};

Result<std::vector<double>> numbers_of(Remote& remote, const std::string& question) {
  KVF_ASSIGN_OR_RETURN(const std::string answer, remote.ask(question));
  std::istringstream words(answer);
  std::vector<double> numbers;
  for (double number = 0; words >> number;) numbers.push_back(number);
  return numbers;
}

// Claim, read and settle one page; a raw ping-pong between any two of them.
Status measure_one(Remote& remote, const std::string& owner, std::vector<Figure>& figures) {
  constexpr int kSamples = 1000;
  KVF_ASSIGN_OR_RETURN(const UniqueFd raw, dial(remote.raw_address()));
  const Apart apart(remote.pid());
  for (const std::string fabric : {"tcp", "local"}) {
    KVF_ASSIGN_OR_RETURN(const auto client, ParcelClient::create(fabric, owner, uint64_t{16} << 20));
    KVF_RETURN_IF_ERROR(remote.tell(fmt::format("parcel publish {}-one- {} 1 0", fabric, kSamples)));
    Samples samples;
    Samples pings;
    for (int i = 0; i < kSamples; ++i) {
      KVF_ASSIGN_OR_RETURN(const double took, client->read(fmt::format("{}-one-{}", fabric, i), 1));
      samples.add(took);
      Status status;
      pings.add(timed([&] { status = raw_ping(raw.get()); }));
      KVF_RETURN_IF_ERROR(std::move(status));
    }
    const double ping = pings.median();
    const double goal = std::max(ping * (fabric == "tcp" ? 1.5 : 1.6), ping + 10);
    figures.push_back({fmt::format("claim, 4 KiB and settle, {}", fabric), samples.median(), "us",
                       at_most(samples.median(), goal, "us")});
    figures.push_back({fmt::format("the same, p99, {}", fabric), samples.percentile(0.99), "us", {}});
    figures.push_back({fmt::format("raw ping-pong beside it, {}", fabric), ping, "us", {}});
  }
  return {};
}

// One reader's part of the flow: parcels first, first + step, ..., a few at a time.
Status read_flow(const std::string& owner, const std::string& prefix, size_t first, size_t step, size_t count,
                 size_t window) {
  KVF_ASSIGN_OR_RETURN(const auto client, ParcelClient::create("tcp", owner, uint64_t{16} << 20));
  std::vector<ParcelReading> under_way;
  size_t next = first;
  for (size_t done = 0; next < count || done < under_way.size();) {
    for (; next < count && under_way.size() - done < window; next += step) {
      KVF_ASSIGN_OR_RETURN(ParcelReading reading, client->start(prefix + std::to_string(next), 1));
      under_way.push_back(std::move(reading));
    }
    KVF_RETURN_IF_ERROR(under_way[done++].wait().status);
  }
  return {};
}

Status measure_flow(Remote& remote, const std::string& owner, std::vector<Figure>& figures) {
  constexpr size_t kReaders = 4;
  constexpr size_t kClaims = 64;  // in flight, of all readers together
  constexpr size_t kParcels = 60'000;
  Status failed[kReaders];
  std::vector<std::thread> readers;
  for (size_t i = 0; i < kReaders; ++i)
    readers.emplace_back([&, i] { failed[i] = read_flow(owner, "flow", i, kReaders, kParcels, kClaims / kReaders); });
  auto took = numbers_of(remote, fmt::format("parcel flow flow {} 1024", kParcels));
  for (std::thread& reader : readers) reader.join();
  for (Status& status : failed) KVF_RETURN_IF_ERROR(std::move(status));
  if (!took) return std::move(took).error();
  const double rate = kParcels / took->at(0);
  figures.push_back({"parcels of 4 KiB published, read by 4 readers and settled, tcp", rate, "parcels/s",
                     at_least(rate, 20'000, "parcels/s")});
  return {};
}

Status measure_ends(Remote& remote, std::vector<Figure>& figures) {
  KVF_ASSIGN_OR_RETURN(const std::vector<double> release, numbers_of(remote, "parcel release 2000 0"));
  KVF_ASSIGN_OR_RETURN(const std::vector<double> forced, numbers_of(remote, "parcel release 2000 1"));
  KVF_ASSIGN_OR_RETURN(const std::vector<double> expiry, numbers_of(remote, "parcel expiry 500"));
  figures.push_back({"forced release to its event, p50", forced.at(0), "us", {}});
  figures.push_back({"forced release to its event, p99", forced.at(1), "us", at_most(forced.at(1), 1000, "us")});
  figures.push_back({"release without live claims to its event, p50", release.at(0), "us", {}});
  figures.push_back(
      {"release without live claims to its event, p99", release.at(1), "us", at_most(release.at(1), 1000, "us")});
  figures.push_back({"lease's end to its event, p50", expiry.at(0), "us", {}});
  figures.push_back(
      {"lease's end to its event, worst of 500", expiry.at(1), "us", at_most(expiry.at(1), 10'000, "us")});
  return {};
}

// 64 MiB in one parcel, with and without a digest in turns.
Status measure_digest(Remote& remote, const std::string& owner, std::vector<Figure>& figures) {
  constexpr int kSamples = 15;
  constexpr uint32_t kPages = (uint32_t{64} << 20) / kParcelPage;
  for (const std::string fabric : {"tcp", "local"}) {
    KVF_ASSIGN_OR_RETURN(const auto client, ParcelClient::create(fabric, owner, kPool));
    Samples samples[2];
    for (const int digest : {0, 1})
      KVF_RETURN_IF_ERROR(
          remote.tell(fmt::format("parcel publish {}-digest{}- {} {} {}", fabric, digest, kSamples, kPages, digest)));
    for (int i = 0; i < kSamples; ++i)
      for (const int digest : {0, 1}) {
        KVF_ASSIGN_OR_RETURN(const double took, client->read(fmt::format("{}-digest{}-{}", fabric, digest, i), kPages));
        samples[digest].add(took);
      }
    figures.push_back({fmt::format("parcel of 64 MiB, {}", fabric), samples[0].median() / 1000, "ms", {}});
    figures.push_back({fmt::format("the same with a digest, {}", fabric), samples[1].median() / 1000, "ms", {}});
  }
  return {};
}

}  // namespace

Result<std::vector<Figure>> measure_parcels() {
  KVF_ASSIGN_OR_RETURN(Remote remote, Remote::spawn(kPool));
  KVF_ASSIGN_OR_RETURN(const std::string owner, remote.ask("parcel owner"));
  std::vector<Figure> figures;
  KVF_RETURN_IF_ERROR(measure_one(remote, owner, figures));
  KVF_RETURN_IF_ERROR(measure_flow(remote, owner, figures));
  KVF_RETURN_IF_ERROR(measure_ends(remote, figures));
  KVF_RETURN_IF_ERROR(measure_digest(remote, owner, figures));
  return figures;
}

}  // namespace kvferry::bench
