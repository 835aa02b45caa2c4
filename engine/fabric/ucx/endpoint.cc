#include "engine/fabric/ucx/endpoint.h"

#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "engine/fabric/plugin_kit.h"

namespace kvferry::ucx {
namespace {

// UCX tells an operation's end by one pointer of ours: the endpoint travels in it, the operation's number beside it.
struct Pending {
  kvf_endpoint* endpoint;
  uint64_t operation;
};

// Tells what failed, now that its memory is quiet.
void bury(kvf_endpoint* endpoint) {
  const kvf_host& host = endpoint->fabric->host();
  for (const auto& [operation, why] : endpoint->failed) host.ended(host.self, operation, KVF_LOST, why);
  delete endpoint;
}

// What goes wrong in flight goes wrong with the connection: UCX takes the endpoint down with it, at both ends. That its
// memory is quiet is sure when the endpoint is gone, and told then.
void on_end(void* request, ucs_status_t status, void* data) {
  const std::unique_ptr<Pending> pending(static_cast<Pending*>(data));
  kvf_endpoint* endpoint = pending->endpoint;
  --endpoint->in_flight;
  const kvf_host& host = endpoint->fabric->host();
  if (status == UCS_OK) {
    host.ended(host.self, pending->operation, KVF_OK, nullptr);
  } else {
    endpoint->failed.emplace_back(pending->operation, ucs_status_string(status));
    host.lost(host.self, endpoint->token, ucs_status_string(status));
  }
  ucp_request_free(request);
  if (endpoint->gone && endpoint->in_flight == 0) bury(endpoint);
}

template <class Post>
int32_t start(kvf_endpoint* endpoint, uint64_t operation, kvf_memory* memory, const char* what, kvf_text why,
              Post post) {
  auto pending = std::make_unique<Pending>(Pending{endpoint, operation});
  ucp_request_param_t params{};
  params.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  params.cb.send = on_end;
  params.user_data = pending.get();
  if (memory != nullptr) {
    params.op_attr_mask |= UCP_OP_ATTR_FIELD_MEMH | UCP_OP_ATTR_FIELD_MEMORY_TYPE;
    params.memh = memory->handle;
    params.memory_type = memory->type;
  }
  const ucs_status_ptr_t request = post(&params);
  if (request == nullptr) return KVF_OK;
  if (UCS_PTR_IS_PTR(request)) {
    ++endpoint->in_flight;
    static_cast<void>(pending.release());
    return KVF_PENDING;
  }
  switch (const ucs_status_t status = UCS_PTR_STATUS(request)) {
    case UCS_ERR_NO_RESOURCE:
      return KVF_BUSY;
    case UCS_ERR_INVALID_PARAM:
    case UCS_ERR_UNSUPPORTED:
    case UCS_ERR_NO_MEMORY:
      return say(why, what, status, KVF_FAILED);
    default:
      return say(why, what, status, KVF_LOST);
  }
}

}  // namespace

int32_t connect(kvf_fabric* fabric, const char* address, uint64_t endpoint, kvf_endpoint** out, kvf_text why) {
  const auto to = plugin_kit::SocketAddress::parse(address);
  if (!to.ok()) return say(why, "not a numeric address", UCS_ERR_INVALID_ADDR, KVF_FAILED);
  auto made = std::make_unique<kvf_endpoint>(kvf_endpoint{fabric, endpoint, nullptr, 0, {}, false});
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_FLAGS | UCP_EP_PARAM_FIELD_SOCK_ADDR | UCP_EP_PARAM_FIELD_ERR_HANDLER |
                      UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE;
  params.flags = UCP_EP_PARAMS_FLAGS_CLIENT_SERVER | UCP_EP_PARAMS_FLAGS_SEND_CLIENT_ID;
  params.sockaddr = {to.get(), to.size()};
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler.arg = made.get();
  params.err_handler.cb = [](void* self, ucp_ep_h, ucs_status_t status) {
    const auto* lost = static_cast<kvf_endpoint*>(self);
    lost->fabric->host().lost(lost->fabric->host().self, lost->token, ucs_status_string(status));
  };
  if (const ucs_status_t status = ucp_ep_create(fabric->worker(), &params, &made->ep); status != UCS_OK)
    return say(why, std::string("cannot connect to ") + address, status, KVF_FAILED);
  *out = made.release();
  return KVF_OK;
}

int32_t disconnect(kvf_endpoint* endpoint, uint32_t patience_ms) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(patience_ms);
  const bool gone = endpoint->fabric->close_endpoint(endpoint->ep, patience_ms, [endpoint] {
    endpoint->gone = true;
    if (endpoint->in_flight == 0) bury(endpoint);
  });
  while (gone && endpoint->in_flight > 0 && std::chrono::steady_clock::now() < until)
    ucp_worker_progress(endpoint->fabric->worker());
  if (!gone) return KVF_FAILED;
  if (endpoint->in_flight > 0) {
    endpoint->gone = true;
    return KVF_FAILED;
  }
  bury(endpoint);
  return KVF_OK;
}

// UCX is not told how long a key is and believes the lengths within, a byte each for at most 64 devices: behind what
// the peer has sent it finds zeros, as many as it could ask for.
int32_t import_key(kvf_endpoint* endpoint, const void* bytes, size_t size, kvf_key** out, kvf_text why) {
  constexpr size_t kMostRead = size_t{32} << 10;
  if (size == 0) return say(why, "an empty key", UCS_ERR_INVALID_PARAM, KVF_FAILED);
  std::vector<uint8_t> padded(size + kMostRead);
  std::memcpy(padded.data(), bytes, size);
  auto key = std::make_unique<kvf_key>();
  if (const ucs_status_t status = ucp_ep_rkey_unpack(endpoint->ep, padded.data(), &key->rkey); status != UCS_OK)
    return say(why, "cannot use the peer's key", status, KVF_FAILED);
  *out = key.release();
  return KVF_OK;
}

void drop_key(kvf_key* key) {
  ucp_rkey_destroy(key->rkey);
  delete key;
}

int32_t get(kvf_endpoint* endpoint, void* local, kvf_memory* memory, uint64_t remote, kvf_key* key, size_t length,
            uint64_t operation, kvf_text why) {
  return start(endpoint, operation, memory, "ucp_get_nbx", why, [&](const ucp_request_param_t* params) {
    return ucp_get_nbx(endpoint->ep, local, length, remote, key->rkey, params);
  });
}

int32_t put(kvf_endpoint* endpoint, const void* local, kvf_memory* memory, uint64_t remote, kvf_key* key, size_t length,
            uint64_t operation, kvf_text why) {
  return start(endpoint, operation, memory, "ucp_put_nbx", why, [&](const ucp_request_param_t* params) {
    return ucp_put_nbx(endpoint->ep, local, length, remote, key->rkey, params);
  });
}

int32_t flush(kvf_endpoint* endpoint, uint64_t operation, kvf_text why) {
  return start(endpoint, operation, nullptr, "ucp_ep_flush_nbx", why,
               [&](const ucp_request_param_t* params) { return ucp_ep_flush_nbx(endpoint->ep, params); });
}

}  // namespace kvferry::ucx
