#include "engine/io/credentials.h"

namespace kvferry {
namespace {

constexpr Duration kBetweenLooks = std::chrono::seconds(1);

}  // namespace

Credentials::Credentials(AuthConfig config, std::shared_ptr<Logger> logger, MetricsRegistry& metrics)
    : config_(std::move(config)),
      logger_(std::move(logger)),
      reloaded_(metrics.counter("kvferry_credentials_reloaded_total", "Times that changed keys were read",
                                {{"result", "ok"}})),
      failed_(metrics.counter("kvferry_credentials_reloaded_total", "Times that changed keys were read",
                              {{"result", "failed"}})) {}

Result<std::unique_ptr<Credentials>> Credentials::load(const AuthConfig& config, std::shared_ptr<Logger> logger,
                                                       MetricsRegistry& metrics) {
  std::unique_ptr<Credentials> made(new Credentials(config, std::move(logger), metrics));
  made->marks_ = made->look();  // before the reading: what changes meanwhile is read again
  KVF_ASSIGN_OR_RETURN(made->context_, TlsContext::load(config));
  return made;
}

std::vector<Credentials::Mark> Credentials::look() const {
  std::vector<Mark> marks;
  for (const std::string* path : {&config_.psk_file, &config_.certificate_file, &config_.key_file, &config_.ca_file}) {
    struct stat facts {};
    Mark mark;
    if (!path->empty() && ::stat(path->c_str(), &facts) == 0)
      mark = {facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtim.tv_sec, facts.st_mtim.tv_nsec};
    marks.push_back(mark);
  }
  return marks;
}

const std::shared_ptr<const TlsContext>& Credentials::current(TimePoint now) {
  if (now - looked_ >= kBetweenLooks) {
    looked_ = now;
    std::vector<Mark> marks = look();
    if (marks != marks_) {
      marks_ = std::move(marks);
      reload();
    }
  }
  return context_;
}

void Credentials::reload() {
  auto fresh = TlsContext::load(config_);
  if (fresh.ok()) {
    context_ = std::move(*fresh);
    reloaded_.add();
    logger_->info("the keys of auth mode {} have changed and were read", to_string(config_.mode));
  } else {
    failed_.add();
    logger_->error("the keys of auth mode {} have changed and cannot be used, the former stay in force: {}",
                   to_string(config_.mode), fresh.error().to_string());
  }
}

}  // namespace kvferry
