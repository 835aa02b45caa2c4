#include "proxy/exchange.h"

#include <algorithm>
#include <array>

#include "http/json.h"

namespace kvferry::proxy {
namespace {

namespace asio = boost::asio;

constexpr size_t kMaxRequestId = 128;

// Fields that the proxy writes itself.
bool rewritten(std::string_view name) {
  constexpr std::array<std::string_view, 5> kOwn = {"host", "content-length", "expect", "x-request-id",
                                                    "x-data-parallel-rank"};
  return std::any_of(kOwn.begin(), kOwn.end(), [&](std::string_view own) { return http::iequals(own, name); });
}

}  // namespace

Exchange::Exchange(Context& context, http::Request& request, http::ResponseWriter& writer, Duration queued)
    : context_(context),
      request_(request),
      writer_(writer),
      began_(context.deadlines.now()),
      first_byte_due_(after(began_, context.config.lease)),
      queued_(queued) {
  if (const auto given = request.headers.get("x-request-id"); given && given->size() <= kMaxRequestId) {
    request_id_ = *given;
  }
  if (request_id_.empty()) request_id_ = new_uuid();
  if (const auto session = request.headers.get("x-session-id")) session_ = *session;
  writer_.on_gone([this] { client_left(); });
}

Exchange::~Exchange() {
  writer_.on_gone(nullptr);
  const Duration total = now() - began_;
  context_.metrics.total_seconds.observe(seconds(total));
  AccessRecord record;
  record.request_id = request_id_;
  record.transfer_id = handover_.transfer_id;
  record.method = request_.method;
  record.path = request_.path();
  record.remote = request_.remote;
  if (prefiller_) record.prefill = prefiller_->name;
  if (decoder_) record.decode = decoder_->name;
  record.cause = gone_ ? "client_gone" : cause_;
  record.status = status_;
  record.queue = queued_;
  record.prefill_time = prefill_time_;
  record.first_byte = first_byte_;
  record.total = total;
  record.bytes = relayed_;
  context_.access_log.write(record);
}

std::string Exchange::new_uuid() {
  constexpr std::string_view kHex = "0123456789abcdef";
  std::array<uint64_t, 2> bits{context_.random.next(), context_.random.next()};
  bits[0] = (bits[0] & ~0xf000ULL) | 0x4000ULL;
  bits[1] = (bits[1] & ~(3ULL << 62)) | (2ULL << 62);
  std::string out(36, '-');
  char* at = out.data();
  for (size_t i = 0; i < 16; ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) ++at;
    const auto byte = static_cast<uint8_t>(bits[i / 8] >> (56 - 8 * (i % 8)));
    *at++ = kHex[byte >> 4];
    *at++ = kHex[byte & 15];
  }
  return out;
}

void Exchange::client_left() {
  gone_ = true;
  // An answer that lies unread in the socket means that the prefiller did finish and pins blocks (trap 9).
  if (parcel_ && prefilled_ == TimePoint{} && wire_ && wire_->has_input()) parcel_.answered(handover_);
  parcel_.release();
  if (wire_) wire_->close();
}

asio::awaitable<void> Exchange::answer(int status, std::string message) {
  if (writer_.started() || gone_) co_return;
  status_ = status;
  http::Response response = http::error_response(status, message);
  response.headers.add("X-Request-Id", request_id_);
  const Status sent = co_await writer_.send(std::move(response));
  if (!sent.ok()) gone_ = true;
}

