#include "http/connection.h"

#include <algorithm>
#include <array>

#include "http/chunked.h"
#include "http/json.h"

namespace kvferry::http {
namespace {

namespace asio = boost::asio;

constexpr size_t kKeptInput = 4 << 10;       // capacity an idle connection may keep
constexpr size_t kMaxPipelined = 64 << 10;   // read ahead while a handler runs
constexpr uint64_t kEagerBody = 4ULL << 20;  // bodies up to here are allocated at once, larger ones as they come
// What is written to for more of a body is as much as has come, between these: nobody takes pages by a promise.
constexpr size_t kFirstBodyStep = 16 << 10;
constexpr size_t kBodyStep = 256 << 10;
constexpr Duration kLinger = std::chrono::seconds(2);
constexpr uint64_t kLingerBytes = 16ULL << 20;

}  // namespace

Connection::Connection(std::shared_ptr<ServerShared> shared, std::unique_ptr<Stream> stream, std::string remote)
    : shared_(std::move(shared)),
      stream_(std::move(stream)),
      remote_(std::move(remote)),
      deadline_(shared_->deadlines, [this] { expired(); }),
      share_(shared_->bodies) {
  shared_->open.insert(this);
  if (shared_->config.max_connections_per_address > 0) ++shared_->per_address[remote_];
}

Connection::~Connection() {
  shared_->open.erase(this);
  if (shared_->config.max_connections_per_address == 0) return;
  const auto found = shared_->per_address.find(remote_);
  if (found != shared_->per_address.end() && --found->second == 0) shared_->per_address.erase(found);
}

asio::awaitable<void> Connection::run() {
  const auto self = shared_from_this();
  deadline_.set_in(shared_->config.head_timeout);
  const Status secured = co_await stream_->handshake();
  bool more = secured.ok();
  Request request;
  while (more) {
    request.clear(kKeptInput);
    share_.give_back();
    more = co_await read_request(request);
    if (!more) break;
    phase_ = Phase::handler;
    deadline_.clear();
    started_ = ended_ = chunked_ = false;
    if (!watching_) watch();
    if (const auto answer = std::move(from_head_)) {
      (void)co_await send(std::move(*answer));
    } else {
      co_await shared_->handler(request, *this);
    }
    gone_notice_ = nullptr;
    if (!started_ && !gone_) {
      const Status sent = co_await send(error_response(500, "the request was left without an answer"));
      if (!sent.ok()) break;
    }
    more = ended_ && keep_alive() && !gone_ && !stream_->closed();
    phase_ = Phase::idle;
    if (in_.empty() && in_.capacity() > kKeptInput) std::string().swap(in_);
  }
  close();
}

void Connection::close() {
  deadline_.clear();
  stream_->close();
  if (phase_ == Phase::handler) notice_gone();
}

void Connection::close_if_idle() {
  if (phase_ == Phase::idle) close();
}

void Connection::expired() {
  timed_out_ = true;
  // In a head or body the reader wakes up, answers 408 and closes; elsewhere the connection just ends.
  if (phase_ == Phase::head || phase_ == Phase::body) {
    if (input_.waiting()) return input_.set();
  }
  close();
}

void Connection::watch() {
  watching_ = true;
  stream_->on_readable([self = shared_from_this()] { self->watched(); });
}

void Connection::watched() {
  watching_ = false;
  if (phase_ != Phase::handler) return input_.set();
  const auto bytes = stream_->receive_now();
  if (!bytes.ok()) return notice_gone();
  in_.append(*bytes);
  if (in_.size() < kMaxPipelined) return watch();
  if (!ended_) close();  // unread, its leaving could not be seen
}

void Connection::notice_gone() {
  gone_ = true;
  if (const auto notice = std::exchange(gone_notice_, nullptr)) notice();
}

void Connection::on_gone(std::function<void()> notice) {
  gone_notice_ = std::move(notice);
  if (gone_ && gone_notice_) notice_gone();
}

asio::awaitable<void> Connection::readable() {
  if (!watching_) watch();
  co_await input_.wait();
}

asio::awaitable<bool> Connection::fill() {
  for (;;) {
    const auto bytes = stream_->receive_now();
    if (!bytes.ok()) co_return false;
    if (!bytes->empty()) {
      in_.append(*bytes);
      co_return true;
    }
    co_await readable();
    if (timed_out_) co_return false;
  }
}

asio::awaitable<bool> Connection::read_request(Request& request) {
  phase_ = Phase::idle;
  minor_version_ = 1;
  head_only_ = false;
  if (in_.empty()) {
    deadline_.set_in(shared_->config.idle_timeout);
    co_await readable();
    if (timed_out_ || shared_->draining) co_return false;
  }
  phase_ = Phase::head;
  deadline_.set_in(shared_->config.head_timeout);
  const bool head_read = co_await read_head(request);
  if (!head_read) co_return false;
  minor_version_ = request.minor_version;
  keep_alive_ = request.keep_alive;
  head_only_ = request.method == "HEAD";
  if (auto answer = shared_->at_head ? shared_->at_head(request) : std::nullopt) {
    const bool bodiless = request.framing != Framing::chunked && request.content_length == 0;
    if (!bodiless) co_return co_await refuse(std::move(*answer));
    from_head_ = std::make_unique<Response>(std::move(*answer));
  }
  phase_ = Phase::body;
  body_began_ = shared_->deadlines.now();
  extend_body_deadline(0);
  const bool body_read = co_await read_body(request);
  if (!body_read) co_return false;
  request.remote = remote_;
  co_return true;
}

asio::awaitable<bool> Connection::read_head(Request& request) {
  size_t scanned = 0;
  std::optional<size_t> end;
  while (!(end = find_head_end(in_, scanned))) {
    if (in_.size() > shared_->config.max_head_bytes) co_return co_await refuse(431, "request head too large");
    const bool more = co_await fill();
    if (!more && timed_out_ && !in_.empty()) co_return co_await refuse(408, "the request head took too long");
    if (!more) co_return false;
  }
  if (*end > shared_->config.max_head_bytes) co_return co_await refuse(431, "request head too large");
  if (auto fault = parse_request_head(std::string_view(in_).substr(0, *end), request)) {
    co_return co_await refuse(fault->status, std::move(fault->message));
  }
  in_.erase(0, *end);
  co_return true;
}

void Connection::extend_body_deadline(uint64_t received) {
  const auto& config = shared_->config;
  const auto earned = std::chrono::seconds(received / std::max<uint64_t>(config.min_body_rate, 1));
  deadline_.set(after(body_began_, config.body_timeout + earned));
}

asio::awaitable<bool> Connection::read_body(Request& request) {
  const std::string_view too_large = "request body too large";
  if (request.framing == Framing::none) {
    request.body.reserve(kBodyPadding);
    co_return true;
  }
  if (request.framing == Framing::length && request.content_length > shared_->config.max_body_bytes) {
    co_return co_await refuse(413, std::string(too_large));
  }
  if (request.expects_continue && in_.empty()) {
    const Status told = co_await push("HTTP/1.1 100 Continue\r\n\r\n", {});
    if (!told.ok()) co_return false;
  }
  if (request.framing == Framing::length) {
    co_return co_await read_sized_body(request);
  }
  co_return co_await read_chunked_body(request);
}

asio::awaitable<bool> Connection::read_sized_body(Request& request) {
  const auto wanted = static_cast<size_t>(request.content_length);
  std::string& body = request.body;
  if (wanted <= kEagerBody) body.reserve(wanted + kBodyPadding);
  size_t have = std::min(in_.size(), wanted);
  if (!share_.grow_to(have)) co_return co_await refuse_for_want_of_room();
  body.append(in_, 0, have);
  in_.erase(0, have);
  while (have < wanted) {
    if (body.size() == have) body.resize(std::min(wanted, have + std::clamp(have, kFirstBodyStep, kBodyStep)));
    const auto got = stream_->receive_into(std::span(body).subspan(have));
    if (!got.ok()) co_return false;
    have += *got;
    if (!share_.grow_to(have)) co_return co_await refuse_for_want_of_room();
    extend_body_deadline(have);
    if (*got > 0) continue;
    co_await readable();
    if (timed_out_) co_return co_await refuse(408, "the request body took too long");
  }
  body.reserve(wanted + kBodyPadding);
  co_return true;
}

asio::awaitable<bool> Connection::read_chunked_body(Request& request) {
  ChunkScanner scanner(ChunkScanner::Extensions::refuse);
  for (;;) {
    const auto used = scanner.scan(in_, &request.body);
    if (!used.ok()) co_return co_await refuse(400, "malformed chunked body");
    in_.erase(0, *used);
    if (request.body.size() > shared_->config.max_body_bytes) co_return co_await refuse(413, "request body too large");
    if (!share_.grow_to(request.body.size())) co_return co_await refuse_for_want_of_room();
    if (scanner.done()) break;
    extend_body_deadline(scanner.payload_bytes());
    const bool more = co_await fill();
    if (!more && timed_out_) co_return co_await refuse(408, "the request body took too long");
    if (!more) co_return false;
  }
  request.content_length = request.body.size();
  request.body.reserve(request.body.size() + kBodyPadding);
  co_return true;
}

asio::awaitable<bool> Connection::refuse(int status, std::string message) {
  co_return co_await refuse(error_response(status, message));
}

asio::awaitable<bool> Connection::refuse_for_want_of_room() {
  return refuse(503, "the bodies of all requests together take as much as they may");
}

asio::awaitable<bool> Connection::refuse(Response answer) {
  keep_alive_ = false;
  timed_out_ = false;
  const Status sent = co_await send(std::move(answer));
  if (sent.ok()) co_await linger();
  co_return false;
}

asio::awaitable<void> Connection::linger() {
  boost::system::error_code ignored;
  stream_->socket().shutdown(boost::asio::ip::tcp::socket::shutdown_send, ignored);
  deadline_.set_in(kLinger);
  phase_ = Phase::body;
  for (uint64_t dropped = 0; dropped < kLingerBytes && !timed_out_;) {
    const auto bytes = stream_->receive_now();
    if (!bytes.ok()) co_return;
    dropped += bytes->size();
    if (bytes->empty()) co_await readable();
  }
}

asio::awaitable<Status> Connection::push(std::string_view first, std::string_view second) {
  deadline_.set_in(shared_->config.write_timeout);
  const std::array<std::string_view, 2> pieces{first, second};
  const Status status = co_await stream_->send(pieces, [this] { deadline_.set_in(shared_->config.write_timeout); });
  if (phase_ == Phase::handler) deadline_.clear();
  if (!status.ok()) {
    stream_->close();
    notice_gone();
  }
  co_return status;
}

asio::awaitable<Status> Connection::send(Response response) {
  started_ = true;
  std::string head;
  head.reserve(160 + response.body.size());
  append_status_line(head, response.status);
  if (!response.content_type.empty()) append_field(head, "Content-Type", response.content_type);
  for (size_t i = 0; i < response.headers.size(); ++i) {
    append_field(head, response.headers.name(i), response.headers.value(i));
  }
  head.append("Content-Length: ");
  append_number(head, response.body.size());
  head.append(keep_alive() ? "\r\nConnection: keep-alive\r\n\r\n" : "\r\nConnection: close\r\n\r\n");
  const std::string_view body = head_only_ ? std::string_view() : std::string_view(response.body);
  Status status = co_await push(head, body);
  ended_ = status.ok();
  co_return status;
}

asio::awaitable<Status> Connection::start(int status, const Headers& headers) {
  started_ = true;
  chunked_ = minor_version_ == 1;
  keep_alive_ = keep_alive_ && chunked_;
  std::string head;
  append_status_line(head, status);
  for (size_t i = 0; i < headers.size(); ++i) append_field(head, headers.name(i), headers.value(i));
  if (chunked_) append_field(head, "Transfer-Encoding", "chunked");
  append_field(head, "Connection", keep_alive() ? "keep-alive" : "close");
  head.append("\r\n");
  co_return co_await push(head, {});
}

asio::awaitable<Status> Connection::write(std::string_view bytes) {
  if (bytes.empty() || head_only_) co_return Status();
  if (!chunked_) co_return co_await push(bytes, {});
  constexpr std::string_view kHex = "0123456789abcdef";
  std::string frame;
  frame.reserve(bytes.size() + 24);
  size_t shift = 60;
  while (shift > 0 && (bytes.size() >> shift) == 0) shift -= 4;
  for (;; shift -= 4) {
    frame.push_back(kHex[(bytes.size() >> shift) & 15]);
    if (shift == 0) break;
  }
  frame.append("\r\n").append(bytes).append("\r\n");
  co_return co_await push(frame, {});
}

asio::awaitable<Status> Connection::finish() {
  Status status;
  if (chunked_ && !head_only_) status = co_await push("0\r\n\r\n", {});
  ended_ = status.ok();
  co_return status;
}

Result<bool> Connection::raw_now(std::string_view bytes) {
  started_ = true;
  const auto sent = stream_->send_now(bytes);
  if (!sent.ok()) {
    stream_->close();
    notice_gone();
    return sent.error();
  }
  out_.assign(bytes.substr(*sent));  // the bytes may lie in the block that the loop shares
  return out_.empty();
}

asio::awaitable<Status> Connection::raw(std::string_view bytes) {
  started_ = true;
  if (!bytes.empty()) {
    const auto sent = raw_now(bytes);
    if (!sent.ok()) co_return sent.error();
  }
  if (out_.empty()) co_return Status();
  Status status = co_await push(out_, {});
  std::string().swap(out_);
  co_return status;
}

void Connection::raw_end(bool reusable) {
  ended_ = true;
  keep_alive_ = keep_alive_ && reusable;
}

}  // namespace kvferry::http
