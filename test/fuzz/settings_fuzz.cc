// Command lines, environments and config files of the programs: an Error that says why, or a configuration that can be
// printed. The first byte says what follows: 0 the environment of an engine, 1 the flags of the bootstrap server, 2
// those of the proxy, 3 a YAML file of the proxy. One variable (name=value) or flag a line.
#include <sys/mman.h>
#include <unistd.h>

#include "bootstrap/config.h"
#include "common/check.h"
#include "engine/config.h"
#include "proxy/config.h"

namespace {

using namespace kvferry;

std::vector<std::string> lines_of(std::string_view text) {
  std::vector<std::string> lines;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    // "@path" reads a secret from a file: not from those of whoever fuzzes.
    if (const std::string_view line = text.substr(0, end); line.find('@') == std::string_view::npos)
      lines.emplace_back(line);
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return lines;
}

Environment environment_of(std::string_view text) {
  std::map<std::string, std::string> values;
  for (const std::string& line : lines_of(text))
    if (const size_t sign = line.find('='); sign != std::string::npos)
      values[line.substr(0, sign)] = line.substr(sign + 1);
  return Environment(std::move(values));
}

void check_engine(std::string_view text) {
  const auto config = EngineConfig::from_environment(environment_of(text));
  if (!config.ok()) return KVF_CHECK(!config.error().message.empty());
  KVF_CHECK(config->default_timeout.count() >= 0 && config->bulk_lanes >= 1 && config->missed_heartbeats >= 1);
  [[maybe_unused]] const Status status = config->validate();
}

void check_bootstrap(std::string_view text) {
  const auto parsed = bootstrap::parse_config(lines_of(text), Environment({}));
  if (!parsed.ok()) return KVF_CHECK(!parsed.error().message.empty());
  KVF_CHECK(!parsed->config.to_string().empty());
}

void check_proxy(const std::vector<std::string>& arguments) {
  const auto parsed = proxy::parse_config(arguments, Environment({}));
  if (!parsed.ok()) return KVF_CHECK(!parsed.error().message.empty());
  const proxy::ProxyConfig& config = parsed->config;
  KVF_CHECK(!parsed->help.empty() || (config.lease.count() > 0 && config.admin_port <= 65535));
}

void check_file(std::string_view text) {
  if (text.find('@') != std::string_view::npos) return;
  static const int file = ::memfd_create("config", MFD_CLOEXEC);
  KVF_CHECK(file >= 0 && ::ftruncate(file, 0) == 0);
  KVF_CHECK(::pwrite(file, text.data(), text.size(), 0) == static_cast<ssize_t>(text.size()));
  check_proxy({"--config", "/proc/self/fd/" + std::to_string(file)});
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0]) {
    case 0:
      check_engine(text);
      break;
    case 1:
      check_bootstrap(text);
      break;
    case 2:
      check_proxy(lines_of(text));
      break;
    default:
      check_file(text);
  }
  return 0;
}