std::string Exchange::backend_head(const Backend& backend, size_t body_size, int dp_rank, bool prefill) const {
  std::string out;
  out.reserve(512);
  out.append(request_.method).append(" ").append(backend.url.path).append(request_.target).append(" HTTP/1.1\r\n");
  http::append_field(out, "Host", backend.url.authority());
  const bool own_key = !context_.config.api_key.empty();
  const http::HopByHop hop_by_hop(request_.headers);
  for (size_t i = 0; i < request_.headers.size(); ++i) {
    const std::string_view name = request_.headers.name(i);
    if (rewritten(name) || hop_by_hop.covers(name)) continue;
    if (own_key && http::iequals(name, "authorization")) continue;
    if (prefill && http::iequals(name, "accept-encoding")) continue;  // its answer is read here
    http::append_field(out, name, request_.headers.value(i));
  }
  if (own_key) http::append_field(out, "Authorization", "Bearer " + context_.config.api_key);
  http::append_field(out, "X-Request-Id", request_id_);
  if (prefill) {
    http::append_field(out, "X-data-parallel-rank", std::to_string(dp_rank));
  } else if (const auto rank = request_.headers.get("x-data-parallel-rank")) {
    http::append_field(out, "X-data-parallel-rank", *rank);
  }
  if (body_size > 0 || request_.method == "POST") {
    out.append("Content-Length: ");
    http::append_number(out, body_size);
    out.append("\r\n");
  }
  out.append("\r\n");
  return out;
}

asio::awaitable<Result<http::ResponseHead>> Exchange::round_trip(std::shared_ptr<Backend> backend,
                                                                 const std::string& head, const Spliced& body) {
  std::vector<std::string_view> pieces;
  pieces.reserve(2 + body.rest.size());
  pieces.assign({head, body.front});
  pieces.insert(pieces.end(), body.rest.begin(), body.rest.end());
  const TimePoint due = backend->role == Role::prefill
                            ? std::min(first_byte_due_, after(now(), context_.config.prefill_timeout))
                            : first_byte_due_;
  backend->breaker.starts(now());
  for (const bool fresh : {false, true}) {
    auto lease = co_await context_.pool.take(*backend, fresh);
    if (gone_) co_return Error{ErrorCode::cancelled, "the client left", "", "", ""};
    if (!lease.ok()) co_return lease.error();
    wire_ = std::move(lease->connection);
    wire_->set_deadline(due);
    const Status sent = co_await wire_->send(pieces);
    // A backend may answer before it has read everything (413): what it says counts more than the failed send.
    auto answer = co_await wire_->read_head(request_.method == "HEAD");
    if (answer.ok()) co_return std::move(*answer);
    const bool stale = lease->reused && !wire_->answered() && answer.error().code == ErrorCode::peer_lost;
    Error error = sent.ok() || stale ? answer.error() : sent.error();
    wire_.reset();
    if (gone_) co_return Error{ErrorCode::cancelled, "the client left", "", "", ""};
    backend->suspect = true;
    if (!stale) co_return error;
  }
  co_return Error{ErrorCode::peer_lost, "the backend closed the connection twice", "", backend->name, ""};
}

void Exchange::note_failure(Backend& backend, const Error& error, std::string_view leg) {
  if (gone_ || error.code == ErrorCode::cancelled) {
    backend.breaker.undecided();
    context_.metrics.leg(leg, 0, "client_gone", backend.name);
    return;
  }
  backend.breaker.failed(now(), error.code == ErrorCode::unavailable);
  backend.suspect = true;
  fault_ = fault_of(error);
  cause_ = to_string(error.code);
  context_.metrics.leg(leg, 0, cause_, backend.name);
  context_.log.debug("{} leg of {} failed: {}", leg, request_id_, error.to_string());
}

Exchange::Fault Exchange::fault_of(const Error& error) const {
  if (error.code == ErrorCode::deadline_exceeded) return {504, "the backend did not answer in time"};
  if (error.code == ErrorCode::unavailable) return {502, "the backend cannot be reached"};
  return {502, "the backend broke off"};
}

