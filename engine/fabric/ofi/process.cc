#include "engine/fabric/ofi/process.h"

#include <rdma/fabric.h>
#include <rdma/fi_ext.h>

#include <csignal>
#include <cstdlib>
#include <mutex>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "engine/fabric/ofi/handle.h"

namespace kvferry::ofi {
namespace {

// What holds unless the user says otherwise by KVFERRY_OFI_...
const std::map<std::string, std::string>& defaults() {
  static const std::map<std::string, std::string> values = {
      // A cache would keep registrations that were taken back, and serve peers by them.
      {"MR_CACHE_MAX_COUNT", "0"},
      // Of peers that one endpoint has, from which ofi_rxm reckons its queues: more than software devices can hold.
      {"UNIVERSE_SIZE", "64"},
      // Of the messages that ofi_rxm keeps room for at each endpoint, the same at both ends; ours are short.
      {"OFI_RXM_BUFFER_SIZE", "512"},
      // Microseconds in which ofi_rxm looks after connections only once; until then it would keep the loop from sleep.
      {"OFI_RXM_CM_PROGRESS_INTERVAL", "0"},
      // Else efa moves what stays on one host by shared memory, whose queue wakes nobody. Not all builds have efa.
      {"EFA_ENABLE_SHM_TRANSFER", "0"},
      // By it the owner's CPU writes into an initiator that may have given the memory up (I4), and reads from it.
      {"SHM_DISABLE_CMA", "1"},
  };
  return values;
}

// Variables of the process's environment, for as long as this lives.
class Environment {
 public:
  explicit Environment(const std::map<std::string, std::string>& values) {
    for (const auto& [name, value] : values) {
      const std::string full = "FI_" + name;
      const char* before = ::getenv(full.c_str());
      before_.emplace_back(full, before != nullptr ? std::optional<std::string>(before) : std::nullopt);
      ::setenv(full.c_str(), value.c_str(), 1);
    }
  }
  ~Environment() {
    for (const auto& [name, value] : before_) {
      if (value)
        ::setenv(name.c_str(), value->c_str(), 1);
      else
        ::unsetenv(name.c_str());
    }
  }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

 private:
  std::vector<std::pair<std::string, std::optional<std::string>>> before_;
};

// Names that libfabric and its providers would ignore: it has begun, so they have told theirs.
int32_t refuse_unknown(const std::map<std::string, std::string>& variables, kvf_text why) {
  fi_param* known = nullptr;
  int count = 0;
  if (fi_getparams(&known, &count) != 0) return KVF_OK;
  std::set<std::string, std::less<>> names;
  for (int i = 0; i < count; ++i) names.emplace(known[i].name);
  fi_freeparams(known);
  for (const auto& [name, value] : variables)
    if (names.count("FI_" + name) == 0)
      return plugin_kit::say(why, "libfabric knows no FI_" + name + " (`fi_info -e` lists what it knows)", KVF_FAILED);
  return KVF_OK;
}

thread_local std::string complaint;

// Warnings become part of our own errors; other lines are not asked for.
int enabled(const fi_provider*, fi_log_level level, fi_log_subsys, uint64_t) {
  return level == FI_LOG_WARN;
}
int ready(const fi_provider*, fi_log_level level, fi_log_subsys, uint64_t, uint64_t*) {
  return level == FI_LOG_WARN;
}
void on_line(const fi_provider*, fi_log_level, fi_log_subsys, const char*, int, const char* text) {
  complaint = text;
  while (!complaint.empty() && complaint.back() == '\n') complaint.pop_back();
}

// For the rest of the process, unless somebody else has done so, or the user wants to see libfabric's own lines.
void take_lines() {
  static fi_ops_log operations{sizeof(fi_ops_log), enabled, ready, on_line};
  static fid_logging lines{};
  lines.ops = &operations;
  static_cast<void>(fi_import_log(FI_VERSION(1, 17), 0, &lines));
}

// What libraries of some providers (PSM) do to the whole process when they are loaded.
class SignalHandlers {
 public:
  static SignalHandlers& of_process() {
    static SignalHandlers all;
    return all;
  }
  void keep() {
    for (int signal = 1; signal < kSignals; ++signal) ::sigaction(signal, nullptr, &kept_[signal]);
  }
  void restore() const {
    for (int signal = 1; signal < kSignals; ++signal) ::sigaction(signal, &kept_[signal], nullptr);
  }

 private:
  static constexpr int kSignals = 32;
  struct sigaction kept_[kSignals] = {};
};

}  // namespace

void keep_signal_handlers() {
  SignalHandlers::of_process().keep();
}

void restore_signal_handlers() {
  SignalHandlers::of_process().restore();
}

int32_t begin_process(const std::map<std::string, std::string>& variables, kvf_text why) {
  static std::mutex mutex;
  static std::map<std::string, std::string> in_force;
  auto wanted = variables;
  wanted.insert(defaults().begin(), defaults().end());
  const std::lock_guard lock(mutex);
  if (!in_force.empty()) {
    if (refuse_unknown(variables, why) != KVF_OK) return KVF_FAILED;
    for (const auto& [name, value] : wanted) {
      const auto found = in_force.find(name);
      if (found == in_force.end() || found->second != value)
        return plugin_kit::say(why,
                               "libfabric has begun in this process, with FI_" + name +
                                   (found == in_force.end() ? " not set" : "=" + found->second) + " instead of " +
                                   value,
                               KVF_FAILED);
    }
    for (const auto& [name, value] : in_force)
      if (wanted.count(name) == 0)
        return plugin_kit::say(why, "libfabric has begun in this process, with FI_" + name + "=" + value, KVF_FAILED);
    return KVF_OK;
  }
  const Environment environment(wanted);
  keep_signal_handlers();
  fi_info* found = nullptr;
  if (fi_getinfo(FI_VERSION(1, 17), nullptr, nullptr, 0, nullptr, &found) == 0) fi_freeinfo(found);
  restore_signal_handlers();
  if (variables.count("LOG_LEVEL") == 0) take_lines();
  const int32_t result = refuse_unknown(variables, why);
  // Names that mean nothing to it are not in force.
  in_force = result == KVF_OK ? wanted : defaults();
  return result;
}

std::string take_complaint() {
  const std::string text = std::exchange(complaint, {});
  return text.empty() ? text : " (" + text + ")";
}

}  // namespace kvferry::ofi
