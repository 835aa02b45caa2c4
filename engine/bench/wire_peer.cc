#include "engine/bench/wire_peer.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>

#include "common/clock.h"
#include "common/random.h"
#include "engine/fabric/tcp/wire.h"
#include "engine/session/preface.h"

namespace kvferry::bench {
namespace {

// One frame off the front of `bytes`, if it is there whole.
Result<bool> take_frame(std::string& bytes, proto::Frame& frame) {
  uint32_t length = 0;
  if (bytes.size() < sizeof length) return false;
  std::memcpy(&length, bytes.data(), sizeof length);
  if (bytes.size() - sizeof length < length) return false;
  if (!frame.ParseFromArray(bytes.data() + sizeof length, static_cast<int>(length)))
    return Error{ErrorCode::protocol, "the engine sent a frame that cannot be parsed"};
  bytes.erase(0, sizeof length + length);
  return true;
}

}  // namespace

Result<WirePeer> WirePeer::connect(const std::string& address, const std::string& engine_id) {
  WirePeer peer;
  peer.address_ = address;
  KVF_ASSIGN_OR_RETURN(peer.fd_, dial(address));
  const std::string preface = encode_session_preface();
  KVF_RETURN_IF_ERROR(send_all(peer.fd_.get(), preface.data(), preface.size()));
  proto::Frame frame;
  proto::Hello& hello = *frame.mutable_hello();
  hello.set_version_min(1);
  hello.set_version_max(1);
  hello.set_engine_id(engine_id);
  hello.set_incarnation(SystemRandom().next());
  hello.set_heartbeat_ms(1000);
  KVF_RETURN_IF_ERROR(peer.send(frame));
  for (bool told = false; !told;) {
    KVF_ASSIGN_OR_RETURN(const proto::Frame answer, peer.receive());
    if (answer.has_refusal()) return Error{ErrorCode::unavailable, "refused: " + answer.refusal().message()};
    if (answer.has_welcome()) {
      peer.session_id_ = answer.welcome().session_id();
      peer.tokens_.assign(answer.welcome().lane_tokens().begin(), answer.welcome().lane_tokens().end());
    }
    for (const proto::Region& region : answer.regions().added()) {
      if (region.length() <= peer.region_length_) continue;
      peer.region_ = region.id();
      peer.region_length_ = region.length();
    }
    told = answer.has_regions() && answer.regions().complete();
  }
  return peer;
}

Status WirePeer::send(const proto::Frame& frame) {
  std::string bytes(sizeof(uint32_t), '\0');
  const auto length = static_cast<uint32_t>(frame.ByteSizeLong());
  std::memcpy(bytes.data(), &length, sizeof length);
  frame.AppendToString(&bytes);
  return send_all(fd_.get(), bytes.data(), bytes.size());
}

Result<proto::Frame> WirePeer::receive() {
  proto::Frame frame;
  while (true) {
    KVF_ASSIGN_OR_RETURN(const bool whole, take_frame(pending_, frame));
    if (whole) return frame;
    char buffer[4096];
    const ssize_t count = ::recv(fd_.get(), buffer, sizeof buffer, 0);
    if (count <= 0) return Error{ErrorCode::peer_lost, "the engine closed the session"};
    pending_.append(buffer, static_cast<size_t>(count));
  }
}

Status WirePeer::beat() {
  proto::Frame frame;
  frame.mutable_heartbeat()->set_number(next_number_++);
  return send(frame);
}

Result<size_t> WirePeer::take_echoes() {
  char buffer[4096];
  ssize_t count = 0;
  while ((count = ::recv(fd_.get(), buffer, sizeof buffer, MSG_DONTWAIT)) > 0)
    pending_.append(buffer, static_cast<size_t>(count));
  if (count == 0 || errno != EAGAIN) return Error{ErrorCode::peer_lost, "the engine closed the session"};
  size_t echoes = 0;
  proto::Frame frame;
  while (true) {
    KVF_ASSIGN_OR_RETURN(const bool whole, take_frame(pending_, frame));
    if (!whole) return echoes;
    echoes += frame.has_heartbeat_echo();
  }
}

Result<UniqueFd> WirePeer::open_lane() {
  if (tokens_.empty()) return Error{ErrorCode::resource_exhausted, "no lane token is left"};
  KVF_ASSIGN_OR_RETURN(UniqueFd lane, dial(address_));
  const std::string preface = encode_lane_preface({session_id_, tokens_.front(), next_lane_++});
  tokens_.pop_front();
  KVF_RETURN_IF_ERROR(send_all(lane.get(), preface.data(), preface.size()));
  return lane;
}

Status run_crowd(const std::string& address, size_t sessions) {
  constexpr auto kRound = std::chrono::milliseconds(100);
  constexpr size_t kRounds = 10;  // each beats its share of the peers
  std::vector<WirePeer> peers;
  for (size_t i = 0; i < sessions; ++i) {
    KVF_ASSIGN_OR_RETURN(WirePeer peer, WirePeer::connect(address, fmt::format("crowd-{}", i)));
    peers.push_back(std::move(peer));
  }
  fmt::print("ready\n");
  std::fflush(stdout);
  auto next = std::chrono::steady_clock::now();
  while (true) {
    size_t echoes = 0;
    for (size_t round = 0; round < kRounds; ++round) {
      for (size_t i = round; i < peers.size(); i += kRounds) {
        KVF_ASSIGN_OR_RETURN(const size_t came, peers[i].take_echoes());
        echoes += came;
        KVF_RETURN_IF_ERROR(peers[i].beat());
      }
      next += kRound;
      std::this_thread::sleep_until(next);
    }
    fmt::print("{} echoes\n", echoes);
    std::fflush(stdout);
  }
}

Status run_reader(const std::string& address, double bytes_per_second) {
  constexpr uint64_t kRead = uint64_t{1} << 20;
  constexpr size_t kAhead = 4;  // requests that wait for their answers
  KVF_ASSIGN_OR_RETURN(WirePeer peer, WirePeer::connect(address, "slow-reader"));
  KVF_ASSIGN_OR_RETURN(const UniqueFd lane, peer.open_lane());
  const uint64_t length = std::min(kRead, peer.region_length());
  const Pair pair{nullptr, peer.region(), 0, length};
  std::string table;
  tcp::encode_spans({&pair, 1}, Chunk{.first = 0, .skip = 0, .count = 1, .ended = 1, .bytes = length}, table);
  uint64_t op = 1;
  const auto ask = [&] {
    tcp::Header header;
    header.op = op++;
    header.table_bytes = static_cast<uint32_t>(table.size());
    std::string head;
    tcp::encode_header(header, head);
    head += table;
    return send_all(lane.get(), head.data(), head.size());
  };
  for (size_t i = 0; i < kAhead; ++i) KVF_RETURN_IF_ERROR(ask());
  std::vector<char> bin(size_t{64} << 10);
  const auto began = std::chrono::steady_clock::now();
  auto next_beat = began;
  uint64_t taken = 0;
  uint64_t answered = 0;
  while (true) {
    const ssize_t count = ::recv(lane.get(), bin.data(), bin.size(), 0);
    if (count <= 0) return Error{ErrorCode::peer_lost, "the engine closed the lane"};
    if (taken == 0) {
      fmt::print("reading\n");
      std::fflush(stdout);
    }
    taken += static_cast<uint64_t>(count);
    for (; taken >= (answered + 1) * (length + tcp::Header::kBytes); ++answered) KVF_RETURN_IF_ERROR(ask());
    const auto now = std::chrono::steady_clock::now();
    if (now >= next_beat) {
      KVF_ASSIGN_OR_RETURN([[maybe_unused]] const size_t echoes, peer.take_echoes());
      KVF_RETURN_IF_ERROR(peer.beat());
      next_beat = now + std::chrono::seconds(1);
    }
    const std::chrono::duration<double> due(static_cast<double>(taken) / bytes_per_second);
    std::this_thread::sleep_until(began + std::chrono::duration_cast<std::chrono::nanoseconds>(due));
  }
}

}  // namespace kvferry::bench
