#include "http/server.h"

#include <fcntl.h>
#include <sys/socket.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ip/v6_only.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "common/fd.h"
#include "http/connection.h"
#include "http/json.h"
#include "http/tls.h"

namespace kvferry::http {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

Error listen_error(const ServerConfig& config, std::string what, const std::string& cause) {
  return {ErrorCode::unavailable, std::move(what), cause, config.host + ":" + std::to_string(config.port), "http"};
}

}  // namespace

struct Server::Core : ServerShared, std::enable_shared_from_this<Server::Core> {
  Core(asio::io_context& loop_in, Deadlines& deadlines_in, ServerConfig config_in, Handler handler_in,
       HeadHandler at_head_in)
      : ServerShared(deadlines_in, std::move(config_in), std::move(handler_in), std::move(at_head_in)),
        loop(loop_in),
        acceptor(loop_in) {}

  Status listen();
  asio::awaitable<void> accept_all();
  void admit(tcp::socket socket);
  void refuse(tcp::socket socket);
  void accept_without_descriptors();

  asio::io_context& loop;
  tcp::acceptor acceptor;
  std::unique_ptr<ServedTls> tls;
  UniqueFd spare;  // given up for a moment to answer 503 when the process is out of descriptors
  uint64_t accepted = 0;
  uint64_t refused = 0;
};

Status Server::Core::listen() {
  if (config.certificate_file.empty() && !config.key_file.empty())
    return Error{ErrorCode::invalid_argument, "a TLS key without a certificate: the server would speak in the clear"};
  if (!config.certificate_file.empty()) {
    KVF_ASSIGN_OR_RETURN(tls, ServedTls::load(config.certificate_file, config.key_file, config.logger));
  }
  error_code error;
  tcp::resolver resolver(loop);
  const auto found = resolver.resolve(config.host, std::to_string(config.port),
                                      tcp::resolver::passive | tcp::resolver::numeric_service, error);
  if (error || found.empty()) return listen_error(config, "cannot resolve the address to listen on", error.message());
  const tcp::endpoint endpoint = found.begin()->endpoint();
  acceptor.open(endpoint.protocol(), error);
  if (!error) acceptor.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error && endpoint.address() == asio::ip::address_v6::any()) {
    acceptor.set_option(asio::ip::v6_only(false), error);
  }
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(config.backlog, error);
  if (error) return listen_error(config, "cannot listen", error.message());
  ::fcntl(acceptor.native_handle(), F_SETFD, FD_CLOEXEC);
  spare.reset(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  return {};
}

asio::awaitable<void> Server::Core::accept_all() {
  const auto self = shared_from_this();
  while (acceptor.is_open()) {
    auto [error, socket] = co_await acceptor.async_accept(asio::as_tuple(asio::use_awaitable));
    if (!error) {
      admit(std::move(socket));
    } else if (error == asio::error::no_descriptors) {
      accept_without_descriptors();
    }
  }
}

void Server::Core::accept_without_descriptors() {
  spare.reset();
  error_code error;
  acceptor.non_blocking(true, error);
  tcp::socket socket(loop);
  acceptor.accept(socket, error);
  if (!error) refuse(std::move(socket));
  spare.reset(::open("/dev/null", O_RDONLY | O_CLOEXEC));
}

void Server::Core::refuse(tcp::socket socket) {
  ++refused;
  if (tls) return;  // no handshake for those: the close says enough
  const std::string body = error_body(503, "too many connections");
  std::string answer = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n";
  append_field(answer, "Content-Length", std::to_string(body.size()));
  answer.append("Connection: close\r\n\r\n").append(body);
  ::send(socket.native_handle(), answer.data(), answer.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  // Closing with input unread resets the connection and may take the answer with it: read what is there.
  std::array<char, 4096> dropped;
  error_code ignored;
  socket.shutdown(tcp::socket::shutdown_send, ignored);
  while (::recv(socket.native_handle(), dropped.data(), dropped.size(), MSG_DONTWAIT) > 0) {
  }
}

void Server::Core::admit(tcp::socket socket) {
  error_code error;
  const auto endpoint = socket.remote_endpoint(error);
  if (error) return;
  std::string remote = endpoint.address().to_string();
  const size_t per_address_limit = config.max_connections_per_address;
  const auto same = per_address.find(remote);
  const bool crowded = per_address_limit > 0 && same != per_address.end() && same->second >= per_address_limit;
  if (open.size() >= config.max_connections || crowded) return refuse(std::move(socket));
  ++accepted;
  auto stream = tls ? std::make_unique<Stream>(std::move(socket), tls->current(deadlines.now()))
                    : std::make_unique<Stream>(std::move(socket));
  stream->bound_output();
  const auto connection = std::make_shared<Connection>(shared_from_this(), std::move(stream), std::move(remote));
  asio::co_spawn(loop, connection->run(), asio::detached);
}

Result<std::unique_ptr<Server>> Server::create(asio::io_context& loop, Deadlines& deadlines, ServerConfig config,
                                               Handler handler, HeadHandler at_head) {
  auto core = std::make_shared<Core>(loop, deadlines, std::move(config), std::move(handler), std::move(at_head));
  KVF_RETURN_IF_ERROR(core->listen());
  asio::co_spawn(loop, core->accept_all(), asio::detached);
  return std::unique_ptr<Server>(new Server(std::move(core)));
}

Server::~Server() {
  error_code ignored;
  core_->acceptor.close(ignored);
  close();
  while (!core_->open.empty()) {
    Connection* connection = *core_->open.begin();
    const auto kept = connection->shared_from_this();
    core_->open.erase(connection);
    connection->abandon();
  }
}

uint16_t Server::port() const {
  error_code ignored;
  return core_->acceptor.local_endpoint(ignored).port();
}

ServerCounts Server::counts() const {
  return {core_->open.size(), core_->bodies.held, core_->accepted, core_->refused};
}

void Server::drain() {
  core_->draining = true;
  error_code ignored;
  core_->acceptor.close(ignored);
  const std::vector<Connection*> now(core_->open.begin(), core_->open.end());
  for (Connection* connection : now) connection->close_if_idle();
}

void Server::close() {
  std::vector<std::shared_ptr<Connection>> now;  // whose notices may end others
  for (Connection* connection : core_->open) now.push_back(connection->shared_from_this());
  for (const auto& connection : now) connection->close();
}

}  // namespace kvferry::http
