// A process with one engine and one region, driven by lines on stdin, for tests that kill, stop and starve it.
//
//   kvf-test-target ID LISTEN FABRICS BYTES [HEARTBEAT_MS]    says: ready ADDRESS REGION BASE
//   fill N              all bytes become N                    says: ok
//   register            the memory again                      says: ok REGION, or error TEXT
//   unregister MS       with that patience                    says: ok, or error TEXT
//   await_quiet         until kQuietAgain is told             says: quiet
//   describe                                                  says: the JSON
//   storm ADDRESS       writes all memory, each time filled with another value, to the first region of that engine,
//                       again and again, from a thread
//                                                             says: storming, once the first write is done
//   fork                a child that holds all descriptors    says: forked PID
//   descriptors N       the limit from now on                 says: ok
//   memory N            bytes of address space beyond today's says: ok
//   notifications       takes them                            says: COUNT
//   expect N            waits for a notification, and looks at once whether all bytes are N
//                                                             says: ok PAYLOAD, or error TEXT
#include <fcntl.h>
#include <poll.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstring>
#include <fstream>
#include <iostream>
#include <sstream>
#include <thread>
#include <vector>

#include "engine/engine.h"
#include "test/support/eventually.h"

namespace kvferry {
namespace {

uint64_t number(const std::string& text) {
  uint64_t value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

void say(const std::string& line) {
  std::cout << line << std::endl;
}

class Target {
 public:
  Target(std::unique_ptr<Engine> engine, size_t bytes) : engine_(std::move(engine)), memory_(bytes) {
    fd_ = engine_->completion_fd().value();
  }
  ~Target() {
    stop_.store(true);
    if (storm_.joinable()) storm_.join();
  }

  std::string register_memory() {
    auto region = engine_->register_memory(memory_.data(), memory_.size(), MemoryKind::host, kRemoteReadWrite);
    if (!region) return "error " + region.error().to_string();
    region_ = std::move(*region);
    return "ok " + std::to_string(region_.id());
  }
  std::string greeting() {
    std::ostringstream out;
    out << "ready " << engine_->address() << " " << region_.id() << " " << reinterpret_cast<uint64_t>(memory_.data());
    return out.str();
  }

  std::string obey(const std::string& verb, const std::string& word) {
    if (verb == "fill") return fill(static_cast<int>(number(word)));
    if (verb == "register") return register_memory();
    if (verb == "unregister") {
      const Status status = region_.unregister(std::chrono::milliseconds(number(word)));
      return status.ok() ? "ok" : "error " + status.error().to_string();
    }
    if (verb == "await_quiet") return await_quiet();
    if (verb == "describe") return engine_->describe();
    if (verb == "storm") return storm(word);
    if (verb == "fork") return fork_sleeper();
    if (verb == "descriptors") return limit(RLIMIT_NOFILE, number(word));
    if (verb == "memory") return limit_memory(number(word));
    if (verb == "expect") return expect(static_cast<std::byte>(number(word)));
    if (verb == "notifications") return std::to_string(engine_->notifications().size());
    return "error unknown verb " + verb;
  }

 private:
  // The question to the loop orders these writes with those of the engine, for ThreadSanitizer's eyes: what orders them
  // in truth is the test, which is another process.
  std::string fill(int value) {
    static_cast<void>(engine_->describe());
    std::memset(memory_.data(), value, memory_.size());
    static_cast<void>(engine_->describe());
    return "ok";
  }
  std::string await_quiet() {
    while (true) {
      pollfd event{fd_, POLLIN, 0};
      ::poll(&event, 1, -1);
      for (const uint64_t id : engine_->take_completed())
        if (id == 0) return "quiet";
    }
  }

  std::string expect(std::byte value) {
    std::vector<ReceivedNotification> got;
    if (!test::eventually([&] { return !(got = engine_->notifications()).empty(); }, std::chrono::seconds(120)))
      return "error no notification";
    // From its end, which comes last.
    const auto wrong = std::find_if(memory_.rbegin(), memory_.rend(), [value](std::byte one) { return one != value; });
    if (wrong == memory_.rend()) return "ok " + got[0].notification.payload;
    return "error byte " + std::to_string(memory_.rend() - wrong - 1) + " is another";
  }

  std::string storm(const std::string& address) {
    auto peer = engine_->peer(address);
    if (!peer) return "error " + peer.error().to_string();
    if (Status status = peer->connect(std::chrono::seconds(20)); !status.ok())
      return "error " + status.error().to_string();
    TransferRequest request;
    request.peer = *peer;
    request.operation = Operation::write;
    request.pairs = {{memory_.data(), peer->regions().at(0).id, 0, memory_.size()}};
    if (Outcome first = engine_->transfer(request); !first.status.ok())
      return "error " + first.status.error().to_string();
    storm_ = std::thread([this, request] {
      for (int value = 0; !stop_.load(); ++value) {
        std::memset(memory_.data(), value, memory_.size());
        if (!engine_->transfer(request).status.ok()) return;
      }
    });
    return "storming";
  }

  static std::string fork_sleeper() {
    const pid_t child = ::fork();
    if (child == 0) {
      // Holds every descriptor but the pipes that the test waits on.
      ::close(0);
      ::close(1);
      while (true) ::pause();
    }
    return "forked " + std::to_string(child);
  }

  static std::string limit(int what, uint64_t value) {
    const rlimit both{value, value};
    return ::setrlimit(static_cast<__rlimit_resource>(what), &both) == 0 ? "ok" : "error setrlimit";
  }
  static std::string limit_memory(uint64_t more) {
    const uint64_t now = address_space();
    if (now > uint64_t{1} << 40) return "error a sanitizer has taken the address space";
    return limit(RLIMIT_AS, now + more);
  }
  static uint64_t address_space() {
    uint64_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    return pages * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  }

  std::unique_ptr<Engine> engine_;
  std::vector<std::byte> memory_;
  Region region_;
  int fd_ = -1;
  std::atomic<bool> stop_{false};
  std::thread storm_;
};

int run(const std::vector<std::string>& words) {
  auto settings = EngineConfig::from_environment(Environment::of_process());
  if (!settings) return say("error " + settings.error().to_string()), 1;
  EngineConfig config = std::move(*settings);
  config.engine_id = words.at(0);
  config.listen = words.at(1);
  config.allow_open = true;
  config.fabrics.clear();
  std::istringstream fabrics(words.at(2));
  for (std::string name; std::getline(fabrics, name, ',');) config.fabrics.push_back(name);
  config.logger = make_null_logger();
  if (words.size() > 4) config.heartbeat = std::chrono::milliseconds(number(words[4]));
  auto engine = Engine::create(config);
  if (!engine) return say("error " + engine.error().to_string()), 1;
  Target target(std::move(*engine), number(words.at(3)));
  if (const std::string answer = target.register_memory(); !answer.starts_with("ok")) return say(answer), 1;
  say(target.greeting());
  std::string line;
  while (std::getline(std::cin, line)) {
    std::istringstream parts(line);
    std::string verb;
    std::string word;
    parts >> verb >> word;
    say(target.obey(verb, word));
  }
  return 0;
}

}  // namespace
}  // namespace kvferry

int main(int count, char** words) {
  if (count < 5) return 2;
  return kvferry::run({words + 1, words + count});
}
