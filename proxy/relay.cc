#include <fmt/format.h>

#include "http/json.h"
#include "proxy/exchange.h"

// The decoder's leg and the way back: its answer as it comes, byte for byte, with nothing read but its head and how it
// begins.

namespace kvferry::proxy {
namespace {

namespace asio = boost::asio;

bool is_event_stream(const http::ResponseHead& head) {
  const auto type = head.headers.get("content-type");
  constexpr std::string_view kType = "text/event-stream";
  return type && type->size() >= kType.size() && http::iequals(type->substr(0, kType.size()), kType);
}

// vLLM reports what goes wrong before the first token as the first event of a stream that began with 200.
bool starts_with_error_event(std::string_view bytes) {
  constexpr size_t kChunkHeader = 16;
  const size_t at = bytes.substr(0, kChunkHeader + 16).find("data: {\"error\"");
  return at != std::string_view::npos;
}

bool worth_another(int status) {
  return status == 502 || status == 503;
}

}  // namespace

asio::awaitable<Exchange::Step> Exchange::decode(const Spliced& body, std::string_view leg) {
  const std::string head = backend_head(*decoder_, body.size, 0, false);
  auto answered = co_await round_trip(decoder_, head, body);
  if (!answered.ok()) {
    note_failure(*decoder_, answered.error(), leg);
    failed_decoder_ = decoder_.get();
    // Past the deadline there is nobody left to wait for another try.
    const bool again = answered.error().code != ErrorCode::deadline_exceeded;
    if (!again) co_await answer(fault_.status, fault_.message);
    co_return stop() || !again ? Step::done : Step::failed;
  }
  const int status = answered->status;
  status >= 500 ? decoder_->breaker.failed(now(), false) : decoder_->breaker.succeeded();
  if (status >= 500 && leg == "decode" && !restarted_) {
    restarted_ = co_await prefiller_restarted();
    if (restarted_) {
      context_.metrics.leg(leg, status, "prefiller_restarted", decoder_->name);
      fault_ = {status, "the prefiller was restarted under way"};
      wire_.reset();
      co_return stop() ? Step::done : Step::failed;
    }
  }
  if (worth_another(status) && context_.backends.of(Role::decode).size() > 1 && failed_decoder_ == nullptr) {
    context_.metrics.leg(leg, status, "status", decoder_->name);
    failed_decoder_ = decoder_.get();
    fault_ = {status, "the decoder could not take the request"};
    wire_.reset();
    co_return Step::failed;
  }
  co_return co_await relay(std::move(*answered), leg);
}

std::string Exchange::client_head(const http::ResponseHead& head, bool dechunk) {
  std::string out;
  out.reserve(512);
  http::append_status_line(out, head.status, head.reason);
  const http::HopByHop hop_by_hop(head.headers);
  for (size_t i = 0; i < head.headers.size(); ++i) {
    const std::string_view name = head.headers.name(i);
    if (hop_by_hop.covers(name) || http::iequals(name, "x-request-id")) continue;
    http::append_field(out, name, head.headers.value(i));
  }
  http::append_field(out, "X-Request-Id", request_id_);
  if (context_.config.debug_headers) {
    if (prefiller_ && !handover_.transfer_id.empty()) http::append_field(out, "X-KVFerry-Prefill", prefiller_->name);
    http::append_field(out, "X-KVFerry-Decode", decoder_->name);
  }
  const bool until_close = dechunk || head.framing == http::Framing::until_close;
  if (head.framing == http::Framing::chunked && !dechunk) http::append_field(out, "Transfer-Encoding", "chunked");
  http::append_field(out, "Connection", writer_.keep_alive() && !until_close ? "keep-alive" : "close");
  out.append("\r\n");
  return out;
}

Result<std::string_view> Exchange::next_piece(bool dechunk) {
  if (!dechunk && !prelude_) return wire_->body_now(nullptr);
  payload_.clear();
  KVF_ASSIGN_OR_RETURN(const std::string_view raw, wire_->body_now(&payload_));
  return dechunk ? std::string_view(payload_) : raw;
}

// What the first piece says, or, where the stream says something before the engine has the request, each up to the
// first one that comes out of it.
Prelude::Heard Exchange::heard_in(std::string_view piece) {
  if (!prelude_) return starts_with_error_event(piece) ? Prelude::Heard::failure : Prelude::Heard::answer;
  const Prelude::Heard heard = prelude_->read(payload_);
  if (heard != Prelude::Heard::nothing) prelude_.reset();
  return heard;
}

void Exchange::note_piece(std::string_view piece, bool succeeded) {
  relayed_ += piece.size();
  context_.metrics.relayed_bytes.add(piece.size());
  context_.metrics.relay_pieces.add();
  if (piece.empty()) return;
  last_byte_ = piece.back();
  if (first_byte_ >= Duration(0)) return;
  const Prelude::Heard heard = heard_in(piece);
  if (heard == Prelude::Heard::nothing) return;
  first_byte_ = now() - began_;
  context_.metrics.first_byte_seconds.observe(seconds(first_byte_));
  if (prefilled_ != TimePoint{}) context_.metrics.handover_seconds.observe(seconds(now() - prefilled_));
  // What is heard first of a good answer proves that the decoder has the KV.
  const bool fetched = succeeded && heard == Prelude::Heard::answer;
  fetched ? parcel_.settled() : parcel_.release();
}

asio::awaitable<Exchange::Step> Exchange::relay(http::ResponseHead head, std::string_view leg) {
  status_ = head.status;
  const bool succeeded = head.status >= 200 && head.status < 300;
  if (!succeeded) parcel_.release();
  // One that is compressed cannot be read here: its first byte has to do.
  const bool readable = is_event_stream(head) && !head.headers.get("content-encoding");
  if (succeeded && readable && endpoint_ == Endpoint::responses) prelude_.emplace();
  const bool dechunk = head.framing == http::Framing::chunked && request_.minor_version == 0;
  // What came together leaves together: a short answer is one segment.
  std::string out = client_head(head, dechunk);
  auto piece = next_piece(dechunk);
  if (piece.ok()) {
    note_piece(*piece, succeeded);
    out.append(*piece);
  }
  Status sent = co_await writer_.raw(out);
  std::string().swap(out);
  while (sent.ok() && piece.ok() && !wire_->body_done()) {
    const bool waiting_for_first = first_byte_ < Duration(0);
    wire_->set_deadline(waiting_for_first ? first_byte_due_ : after(now(), context_.config.stream_idle_timeout));
    if (!waiting_for_first && !dechunk) {
      sent = co_await relay_events(succeeded);
      break;
    }
    co_await wire_->wait();
    wire_->set_deadline(kNever);  // a slow client is the writer's business
    piece = next_piece(dechunk);
    if (!piece.ok() || piece->empty()) continue;
    note_piece(*piece, succeeded);
    sent = co_await writer_.raw(*piece);
  }
  Status end = sent;
  if (sent.ok() && !piece.ok()) end = piece.error();
  co_await finish_relay(head, leg, std::move(end));
  co_return Step::done;
}

// After the first piece: as long as the client takes what comes, no coroutine wakes up for it.
asio::awaitable<Status> Exchange::relay_events(bool succeeded) {
  const Duration idle = context_.config.stream_idle_timeout;
  std::string().swap(payload_);
  Status sent;
  bool all = true;
  const auto take = [&](std::string_view piece) {
    note_piece(piece, succeeded);
    const auto taken = writer_.raw_now(piece);
    if (!taken.ok()) sent = taken.error();
    all = taken.ok() && *taken;
    if (all) wire_->set_deadline(after(now(), idle));
    return all;
  };
  while (sent.ok() && !wire_->body_done()) {
    wire_->set_deadline(after(now(), idle));
    const Status pumped = co_await wire_->pump(take);
    wire_->set_deadline(kNever);
    if (!sent.ok()) break;
    if (!pumped.ok()) co_return pumped;
    if (!all) sent = co_await writer_.raw({});
    all = true;
  }
  co_return sent;
}

asio::awaitable<void> Exchange::finish_relay(const http::ResponseHead& head, std::string_view leg, Status end) {
  const bool chunked = head.framing == http::Framing::chunked && request_.minor_version == 1;
  if (end.ok()) {
    cause_ = head.status < 400 ? "ok" : "status";
    if (head.status < 300 && !prelude_) parcel_.settled();
    context_.metrics.leg(leg, head.status, cause_, decoder_->name);
    writer_.raw_end(chunked || head.framing == http::Framing::length || head.framing == http::Framing::none);
    context_.pool.give_back(*decoder_, std::move(wire_));
    co_return;
  }
  if (gone_ || writer_.gone()) {
    gone_ = true;
    wire_.reset();
    context_.metrics.leg(leg, head.status, "client_gone", decoder_->name);
    co_return;
  }
  const bool clean_end = chunked && is_event_stream(head) && wire_->between_chunks();
  note_failure(*decoder_, end.error(), leg);
  parcel_.release();
  wire_.reset();
  if (clean_end) co_await end_event_stream();
}

// The client's stream has begun: its status is gone, so the failure comes as an event, and the stream ends as one that
// is complete. In the middle of a chunk nothing of that can be said; the connection is just closed.
asio::awaitable<void> Exchange::end_event_stream() {
  std::string event = last_byte_ == '\n' ? "" : "\n\n";
  event.append("data: ").append(http::error_body(fault_.status, fault_.message)).append("\n\ndata: [DONE]\n\n");
  const std::string chunk = fmt::format("{:x}\r\n{}\r\n0\r\n\r\n", event.size(), event);
  const Status sent = co_await writer_.raw(chunk);
  if (sent.ok()) writer_.raw_end(false);
}

}  // namespace kvferry::proxy
