// TLS over a stream, mode psk. The first byte says who is lied to: 0 a server and 1 a client that are given the rest,
// at most the second byte's number at once; otherwise both, by a third in the middle who has no key: of the rest, three
// bytes each say where and what is changed on the way to the server, or, with the highest bit, to the client. Nobody
// receives a byte that the holder of the key has not sent.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>

#include "common/bytes.h"
#include "common/check.h"
#include "engine/io/secure_stream.h"
#include "test/support/manual_loop.h"

namespace {

using namespace kvferry;

// Everything that is held on to is bounded (I6).
constexpr size_t kMostOutput = size_t{256} << 10;

std::shared_ptr<const TlsContext> keys() {
  const std::string secret = "of nobody: only for fuzzing\n";
  const int file = ::memfd_create("psk", MFD_CLOEXEC);
  KVF_CHECK(file >= 0 && ::fchmod(file, 0600) == 0);
  KVF_CHECK(::write(file, secret.data(), secret.size()) == static_cast<ssize_t>(secret.size()));
  AuthConfig config;
  config.mode = AuthMode::psk;
  config.psk_file = "/proc/self/fd/" + std::to_string(file);
  auto loaded = TlsContext::load(config);
  KVF_CHECK(loaded.ok());
  return *loaded;
}

class End final : public StreamHandler {
 public:
  End(Loop& loop, HandshakeTurns& turns, bool is_server, std::string words, size_t at_once = SIZE_MAX)
      : words_(std::move(words)) {
    static const std::shared_ptr<const TlsContext> context = keys();
    static const std::string refusal = "GO AWAY";
    auto [stream, memory] = test::memory_stream();
    pipe = memory;
    pipe->read_at_once = at_once;
    stream_ = std::make_unique<SecureStream>(std::move(stream), SecureStream::Parts{loop, turns, context, refusal},
                                             is_server);
    stream_->set_handler(this);
    stream_->want(true, true);
  }

  const std::string& words() const { return words_; }
  std::shared_ptr<test::MemoryPipe> pipe;
  std::string heard;
  bool over = false;

 private:
  void on_stream_ready(bool readable, bool writable) override {
    if (writable && sent_ < words_.size()) {
      const iovec from{words_.data() + sent_, words_.size() - sent_};
      const auto count = stream_->write({&from, 1});
      if (!count) return end();
      sent_ += *count;
      stream_->want(true, sent_ < words_.size());
    }
    if (!readable) return;
    std::array<char, 512> room;
    const iovec into{room.data(), room.size()};
    const auto count = stream_->read({&into, 1});
    if (!count) return end();
    heard.append(room.data(), *count);
  }
  void end() {
    over = true;
    stream_->want(false, false);
  }

  std::unique_ptr<Stream> stream_;
  std::string words_;
  size_t sent_ = 0;
};

void lie_to(bool is_server, std::string_view bytes, size_t at_once) {
  test::ManualLoop loop;
  HandshakeTurns turns(loop);
  End end(loop, turns, is_server, "private", at_once == 0 ? SIZE_MAX : at_once);
  end.pipe->input = bytes;
  end.pipe->ended = true;
  for (int turn = 0; turn < 1000 && !end.over; ++turn) {
    loop.run_deferred();
    end.pipe->pump();
  }
  KVF_CHECK(end.over && end.heard.empty() && end.pipe->output.size() < kMostOutput);
  KVF_CHECK(end.pipe->output.find("private") == std::string::npos);
}

// The changes of one direction, at offsets of all that passes there.
class Liar {
 public:
  void change(uint16_t where, uint8_t what) { changes_[where] ^= what; }
  void pass(std::string& from, std::string& to) {
    for (size_t i = 0; i < from.size(); ++i) {
      const auto found = changes_.find(static_cast<uint16_t>(passed_ + i));
      if (found != changes_.end() && passed_ + i <= UINT16_MAX)
        from[i] = static_cast<char>(static_cast<uint8_t>(from[i]) ^ found->second);
    }
    passed_ += from.size();
    to += std::exchange(from, {});
  }

 private:
  std::map<uint16_t, uint8_t> changes_;
  size_t passed_ = 0;
};

void stand_between(ByteSpan program) {
  test::ManualLoop loop;
  HandshakeTurns turns(loop);
  End client(loop, turns, false, "what the client says");
  End server(loop, turns, true, "what the server says");
  Liar up;
  Liar down;
  ByteReader reader(program);
  while (reader.ok() && !reader.at_end()) {
    const auto where = reader.get<uint16_t>();
    const auto what = reader.get<uint8_t>();
    if (reader.ok()) (where >> 15 != 0 ? down : up).change(where & 0x7fff, what);
  }
  for (int turn = 0; turn < 30; ++turn) {
    loop.run_deferred();
    up.pass(client.pipe->output, server.pipe->input);
    down.pass(server.pipe->output, client.pipe->input);
    server.pipe->pump();
    client.pipe->pump();
  }
  KVF_CHECK(client.words().starts_with(server.heard) && server.words().starts_with(client.heard));
  if (program.empty()) KVF_CHECK(server.heard == client.words() && client.heard == server.words());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const std::string_view rest(reinterpret_cast<const char*>(data) + 2, size - 2);
  data[0] < 2 ? lie_to(data[0] == 0, rest, data[1]) : stand_between(as_bytes(rest));
  return 0;
}
