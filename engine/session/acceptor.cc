#include "engine/session/acceptor.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <utility>

#include "engine/io/address.h"

namespace kvferry {

// A connection until its preface is whole.
class Acceptor::Pending final : public StreamHandler {
 public:
  Pending(Acceptor& acceptor, std::unique_ptr<Stream> stream, uint64_t number)
      : acceptor_(acceptor),
        stream_(std::move(stream)),
        host_(network_of(stream_->peer_address())),
        number_(number),
        expiry_(acceptor.loop_) {
    stream_->set_handler(this);
    stream_->want(true, false);
    expiry_.arm(after(acceptor.loop_.now(), acceptor.options_.patience), [this] {
      acceptor_.refuse(*this, Error{ErrorCode::deadline_exceeded, "connection that says nothing"});
    });
  }
  ~Pending() override {
    if (stream_) stream_->set_handler(nullptr);
  }

  const Stream& stream() const { return *stream_; }
  uint64_t number() const { return number_; }
  const std::string& host() const { return host_; }
  // It is destroyed in a later turn; nothing happens to it until then.
  void stop() {
    expiry_.cancel();
    if (stream_) stream_->set_handler(nullptr);
  }

 private:
  void on_stream_ready(bool, bool) override {
    // Never a byte more than the preface: what follows belongs to whoever takes the stream.
    const size_t wanted = is_lane_ ? Preface::kBytes + Preface::kLaneBytes : Preface::kBytes;
    const iovec room{bytes_.data() + filled_, wanted - filled_};
    auto count = stream_->read({&room, 1});
    if (!count) return acceptor_.refuse(*this, count.error());
    filled_ += *count;
    if (filled_ < wanted) return;
    if (!is_lane_) {
      auto preface = decode_preface(ByteSpan(bytes_).first(Preface::kBytes));
      if (!preface) return acceptor_.refuse(*this, speaks_tls() ? refuse_tls() : preface.error());
      is_lane_ = preface->is_lane;
      if (is_lane_) return on_stream_ready(true, false);
      return hand_over([&](std::unique_ptr<Stream> stream) { acceptor_.session_came_(std::move(stream)); });
    }
    auto lane = decode_lane_preface(ByteSpan(bytes_).subspan(Preface::kBytes));
    if (!lane) return acceptor_.refuse(*this, lane.error());
    hand_over([&](std::unique_ptr<Stream> stream) { acceptor_.lane_came_(std::move(stream), *lane); });
  }

  // A handshake record of any version of TLS.
  bool speaks_tls() const { return bytes_[0] == std::byte{22} && bytes_[1] == std::byte{3}; }
  Error refuse_tls() {
    const std::string& words = acceptor_.options_.plain_refusal;
    const iovec answer{const_cast<char*>(words.data()), words.size()};
    [[maybe_unused]] const auto ignored = stream_->write({&answer, 1});
    return {ErrorCode::permission_denied, "it begins with TLS, and this engine's auth mode is open"};
  }

  template <class Take>
  void hand_over(Take take) {
    stream_->set_handler(nullptr);
    std::unique_ptr<Stream> stream = std::move(stream_);
    acceptor_.settled(*this);
    take(std::move(stream));
  }

  Acceptor& acceptor_;
  std::unique_ptr<Stream> stream_;
  const std::string host_;
  const uint64_t number_;
  Timer expiry_;
  std::array<std::byte, Preface::kBytes + Preface::kLaneBytes> bytes_{};
  size_t filled_ = 0;
  bool is_lane_ = false;
};

Acceptor::Acceptor(Loop& loop, Options options, Complaints& complaints, Counter& strangers, SessionCame session_came,
                   LaneCame lane_came)
    : loop_(loop),
      options_(std::move(options)),
      complaints_(complaints),
      strangers_(strangers),
      session_came_(std::move(session_came)),
      lane_came_(std::move(lane_came)) {}

Acceptor::~Acceptor() = default;

Status Acceptor::listen(Network& network, const Address& address) {
  KVF_ASSIGN_OR_RETURN(
      listener_, network.listen(address, [this](std::unique_ptr<Stream> stream) { accepted(std::move(stream)); }));
  return {};
}

Result<std::shared_ptr<const void>> Acceptor::find_place(const std::string& address) {
  rlimit descriptors{};
  size_t limit = options_.max_connections;
  if (limit == 0 && ::getrlimit(RLIMIT_NOFILE, &descriptors) == 0)
    limit = static_cast<size_t>(descriptors.rlim_cur) / 4 * 3;
  const std::string host = network_of(address);
  if (census_->all >= limit)
    return Error{ErrorCode::resource_exhausted, fmt::format("max_connections ({}) are open", limit)};
  if (const auto found = census_->by_host.find(host); found != census_->by_host.end() && found->second >= limit / 4 * 3)
    return Error{ErrorCode::resource_exhausted,
                 fmt::format("three quarters of max_connections ({}) are open with {}", limit, host)};
  ++census_->all;
  ++census_->by_host[host];
  return std::shared_ptr<const void>(census_.get(), [census = census_, host](const void*) {
    --census->all;
    if (const auto found = census->by_host.find(host); --found->second == 0) census->by_host.erase(found);
  });
}

void Acceptor::accepted(std::unique_ptr<Stream> stream) {
  auto place = find_place(stream->peer_address());
  if (!place) {
    strangers_.add();
    return complaints_.note(stream->peer_address(), place.error());
  }
  stream->hold(std::move(*place));
  if (pending_.size() >= options_.max_pending) drop_one();
  const uint64_t number = next_number_++;
  pending_.emplace(number, std::make_shared<Pending>(*this, std::move(stream), number));
}

void Acceptor::drop_one() {
  std::unordered_map<std::string, size_t> by_host;
  for (const auto& [number, pending] : pending_) ++by_host[pending->host()];
  const auto most = std::max_element(by_host.begin(), by_host.end(),
                                     [](const auto& a, const auto& b) { return a.second < b.second; });
  const auto oldest = std::find_if(pending_.begin(), pending_.end(),
                                   [&](const auto& entry) { return entry.second->host() == most->first; });
  refuse(*oldest->second,
         Error{ErrorCode::resource_exhausted,
               fmt::format("max_pending ({}) connections have not said what they are", options_.max_pending)});
}

// Called from within the pending connection: it is destroyed in a later turn.
void Acceptor::settled(Pending& pending) {
  pending.stop();
  auto entry = pending_.extract(pending.number());
  if (!entry.empty()) loop_.defer([keep = std::move(entry.mapped())] {});
}

void Acceptor::refuse(Pending& pending, const Error& error) {
  strangers_.add();
  complaints_.note(pending.stream().peer_address(), error);
  settled(pending);
}

}  // namespace kvferry
