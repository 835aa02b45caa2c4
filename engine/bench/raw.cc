#include "engine/bench/raw.h"

#include <sys/socket.h>

#include <algorithm>
#include <climits>
#include <cstring>

namespace kvferry::bench {
namespace {

iovec part_of(const iovec& whole, uint32_t part, uint32_t parts) {
  const size_t from = whole.iov_len * part / parts;
  const size_t to = whole.iov_len * (part + 1) / parts;
  return {static_cast<char*>(whole.iov_base) + from, to - from};
}

// One block may be larger than what the kernel moves in one call.
Status raw_local_block(pid_t target, Operation operation, iovec ours, iovec theirs) {
  while (ours.iov_len > 0) {
    const ssize_t moved = operation == Operation::read ? ::process_vm_readv(target, &ours, 1, &theirs, 1, 0)
                                                       : ::process_vm_writev(target, &ours, 1, &theirs, 1, 0);
    if (moved <= 0) return errno_error("the raw copy between processes failed");
    for (iovec* side : {&ours, &theirs}) {
      side->iov_base = static_cast<char*>(side->iov_base) + moved;
      side->iov_len -= static_cast<size_t>(moved);
    }
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<RawServer>> RawServer::create(const std::string& host) {
  KVF_ASSIGN_OR_RETURN(ListeningSocket socket, listen_on(Address{host, 0}.to_string()));
  std::unique_ptr<RawServer> server(new RawServer(std::move(socket)));
  server->accepting_ = std::thread([raw = server.get()] { raw->accept_all(); });
  return server;
}

RawServer::~RawServer() {
  ::shutdown(socket_.fd.get(), SHUT_RDWR);
  accepting_.join();
  {
    const std::lock_guard lock(mutex_);
    for (const UniqueFd& connection : connections_) ::shutdown(connection.get(), SHUT_RDWR);
  }
  for (std::thread& thread : serving_) thread.join();
}

void RawServer::accept_all() {
  while (true) {
    auto connection = accept_from(socket_.fd.get());
    if (!connection) return;
    const int fd = connection->get();
    {
      const std::lock_guard lock(mutex_);
      connections_.push_back(std::move(*connection));
    }
    serving_.emplace_back([this, fd] { serve(fd); });
  }
}

void RawServer::set_plan(std::vector<Vectors> plan) {
  const std::lock_guard lock(mutex_);
  plan_ = std::move(plan);
}

Vectors RawServer::planned(const RawRequest& request) {
  const std::lock_guard lock(mutex_);
  if (request.thread >= plan_.size()) return {};
  if (request.parts == 1) return plan_[request.thread];
  return {part_of(plan_[request.thread].front(), request.part, request.parts)};
}

void RawServer::serve(int fd) {
  while (true) {
    RawRequest request;
    if (!receive_all(fd, &request, sizeof request).ok()) return;
    Status status;
    switch (request.verb) {
      case RawRequest::Verb::ping:
        status = send_all(fd, &request, sizeof request);
        break;
      case RawRequest::Verb::read:
        status = send_vectors(fd, planned(request));
        break;
      case RawRequest::Verb::write:
        status = receive_vectors(fd, planned(request));
        if (status.ok()) status = send_all(fd, "", 1);
        break;
    }
    if (!status.ok()) return;
  }
}

Status raw_local(pid_t target, Operation operation, const Vectors& ours, const Vectors& theirs) {
  if (ours.size() == 1) return raw_local_block(target, operation, ours.front(), theirs.front());
  for (size_t first = 0; first < ours.size(); first += IOV_MAX) {
    const size_t count = std::min<size_t>(ours.size() - first, IOV_MAX);
    const size_t bytes = ours.front().iov_len * count;  // blocks of a case are of one length
    const ssize_t moved = operation == Operation::read
                              ? ::process_vm_readv(target, &ours[first], count, &theirs[first], count, 0)
                              : ::process_vm_writev(target, &ours[first], count, &theirs[first], count, 0);
    if (moved < 0 || static_cast<size_t>(moved) != bytes)
      return errno_error("the raw copy between processes failed or stopped short");
  }
  return {};
}

namespace {

Status raw_exchange(int fd, Operation operation, RawRequest request, const Vectors& ours) {
  request.verb = operation == Operation::read ? RawRequest::Verb::read : RawRequest::Verb::write;
  if (operation == Operation::read) {
    KVF_RETURN_IF_ERROR(send_all(fd, &request, sizeof request));
    return receive_vectors(fd, ours);
  }
  Vectors out;
  out.reserve(ours.size() + 1);
  out.push_back({&request, sizeof request});
  out.insert(out.end(), ours.begin(), ours.end());
  KVF_RETURN_IF_ERROR(send_vectors(fd, std::move(out)));
  char answer = 0;
  return receive_all(fd, &answer, 1);
}

}  // namespace

Status raw_tcp(int fd, Operation operation, uint32_t thread, const Vectors& ours) {
  RawRequest request;
  request.thread = thread;
  return raw_exchange(fd, operation, request, ours);
}

Status raw_tcp_parts(const std::vector<UniqueFd>& connections, Operation operation, const Vectors& ours) {
  const auto parts = static_cast<uint32_t>(connections.size());
  std::vector<Status> ends(parts);
  const auto move_part = [&](uint32_t part) {
    RawRequest request;
    request.part = part;
    request.parts = parts;
    ends[part] = raw_exchange(connections[part].get(), operation, request, {part_of(ours.front(), part, parts)});
  };
  std::vector<std::thread> threads;
  for (uint32_t part = 1; part < parts; ++part) threads.emplace_back(move_part, part);
  move_part(0);
  for (std::thread& thread : threads) thread.join();
  for (Status& end : ends) KVF_RETURN_IF_ERROR(std::move(end));
  return {};
}

Status raw_ping(int fd) {
  RawRequest request;
  KVF_RETURN_IF_ERROR(send_all(fd, &request, sizeof request));
  return receive_all(fd, &request, sizeof request);
}

void raw_memcpy(Operation operation, const Vectors& ours, const Vectors& theirs) {
  for (size_t i = 0; i < ours.size(); ++i) {
    const bool read = operation == Operation::read;
    std::memcpy((read ? ours : theirs)[i].iov_base, (read ? theirs : ours)[i].iov_base, ours[i].iov_len);
  }
}

}  // namespace kvferry::bench