asio::awaitable<void> Exchange::infer(Endpoint endpoint) {
  endpoint_ = endpoint;
  auto facts = read_request(endpoint, request_.body, context_.scanner);
  if (!facts.ok()) {
    cause_ = "bad_request";
    context_.metrics.leg("front", 400, cause_, "");
    co_await answer(400, facts.error().to_string());
    co_return;
  }
  if (session_.empty()) session_ = facts->session;
  if (facts->alone.empty() && facts->prompt.size() < context_.config.min_prompt_bytes) facts->alone = "short_prompt";
  co_await split(endpoint, *facts);
}

asio::awaitable<void> Exchange::split(Endpoint endpoint, const RequestFacts& facts) {
  for (int tries = 0; tries < kAttempts && !stop(); ++tries) {
    const Step step = co_await attempt(endpoint, facts);
    parcel_.release();  // fetched ones are settled; a retry needs a new prefill and a new id (trap 6)
    prefilled_ = {};
    if (step == Step::done) co_return;
  }
  co_await answer(fault_.status, fault_.message);
}

asio::awaitable<Exchange::Step> Exchange::attempt(Endpoint endpoint, const RequestFacts& facts) {
  const Router::Question question{facts.prompt, session_, now(), failed_decoder_};
  const auto choice = context_.router.choose(Role::decode, question);
  if (!choice) {
    if (fault_.message.empty()) {
      cause_ = "no_decoder";
      fault_ = {503, "no decoder is available"};
    }
    context_.metrics.leg("front", fault_.status, cause_, "");
    co_await answer(fault_.status, fault_.message);
    co_return Step::done;
  }
  decoder_ = choice->backend;
  const Busy busy(decoder_, choice->tokens, true);
  if (facts.alone.empty()) {
    const Step prefilled = co_await prefill(endpoint, facts);
    if (prefilled == Step::done || stop()) co_return Step::done;
    if (prefilled == Step::next) {
      parcel_.told(decoder_);
      const Metrics::Pair pair(context_.metrics, prefiller_->name, decoder_->name);
      const Spliced body = decode_body(facts.members, decode_params(context_.config.dialect, handover_));
      co_return co_await decode(body, "decode");
    }
    if (!context_.config.local_prefill) {
      if (fault_.message.empty()) fault_ = {503, "no prefiller is available"};
      co_await answer(fault_.status, fault_.message);
      co_return Step::done;
    }
    context_.metrics.leg("front", 0, "local_prefill", decoder_->name);
  }
  const Spliced body = decode_body(facts.members, {});
  co_return co_await decode(body, "alone");
}

asio::awaitable<void> Exchange::pass() {
  Spliced body;
  const auto type = request_.headers.get("content-type").value_or("");
  const bool form = type.starts_with("multipart/form-data") && request_.headers.count("content-type") == 1;
  if (form && hides_params(request_.body)) {
    cause_ = "bad_request";
    co_await answer(400, "kv_transfer_params may not be given in a form");
    co_return;
  }
  std::optional<Members> members;
  const size_t first = request_.body.find_first_not_of(" \t\r\n");
  if (form || first == std::string::npos) {
    body.rest.push_back(request_.body);
    body.size = request_.body.size();
  } else {
    auto scanned = context_.scanner.scan(request_.body);
    const Status clean = scanned.ok() ? refuse_hidden_params(*scanned, context_.scanner) : Status(scanned.error());
    if (!clean.ok()) {
      cause_ = "bad_request";
      co_await answer(400, clean.error().to_string());
      co_return;
    }
    members = std::move(*scanned);
    body = decode_body(*members, {});
  }
  for (int tries = 0; tries < kAttempts && !stop(); ++tries) {
    const Router::Question question{{}, session_, now(), failed_decoder_};
    const auto choice = context_.router.choose(Role::decode, question);
    if (!choice) break;
    decoder_ = choice->backend;
    const Busy busy(decoder_, 0, true);
    const Step step = co_await decode(body, "pass");
    if (step == Step::done) co_return;
  }
  if (fault_.message.empty()) fault_ = {503, "no decoder is available"};
  co_await answer(fault_.status, fault_.message);
}

}  // namespace kvferry::proxy
