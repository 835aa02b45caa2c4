#include "http/lookup.h"

#include <fcntl.h>
#include <netdb.h>

#include <cstring>
#include <system_error>
#include <thread>

namespace kvferry::http {
namespace {

constexpr size_t kMostThreads = 64;  // I6: strangers may choose the names, and each may hold one for seconds

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
  if (auto known = going_on_[host].lock()) return known;
  KVF_ASSIGN_OR_RETURN(EventFd done, EventFd::create());
  auto lookup = std::make_shared<Lookup>(std::move(done));
  {
    const std::lock_guard lock(queue_->mutex);
    queue_->waiting.emplace_back(host, lookup);
    if (queue_->threads < kMostThreads) KVF_RETURN_IF_ERROR(start_thread());
  }
  going_on_[host] = lookup;
  return lookup;
}

// REQUIRES: the queue's lock. An error where there is no thread at all.
Status Lookups::start_thread() {
  try {
    std::thread([queue = queue_, resolve = resolve_] { work(*queue, resolve); }).detach();
  } catch (const std::system_error& error) {
    if (queue_->threads > 0) return {};
    return Error{ErrorCode::resource_exhausted, "no thread to look names up", error.what(), "", ""};
  }
  ++queue_->threads;
  return {};
}

void Lookups::work(Queue& queue, const Resolve& resolve) {
  std::unique_lock lock(queue.mutex);
  while (!queue.waiting.empty()) {
    const auto [host, asked] = std::move(queue.waiting.front());
    queue.waiting.pop_front();
    lock.unlock();
    if (const auto lookup = asked.lock()) lookup->run(resolve, host);
    lock.lock();
  }
  --queue.threads;
}

}  // namespace kvferry::http
