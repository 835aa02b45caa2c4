#include "http/lookup.h"

#include <fcntl.h>
#include <netdb.h>

#include <cstring>
#include <system_error>
#include <thread>

namespace kvferry::http {
namespace {

constexpr size_t kMostAtOnce = 64;  // I6: strangers may choose the names, and each holds a thread for seconds

Error not_found(const std::string& host, std::string cause) {
  return {ErrorCode::unavailable, "cannot resolve the host name", std::move(cause), host, ""};
}

Result<Endpoints> resolve_by_system(const std::string& host) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int failed = ::getaddrinfo(host.c_str(), nullptr, &hints, &found);
  if (failed != 0) return not_found(host, ::gai_strerror(failed));
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owned(found, ::freeaddrinfo);
  Endpoints endpoints;
  for (const addrinfo* one = found; one != nullptr; one = one->ai_next) {
    boost::asio::ip::tcp::endpoint endpoint;
    if (one->ai_addrlen > endpoint.capacity()) continue;
    std::memcpy(endpoint.data(), one->ai_addr, one->ai_addrlen);
    endpoint.resize(one->ai_addrlen);
    endpoints.push_back(endpoint);
  }
  return endpoints;
}

}  // namespace

void Lookup::run(const Resolve& resolve, const std::string& host) {
  answer_ = resolve(host);
  if (answer_.ok() && answer_->empty()) answer_ = not_found(host, "it has no address");
  answered_.store(true, std::memory_order_release);
  done_.signal();
}

Result<UniqueFd> Lookup::watch() const {
  UniqueFd fd(::fcntl(done_.fd(), F_DUPFD_CLOEXEC, 0));
  if (!fd.valid()) return errno_error("cannot wait for a host name");
  return fd;
}

Result<Endpoints> Lookup::answer() const {
  if (!answered_.load(std::memory_order_acquire)) return Error{ErrorCode::cancelled, "lookup given up", "", "", ""};
  return answer_;
}

boost::asio::execution_context::id Lookups::id;

Lookups::Lookups(boost::asio::execution_context& loop)
    : boost::asio::execution_context::service(loop), resolve_(resolve_by_system) {}

Result<std::shared_ptr<Lookup>> Lookups::find(const std::string& host) {
  std::erase_if(going_on_, [](const auto& one) { return one.second.expired(); });
  if (const auto known = going_on_.find(host); known != going_on_.end())
    if (auto lookup = known->second.lock()) return lookup;
  if (going_on_.size() >= kMostAtOnce)
    return Error{ErrorCode::resource_exhausted, "as many names are being looked up as may be", "", host, ""};
  KVF_ASSIGN_OR_RETURN(EventFd done, EventFd::create());
  auto lookup = std::make_shared<Lookup>(std::move(done));
  try {
    std::thread([lookup, host, resolve = resolve_] { lookup->run(resolve, host); }).detach();
  } catch (const std::system_error& error) {
    return not_found(host, error.what());
  }
  going_on_[host] = lookup;
  return lookup;
}

}  // namespace kvferry::http
