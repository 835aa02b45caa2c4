#include "http/json.h"
#include "proxy/core.h"
#include "proxy/dashboard_page.h"

// What the page at /dashboard is and asks for.

namespace kvferry::proxy {
namespace {

namespace asio = boost::asio;

constexpr size_t kParcelsShown = 100;
constexpr Duration kPeerTimeout = std::chrono::milliseconds(500);

// The lines of an exposition that the page reads.
std::string shown_lines(std::string_view page) {
  std::string out;
  while (!page.empty()) {
    const size_t end = std::min(page.find('\n'), page.size() - 1) + 1;
    if (page.starts_with("kvferry_") || page.starts_with("vllm:kvferry_")) out.append(page.substr(0, end));
    page.remove_prefix(end);
  }
  return out;
}

}  // namespace

http::Response Proxy::Core::dashboard() const {
  http::Response response;
  response.body = dashboard_page();
  response.content_type = "text/html; charset=utf-8";
  // Nothing from elsewhere is loaded, and the page cannot be framed.
  response.headers.add("Content-Security-Policy",
                       "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
                       "img-src data:; frame-ancestors 'none'");
  return response;
}

http::Response Proxy::Core::pinned_parcels() const {
  http::Response response;
  std::string& out = response.body = R"({"parcels":[)";
  for (const PinnedParcel& parcel : releases.pinned(kParcelsShown)) {
    if (out.back() == '}') out.push_back(',');
    out.append(R"({"transfer_id":)");
    http::append_json_string(out, parcel.transfer_id);
    out.append(R"(,"prefill":)");
    http::append_json_string(out, parcel.prefiller);
    out.append(R"(,"decode":)");
    http::append_json_string(out, parcel.decoder);
    out.append(R"(,"age_ms":)");
    http::append_number(out, static_cast<uint64_t>(parcel.age / std::chrono::milliseconds(1)));
    out.push_back('}');
  }
  out.append("]}");
  return response;
}

// The metrics of all backends that are well, as text by name: browsers may not ask them themselves.
asio::awaitable<http::Response> Proxy::Core::peers() {
  std::string out = R"({"peers":[)";
  for (const Role role : {Role::prefill, Role::decode}) {
    const std::vector<std::shared_ptr<Backend>> asked = backends.of(role);
    for (const auto& backend : asked) {
      if (!backend->healthy) continue;
      http::Fetch fetch;
      fetch.url = backend->url;
      fetch.target = "/metrics";
      fetch.timeout = kPeerTimeout;
      fetch.max_body_bytes = 1 << 20;
      const auto page = co_await http::fetch(loop, deadlines, std::move(fetch));
      if (!page.ok() || page->head.status != 200) continue;
      if (out.back() == '}') out.push_back(',');
      out.append(R"({"role":")").append(to_string(role)).append(R"(","name":)");
      http::append_json_string(out, backend->name);
      out.append(R"(,"metrics":)");
      http::append_json_string(out, shown_lines(page->body));
      out.push_back('}');
    }
  }
  http::Response response;
  response.body = out.append("]}");
  co_return response;
}

}  // namespace kvferry::proxy
