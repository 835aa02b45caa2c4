// What process_test asks of a child, by its first argument.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>
#include <vector>

#include "test/support/stopwatch.h"

namespace {

// Prints the lines of stdin back.
int echo() {
  char line[256];
  while (std::fgets(line, sizeof line, stdin) != nullptr) {
    std::fputs(line, stdout);
    std::fflush(stdout);
  }
  return 7;
}

// Burns 50 ms of CPU time and 64 MiB of memory, says so, and waits for the end of stdin.
int burn() {
  std::vector<char> memory(64 << 20);
  std::memset(memory.data(), 1, memory.size());
  while (std::clock() < CLOCKS_PER_SEC / 20) {
  }
  std::puts("burnt");
  std::fflush(stdout);
  return std::getchar() == EOF ? memory[1] - 1 : 1;
}

// Says after each line how many milliseconds have passed, and how many of them the machine worked, as it seems from
// here.
int watch() {
  const kvferry::SystemClock clock;
  const kvferry::TimePoint began = clock.now();
  const kvferry::test::Stopwatch stopwatch;
  for (int byte = std::getchar(); byte != EOF; byte = std::getchar()) {
    const auto worked = stopwatch.elapsed() / std::chrono::milliseconds(1);
    std::printf("%ld %ld\n", (clock.now() - began) / std::chrono::milliseconds(1), worked);
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace

int main(int count, char** words) {
  const std::string what = count > 1 ? words[1] : "";
  if (what == "echo") return echo();
  if (what == "burn") return burn();
  if (what == "watch") return watch();
  if (what == "half") std::fputs("no end of line", stdout);
  if (what == "errors") std::fputs("on stderr\n", stderr);
  if (what == "stall") ::pause();
  return 0;
}
