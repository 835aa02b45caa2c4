#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "engine/bench/trial_keys.h"
#include "engine/io/secure_network.h"
#include "test/support/manual_loop.h"

// TLS over streams in memory: both ends in this thread, the bytes between them in the test's hands.

namespace kvferry::test {

inline std::string text_of(size_t bytes, unsigned seed) {
  std::mt19937 numbers(seed);
  std::string out(bytes, '\0');
  for (char& c : out) c = static_cast<char>(numbers());
  return out;
}

// One end: writes what it is given, in spans of drawn sizes, and reads what comes into spans of drawn sizes.
class End final : public StreamHandler {
 public:
  End(std::unique_ptr<Stream> stream, std::shared_ptr<MemoryPipe> the_pipe)
      : pipe(std::move(the_pipe)), stream_(std::move(stream)) {
    stream_->set_handler(this);
    stream_->want(true, false);
  }
  ~End() override { stream_->set_handler(nullptr); }

  void send(std::string bytes, size_t span) {
    to_send += bytes;
    span_ = span;
    stream_->want(reading_, true);
  }
  void pause(bool paused) {
    reading_ = !paused;
    stream_->want(reading_, !to_send.empty());
  }
  Stream& stream() { return *stream_; }

  std::shared_ptr<MemoryPipe> pipe;
  std::string to_send;
  std::string received;
  std::optional<Error> error;
  size_t read_span = 1000;
  size_t reads_at_once = SIZE_MAX;  // spans, of one call of the loop

 private:
  void on_stream_ready(bool readable, bool writable) override {
    if (readable && !error) read();
    if (writable && !error && !to_send.empty()) write();
    if (error) stream_->want(false, false);
  }
  void read() {
    const size_t spans = std::min<size_t>(reads_at_once, 64);
    std::string room(spans * read_span, '\0');
    std::vector<iovec> into;
    for (size_t i = 0; i < spans; ++i) into.push_back({room.data() + i * read_span, read_span});
    auto count = stream_->read(into);
    if (!count) return error.emplace(count.error()), void();
    received.append(room, 0, *count);
  }
  void write() {
    std::vector<iovec> from;
    for (size_t at = 0; at < to_send.size() && from.size() < 1000; at += span_)
      from.push_back({to_send.data() + at, std::min(span_, to_send.size() - at)});
    auto count = stream_->write(from);
    if (!count) return error.emplace(count.error()), void();
    to_send.erase(0, *count);
    stream_->want(reading_, !to_send.empty());
  }
  std::unique_ptr<Stream> stream_;
  size_t span_ = 1;
  bool reading_ = true;
};

// A world of one loop, with a client's and a server's keys.
class SecureStreamTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto made = bench::TrialKeys::create();
    ASSERT_TRUE(made.ok()) << made.error().to_string();
    keys_ = std::move(*made);
  }

  std::shared_ptr<const TlsContext> context(const Result<AuthConfig>& config) {
    EXPECT_TRUE(config.ok());
    auto loaded = TlsContext::load(*config);
    EXPECT_TRUE(loaded.ok()) << (loaded.ok() ? "" : loaded.error().to_string());
    return loaded.ok() ? *loaded : nullptr;
  }
  std::unique_ptr<End> end(std::shared_ptr<const TlsContext> context, bool is_server) {
    auto [stream, pipe] = memory_stream();
    if (beneath_) stream = beneath_(std::move(stream));
    SecureStream::Parts parts{loop_, turns_, std::move(context), refusal_, bytes_per_key_};
    return std::make_unique<End>(std::make_unique<SecureStream>(std::move(stream), std::move(parts), is_server), pipe);
  }
  void connect(const Result<AuthConfig>& client, const Result<AuthConfig>& server) {
    client_ = end(context(client), false);
    server_ = end(context(server), true);
  }

  // What each end has written becomes what the other reads, until nothing moves any more.
  void pump(const std::function<void(std::string&)>& to_server = nullptr) {
    for (bool moved = true; moved;) {
      moved = false;
      loop_.run_deferred();
      std::string up = std::exchange(client_->pipe->output, {});
      if (to_server && !up.empty()) to_server(up);
      std::string down = std::exchange(server_->pipe->output, {});
      moved = !up.empty() || !down.empty();
      on_wire_ += up.size();
      wire_ += up;
      server_->pipe->input += up;
      client_->pipe->input += down;
      client_->pipe->pump();
      server_->pipe->pump();
      loop_.run_deferred();
      moved |= !client_->pipe->output.empty() || !server_->pipe->output.empty();
    }
  }
  void expect_refused(const std::string& by_server, const std::string& by_client) {
    client_->send("hello", 5);
    server_->send("welcome", 7);
    pump();
    ASSERT_TRUE(server_->error) << "the server accepts";
    ASSERT_TRUE(client_->error) << "the client accepts";
    EXPECT_THAT(server_->error->to_string(), ::testing::HasSubstr(by_server));
    EXPECT_THAT(client_->error->to_string(), ::testing::HasSubstr(by_client));
    EXPECT_EQ(server_->error->code, ErrorCode::permission_denied);
    EXPECT_EQ(client_->error->code, ErrorCode::permission_denied);
    EXPECT_EQ(server_->received, "");
    EXPECT_EQ(client_->received, "");
  }

  ManualLoop loop_;
  HandshakeTurns turns_{loop_};
  const std::string refusal_ = "GO AWAY";
  uint64_t bytes_per_key_ = TlsContext::kBytesPerKey;
  std::function<std::unique_ptr<Stream>(std::unique_ptr<Stream>)> beneath_;  // put between TLS and the memory
  std::unique_ptr<bench::TrialKeys> keys_;
  std::unique_ptr<End> client_;
  std::unique_ptr<End> server_;
  size_t on_wire_ = 0;  // from the client
  std::string wire_;
};

}  // namespace kvferry::test
