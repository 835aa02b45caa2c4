#include "engine/io/credentials.h"

#include "engine/io/kernel_tls.h"

namespace kvferry {
namespace {

// What the kernel cannot do now it is not asked for, connection by connection.
AuthConfig with_kernels_part(AuthConfig config) {
  config.kernel_tls = config.kernel_tls && kernel_has_tls();
  return config;
}

}  // namespace

Credentials::Credentials(AuthConfig config, std::shared_ptr<Logger> logger, MetricsRegistry& metrics)
    : config_(with_kernels_part(std::move(config))),
      watch_({config_.psk_file, config_.certificate_file, config_.key_file, config_.ca_file}),
      logger_(std::move(logger)),
      reloaded_(metrics.counter("kvferry_credentials_reloaded_total", "Times that changed keys were read",
                                {{"result", "ok"}})),
      failed_(metrics.counter("kvferry_credentials_reloaded_total", "Times that changed keys were read",
                              {{"result", "failed"}})) {}

Result<std::unique_ptr<Credentials>> Credentials::load(const AuthConfig& config, std::shared_ptr<Logger> logger,
                                                       MetricsRegistry& metrics) {
  std::unique_ptr<Credentials> made(new Credentials(config, std::move(logger), metrics));
  KVF_ASSIGN_OR_RETURN(made->context_, TlsContext::load(made->config_));
  return made;
}

const std::shared_ptr<const TlsContext>& Credentials::current(TimePoint now) {
  if (watch_.changed(now)) reload();
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
