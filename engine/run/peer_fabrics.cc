#include <fmt/format.h>

#include <algorithm>

#include "common/text.h"
#include "engine/run/peer.h"

// Which fabric a transfer to a peer takes, and what is said of it.

namespace kvferry {
namespace {

// Where a peer's fabric listens: what it says, with the host by which it is reached where it says "any".
std::string address_of_fabric(const std::string& told, const Address& session) {
  const auto parsed = parse_address(told, false);
  if (!parsed || (parsed->host != "0.0.0.0" && parsed->host != "::")) return told;
  return Address{session.host, parsed->port}.to_string();
}

}  // namespace

void Peer::choose_one_sided() {
  const InitiatorSession::PeerFacts& facts = session_->peer();
  if (context_.loopback && context_.loopback->has(facts.engine_id, facts.incarnation))
    one_sided_path_ =
        std::make_unique<loopback::LoopbackPath>(context_.loop, context_.loopback, facts.engine_id, facts.incarnation);
  else if (session_->link() && context_.copier != nullptr)
    one_sided_path_ =
        std::make_unique<local::LocalPath>(session_->link(), *context_.copier, context_.clock, context_.post);
  else
    one_sided_path_ = make_plugin_path();
}

// The ways to the peer by the fabric of the node `first`, one for each of its rails that the peer has too: the first
// device of this machine to the first of that one, and so on.
std::vector<plugin::RailsPath::Way> Peer::make_ways(size_t first, const std::string& owner, bool several) {
  const InitiatorSession::PeerFacts& facts = session_->peer();
  std::vector<plugin::RailsPath::Way> ways;
  for (size_t i = first; i < context_.nodes.size() && context_.nodes[i]->rail() == i - first; ++i) {
    plugin::Node* node = context_.nodes[i];
    const auto offer = facts.fabrics.find(node->fabric());
    if (offer == facts.fabrics.end() || !node->take(owner)) {
      const bool offered = offer != facts.fabrics.end();
      why_no_plugin_ +=
          fmt::format("; {}: {}", node->fabric(),
                      offered ? "used already, by another address of this peer" : "not offered by the peer");
      continue;
    }
    plugin::PathOptions options;
    options.has_stand_in = context_.use_tcp || several;
    options.connect_patience = context_.connect_patience;
    options.logger = context_.logger;
    if (several) options.attempts = 1;  // another rail takes what breaks on this one
    options.piece_bytes = std::min(options.piece_bytes, node->longest_operation());
    if (!node->enforces_keys()) {
      // The owner's CPU moves the bytes: a small window is as fast, and what is under way is let end rather than cut
      // off, of which UCX's emulation thinks little (docs/rdma.md).
      options.window_bytes = uint64_t{2} << 20;
      options.cancel_patience = std::chrono::milliseconds(500);
    }
    ways.push_back({std::make_unique<plugin::PluginPath>(context_.loop, *node, owner,
                                                         address_of_fabric(offer->second, address_), options),
                    node});
  }
  return ways;
}

// The first fabric of ours that the peer has too.
std::unique_ptr<RevocablePath> Peer::make_plugin_path() {
  why_no_plugin_.clear();
  const std::string owner = fmt::format("{}/{:016x}", session_->peer().engine_id, session_->peer().incarnation);
  for (size_t i = 0; i < context_.nodes.size(); ++i) {
    if (context_.nodes[i]->rail() != 0) continue;
    const bool several = i + 1 < context_.nodes.size() && context_.nodes[i + 1]->rail() == 1;
    auto ways = make_ways(i, owner, several);
    if (ways.empty()) continue;
    std::unique_ptr<RevocablePath> path;
    if (several)
      path = std::make_unique<plugin::RailsPath>(context_.loop, std::move(ways), owner, context_.use_tcp,
                                                 context_.logger, plugin::RailOptions{});
    else
      path = std::move(ways.front().path);
    plugin_path_ = path.get();
    return path;
  }
  return nullptr;
}

// I4: the owner gives memory back when it hears that we are through with it.
void Peer::on_regions_changed() {
  publish_view();
  if (context_.nodes.empty()) return;
  const uint64_t version = session_->regions_version();
  if (plugin_path_ == nullptr) return session_->tell_regions_quiet(version);
  const auto quiet = std::make_shared<bool>(false);
  InitiatorSession* const session = session_.get();
  plugin_path_->retire(session->regions(), [this, version, quiet, session] {
    *quiet = true;
    if (session_.get() == session) session->tell_regions_quiet(version);
  });
  if (!*quiet && session_.get() == session) session->tell_regions_known(version);
}

Result<Path*> Peer::choose_path(const Job& job) {
  const auto reached = [&](const RegionInfo* region) {
    return one_sided_path_->reaches_directly(*job.local_ops, job.pins, *region);
  };
  std::string why_not_local = session_->why_not_local();
  if (one_sided_path_) {
    if (std::all_of(job.remote.begin(), job.remote.end(), reached)) return static_cast<Path*>(one_sided_path_.get());
    why_not_local = "device memory";
    if (plugin_path_ != nullptr)
      why_not_local += fmt::format("; {}: memory that one side has no key for", plugin_path_->fabric());
  }
  if (tcp_path_) return static_cast<Path*>(tcp_path_.get());
  return Error{ErrorCode::unsupported,
               "no fabric reaches the peer: local: " + why_not_local + why_no_plugin_ + "; tcp: switched off here"};
}

std::string Peer::describe() const {
  const bool ready = session_ && session_->ready();
  std::string out = fmt::format(R"({{"address":{},"state":{},"transfers":{})", json_quote(address_.to_string()),
                                json_quote(ready      ? "ready"
                                           : session_ ? "connecting"
                                                      : "idle"),
                                tasks_.size());
  if (!last_error_.empty()) out += ",\"last_error\":" + json_quote(last_error_);
  if (ready) {
    out += fmt::format(R"(,"engine_id":{},"incarnation":"{:016x}","regions":{},"round_trip_us":{})",
                       json_quote(session_->peer().engine_id), session_->peer().incarnation,
                       session_->regions()->regions().size(), session_->round_trip().count() / 1000);
    const bool local = one_sided_path_ != nullptr;
    const std::string why = !local                    ? "local: " + session_->why_not_local() + why_no_plugin_
                            : plugin_path_ != nullptr ? one_sided_path_->describe()
                                                      : "same host";
    out += fmt::format(R"(,"fabric":{},"why":{})",
                       json_quote(local       ? one_sided_path_->fabric()
                                  : tcp_path_ ? "tcp"
                                              : "none"),
                       json_quote(why));
    if (tcp_path_) out += ",\"tcp\":" + json_quote(tcp_path_->describe());
  }
  return out + "}";
}

}  // namespace kvferry
