#include "proxy/release.h"

#include <algorithm>

namespace kvferry::proxy {
namespace {

namespace asio = boost::asio;
constexpr Duration kFirstRetry = std::chrono::milliseconds(50);
constexpr Duration kLongestRetry = std::chrono::seconds(5);
constexpr Duration kPingTimeout = std::chrono::seconds(5);

}  // namespace

struct HeldParcel::Record {
  std::shared_ptr<Backend> prefiller;
  std::shared_ptr<Backend> decoder;
  Handover handover;
  std::string authorization;
  TimePoint since{};
  bool answered = false;
  std::list<const Record*>::iterator pinned;
};

HeldParcel::HeldParcel() = default;
HeldParcel::~HeldParcel() {
  release();
}

HeldParcel::HeldParcel(Owner owner, std::unique_ptr<Record> record)
    : owner_(std::move(owner)), record_(std::move(record)) {}

HeldParcel::HeldParcel(HeldParcel&& other) noexcept = default;

HeldParcel& HeldParcel::operator=(HeldParcel&& other) noexcept {
  if (this != &other) {
    release();
    owner_ = other.owner_;
    record_ = std::move(other.record_);
  }
  return *this;
}

void HeldParcel::answered(const Handover& handover) {
  if (!record_) return;
  record_->handover = handover;
  record_->answered = true;
}

void HeldParcel::told(std::shared_ptr<Backend> decoder) {
  if (record_) record_->decoder = std::move(decoder);
}

void HeldParcel::settled() {
  const auto record = std::move(record_);
  if (!record || !*owner_) return;
  --record->prefiller->parcels;
  (*owner_)->pinned_.erase(record->pinned);
}

void HeldParcel::release() {
  auto record = std::move(record_);
  if (record && *owner_) (*owner_)->start(std::move(record));
}

struct Releases::Job {
  std::unique_ptr<HeldParcel::Record> record;
};

Releases::Releases(asio::io_context& loop, Background& background, http::Deadlines& deadlines, const Backends& backends,
                   bootstrap::Client& bootstrap, std::shared_ptr<Logger> log, Config config)
    : loop_(loop),
      background_(background),
      deadlines_(deadlines),
      backends_(backends),
      bootstrap_(bootstrap),
      log_(std::move(log)),
      config_(std::move(config)),
      self_(std::make_shared<Releases*>(this)) {}

Releases::~Releases() {
  *self_ = nullptr;
}

HeldParcel Releases::hold(std::shared_ptr<Backend> prefiller, std::string transfer_id, std::string authorization) {
  auto record = std::make_unique<HeldParcel::Record>();
  record->prefiller = std::move(prefiller);
  record->handover.transfer_id = std::move(transfer_id);
  record->authorization = std::move(authorization);
  record->since = deadlines_.now();
  record->pinned = pinned_.insert(pinned_.end(), record.get());
  ++record->prefiller->parcels;
  return HeldParcel(self_, std::move(record));
}

ReleaseCounts Releases::counts() const {
  ReleaseCounts counts{pinned_.size(), releasing_, Duration(0), released_, given_up_};
  if (!pinned_.empty()) counts.oldest = deadlines_.now() - pinned_.front()->since;
  return counts;
}

std::vector<PinnedParcel> Releases::pinned(size_t limit) const {
  std::vector<PinnedParcel> list;
  for (const HeldParcel::Record* record : pinned_) {
    if (list.size() == limit) break;
    list.push_back({record->handover.transfer_id, record->prefiller->name,
                    record->decoder ? record->decoder->name : std::string(), deadlines_.now() - record->since});
  }
  return list;
}

void Releases::start(std::unique_ptr<HeldParcel::Record> record) {
  ++releasing_;
  auto job = std::make_shared<Job>(Job{std::move(record)});
  background_.run(run(std::move(job)));
}

asio::awaitable<void> Releases::run(std::shared_ptr<Job> job) {
  const HeldParcel::Record& record = *job->record;
  const TimePoint end = after(record.since, config_.lease);
  Duration pause = kFirstRetry;
  bool done = co_await attempt(record);
  bool going_on = true;
  while (!done && going_on && deadlines_.now() < end) {
    going_on = co_await background_.sleep(pause);
    if (!going_on) break;
    pause = std::min(pause * 2, kLongestRetry);
    done = co_await attempt(record);
  }
  done ? ++released_ : ++given_up_;
  if (!done)
    log_->warning("parcel {} of {} was not released {}", record.handover.transfer_id, record.prefiller->name,
                  going_on ? "in its lease" : "before this proxy ended");
  --releasing_;
  --record.prefiller->parcels;
  pinned_.erase(record.pinned);
}

asio::awaitable<bool> Releases::attempt(const HeldParcel::Record& record) {
  Backend& prefiller = *record.prefiller;
  if (config_.dialect == Dialect::lmcache) co_return true;
  const bool by_delete =
      config_.dialect != Dialect::nixl && prefiller.bootstrap && prefiller.release_face != ReleaseFace::none;
  if (by_delete) {
    const auto answer = co_await bootstrap_.release(*prefiller.bootstrap, record.handover.transfer_id, true);
    if (answer.ok()) {
      prefiller.release_face = ReleaseFace::parcels;
      co_return *answer != bootstrap::ReleaseState::pending;
    }
    if (answer.error().code != ErrorCode::not_found) {
      log_->debug("release of {} failed: {}", record.handover.transfer_id, answer.error().to_string());
      co_return false;
    }
    prefiller.release_face = ReleaseFace::none;
  }
  // Without an answer the closed connection made vLLM abort the request, and nothing is pinned.
  if (!record.answered) co_return true;
  co_return co_await ping(record);
}

std::shared_ptr<Backend> Releases::ping_target(const HeldParcel::Record& record) const {
  const TimePoint now = deadlines_.now();
  if (record.decoder && record.decoder->usable(now)) return record.decoder;
  const auto& all = backends_.of(Role::decode);
  const auto found = std::find_if(all.begin(), all.end(), [&](const auto& backend) { return backend->usable(now); });
  if (found != all.end()) return *found;
  return all.empty() ? nullptr : all.front();
}

asio::awaitable<bool> Releases::ping(const HeldParcel::Record& record) {
  const auto target = ping_target(record);
  const std::string params = decode_params(config_.dialect, record.handover);
  if (!target || params.empty()) co_return params.empty();
  http::Fetch fetch;
  fetch.method = "POST";
  fetch.url = target->url;
  fetch.target = "/v1/completions";
  fetch.headers.add("Content-Type", "application/json");
  if (!config_.api_key.empty()) {
    fetch.headers.add("Authorization", "Bearer " + config_.api_key);
  } else if (!record.authorization.empty()) {
    fetch.headers.add("Authorization", record.authorization);
  }
  fetch.body = release_ping_body(record.handover.transfer_id, params);
  fetch.timeout = kPingTimeout;
  const auto answer = co_await http::fetch(loop_, deadlines_, std::move(fetch));
  if (!answer.ok()) co_return false;
  // Refused by name is what was wanted; 401 and 403 never reach the connector, 429 and 5xx may be tried again.
  const int status = answer->head.status;
  co_return status >= 200 && status < 500 && status != 401 && status != 403 && status != 429;
}

}  // namespace kvferry::proxy
