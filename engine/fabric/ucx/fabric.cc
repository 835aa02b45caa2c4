#include "engine/fabric/ucx/fabric.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>

#include "engine/fabric/plugin_kit.h"
#include "engine/fabric/ucx/process.h"
#include "engine/fabric/ucx/settings.h"

using kvferry::plugin_kit::SocketAddress;
using kvferry::ucx::say;

namespace {

constexpr uint32_t kGuestPatienceMs = 100;

bool closes_behind_our_back() {
  unsigned major = 0, minor = 0, release = 0;
  ucp_get_version(&major, &minor, &release);
  return major > 1 || minor > 13;
}

}  // namespace

namespace kvferry::ucx {

int32_t say(kvf_text why, std::string_view what, ucs_status_t status, int32_t result) {
  return plugin_kit::say(why, std::string(what) + ": " + ucs_status_string(status), result);
}

}  // namespace kvferry::ucx

int32_t kvf_fabric::open(const kvf_host& host, const kvf_open_params& params, kvf_fabric** out, kvf_facts& facts,
                         kvf_text why) {
  kvferry::ucx::tame_process();
  std::unique_ptr<kvf_fabric> made(new kvf_fabric(host));
  const auto settings = kvferry::ucx::Settings::of(params);
  ucp_config_t* config = nullptr;
  if (const ucs_status_t status = settings.read(&config, why); status != UCS_OK) return KVF_FAILED;

  ucp_params_t context{};
  context.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_MT_WORKERS_SHARED | UCP_PARAM_FIELD_NAME;
  context.features = UCP_FEATURE_RMA | UCP_FEATURE_WAKEUP;
  // Over devices messages cost nothing; where RMA is emulated they make small reads slower by a tenth.
  if (settings.only_rdma()) context.features |= UCP_FEATURE_AM;
  context.mt_workers_shared = 1;  // memory is registered by callers' threads
  context.name = "kvferry";
  const ucs_status_t began = ucp_init(&context, config, &made->context_);
  ucp_config_release(config);
  if (began != UCS_OK) {
    std::snprintf(why.data, why.size, "UCX %s finds no device for the transports \"%s\": %s", ucp_get_version_string(),
                  settings.transports().c_str(), kvferry::ucx::take_complaint().c_str());
    return KVF_FAILED;
  }
  ucp_worker_params_t worker{};
  worker.field_mask =
      UCP_WORKER_PARAM_FIELD_THREAD_MODE | UCP_WORKER_PARAM_FIELD_CLIENT_ID | UCP_WORKER_PARAM_FIELD_FLAGS;
  worker.thread_mode = UCS_THREAD_MODE_SERIALIZED;  // the loop's owner changes
  worker.client_id = params.client;
  worker.flags = UCP_WORKER_FLAG_IGNORE_REQUEST_LEAK;
  if (const ucs_status_t status = ucp_worker_create(made->context_, &worker, &made->worker_); status != UCS_OK)
    return say(why, "cannot create a UCX worker", status, KVF_FAILED);
  if (const ucs_status_t status = ucp_worker_get_efd(made->worker_, &made->wake_fd_); status != UCS_OK)
    return say(why, "these transports cannot wake a sleeping process", status, KVF_FAILED);
  std::snprintf(facts.description, sizeof facts.description, "UCX %s, transports %s", ucp_get_version_string(),
                settings.transports().c_str());
  std::snprintf(facts.device, sizeof facts.device, "%s", settings.device().c_str());
  facts.enforces_keys = settings.only_rdma() ? 1 : 0;
  facts.longest_operation = UINT64_MAX;  // UCX cuts by itself
  made->host_name_ = params.host;
  made->transports_ = settings.transports();
  made->shared_memory_ = settings.uses_shared_memory();
  *out = made.release();
  return KVF_OK;
}

bool kvf_fabric::knows_cuda() const {
  ucp_context_attr_t attributes{};
  attributes.field_mask = UCP_ATTR_FIELD_MEMORY_TYPES;
  if (ucp_context_query(context_, &attributes) != UCS_OK) return false;
  return (attributes.memory_types & UCS_BIT(UCS_MEMORY_TYPE_CUDA)) != 0;
}

kvf_fabric::~kvf_fabric() {
  if (listener_ != nullptr) ucp_listener_destroy(listener_);
  for (auto& [client, guest] : guests_)
    if (guest->ep != nullptr) close_endpoint(guest->ep, kGuestPatienceMs, [] {});
  for (const Closing& each : closing_) ucp_request_free(each.flush);
  if (worker_ != nullptr) ucp_worker_destroy(worker_);
  for (kvf_memory* memory : std::set<kvf_memory*>(memory_)) unmap(memory);
  if (context_ != nullptr) ucp_cleanup(context_);
}

// UCX is told what kind of memory it is, and need not ask CUDA at each use.
int32_t kvf_fabric::map(const kvf_range& range, kvf_memory** out, kvf_text why) {
  auto memory = std::make_unique<kvf_memory>();
  if (range.kind == KVF_CUDA) {
    if (!knows_cuda()) {
      std::snprintf(why.data, why.size, "UCX %s does not know memory of kind cuda with the transports \"%s\"",
                    ucp_get_version_string(), transports_.c_str());
      return KVF_FAILED;
    }
    memory->type = UCS_MEMORY_TYPE_CUDA;
  } else if (range.kind != KVF_HOST) {
    return say(why, "memory of a kind that this fabric does not know", UCS_ERR_UNSUPPORTED, KVF_FAILED);
  }
  ucp_mem_map_params_t params{};
  params.field_mask =
      UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH | UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE;
  params.address = range.base;
  params.length = range.length;
  params.memory_type = memory->type;
  if (const ucs_status_t status = ucp_mem_map(context_, &params, &memory->handle); status != UCS_OK)
    return say(why,
               range.kind == KVF_CUDA ? "UCX cannot register memory of kind cuda (no nvidia_peermem?)"
                                      : "UCX cannot register the memory (a low `ulimit -l`?)",
               status, KVF_FAILED);
  *out = memory.release();
  const std::lock_guard lock(memory_mutex_);
  memory_.insert(*out);
  return KVF_OK;
}

void kvf_fabric::unmap(kvf_memory* memory) {
  {
    const std::lock_guard lock(memory_mutex_);
    memory_.erase(memory);
  }
  ucp_mem_unmap(context_, memory->handle);
  delete memory;
}

int32_t kvf_fabric::arm() {
  return ucp_worker_arm(worker_) == UCS_ERR_BUSY ? KVF_BUSY : KVF_OK;
}

uint32_t kvf_fabric::progress() {
  const unsigned done = ucp_worker_progress(worker_);
  if (!closing_.empty()) look_who_is_gone();
  if (!tending_) tend_guests();
  return done;
}

bool kvf_fabric::close_endpoint(ucp_ep_h ep, uint32_t patience_ms, std::function<void()> later) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(patience_ms);
  ucp_request_param_t params{};
  params.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
  params.flags = UCP_EP_CLOSE_FLAG_FORCE;
  const ucs_status_ptr_t closing = ucp_ep_close_nbx(ep, &params);
  const bool closed = wait_for(closing, until) != UCS_INPROGRESS;
  if (UCS_PTR_IS_PTR(closing)) ucp_request_free(closing);
  // Later versions go on with the device's end of it, and tell of requests as ended before the device has let go of
  // their memory. A flush of the worker waits for that; and for every other endpoint that is not connected yet or has
  // something in flight, which is why 1.13 does without.
  if (!closed || !closes_behind_our_back()) return closed;
  const ucp_request_param_t none{};
  const ucs_status_ptr_t flush = ucp_worker_flush_nbx(worker_, &none);
  const ucs_status_t status = wait_for(flush, until);
  if (status == UCS_INPROGRESS)
    closing_.push_back({flush, std::move(later)});
  else if (UCS_PTR_IS_PTR(flush))
    ucp_request_free(flush);
  return status == UCS_OK;
}

ucs_status_t kvf_fabric::wait_for(ucs_status_ptr_t request, std::chrono::steady_clock::time_point until) {
  if (!UCS_PTR_IS_PTR(request)) return UCS_PTR_STATUS(request);
  while (ucp_request_check_status(request) == UCS_INPROGRESS && std::chrono::steady_clock::now() < until)
    ucp_worker_progress(worker_);
  return ucp_request_check_status(request);
}

void kvf_fabric::look_who_is_gone() {
  for (Closing& each : std::exchange(closing_, {})) {
    const ucs_status_t status = ucp_request_check_status(each.flush);
    if (status == UCS_INPROGRESS) {
      closing_.push_back(std::move(each));
      continue;
    }
    ucp_request_free(each.flush);
    if (status == UCS_OK) each.later();
  }
}

// ---- peers that connect

int32_t kvf_fabric::listen(kvf_text address, kvf_text why) {
  const auto wanted = SocketAddress::parse(host_name_, 0);
  if (!wanted.ok()) return say(why, "not a numeric address to listen on", UCS_ERR_INVALID_ADDR, KVF_FAILED);
  ucp_listener_params_t params{};
  params.field_mask = UCP_LISTENER_PARAM_FIELD_SOCK_ADDR | UCP_LISTENER_PARAM_FIELD_CONN_HANDLER;
  params.sockaddr = {wanted.get(), wanted.size()};
  params.conn_handler.arg = this;
  params.conn_handler.cb = [](ucp_conn_request_h request, void* self) {
    static_cast<kvf_fabric*>(self)->requests_.push_back(request);
  };
  if (const ucs_status_t status = ucp_listener_create(worker_, &params, &listener_); status != UCS_OK)
    return say(why, "cannot listen on " + host_name_, status, KVF_FAILED);
  ucp_listener_attr_t attributes{};
  attributes.field_mask = UCP_LISTENER_ATTR_FIELD_SOCKADDR;
  if (const ucs_status_t status = ucp_listener_query(listener_, &attributes); status != UCS_OK)
    return say(why, "cannot tell where UCX listens", status, KVF_FAILED);
  const std::string text = SocketAddress(&attributes.sockaddr, sizeof attributes.sockaddr).to_text();
  if (text.size() >= address.size) return say(why, "address too long", UCS_ERR_BUFFER_TOO_SMALL, KVF_FAILED);
  std::memcpy(address.data, text.c_str(), text.size() + 1);
  return KVF_OK;
}

void kvf_fabric::accept(ucp_conn_request_h request) {
  ucp_conn_request_attr_t attributes{};
  attributes.field_mask = UCP_CONN_REQUEST_ATTR_FIELD_CLIENT_ID;
  const bool known = ucp_conn_request_query(request, &attributes) == UCS_OK;
  if (!known || host_.admit(host_.self, attributes.client_id) == 0) {
    ucp_listener_reject(listener_, request);
    return;
  }
  // One connection a client: a new one stands for the end of the old, and of all that was on its way there, so that it
  // has to wait for that.
  fence(attributes.client_id);
  if (unsure_.count(attributes.client_id) != 0) {
    ucp_listener_reject(listener_, request);
    return;
  }
  auto guest = std::make_unique<Guest>();
  guest->fabric = this;
  ucp_ep_params_t params{};
  params.field_mask =
      UCP_EP_PARAM_FIELD_CONN_REQUEST | UCP_EP_PARAM_FIELD_ERR_HANDLER | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE;
  params.conn_request = request;
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler.arg = guest.get();
  params.err_handler.cb = [](void* self, ucp_ep_h, ucs_status_t) { static_cast<Guest*>(self)->lost = true; };
  if (ucp_ep_create(worker_, &params, &guest->ep) == UCS_OK) guests_[attributes.client_id] = std::move(guest);
}

// Outside of UCX's own progress, from which it must not be called again.
void kvf_fabric::tend_guests() {
  tending_ = true;
  while (!requests_.empty()) {
    const ucp_conn_request_h request = requests_.front();
    requests_.erase(requests_.begin());
    accept(request);
  }
  for (auto entry = guests_.begin(); entry != guests_.end();) {
    if (!entry->second->lost) {
      ++entry;
      continue;
    }
    dismiss(entry->first, std::move(entry->second));
    entry = guests_.erase(entry);
  }
  tending_ = false;
}

// I4: one that UCX does not let go of stays where UCX may still find it, and its client is not sure to have ended.
bool kvf_fabric::dismiss(uint64_t client, std::unique_ptr<Guest> guest) {
  unsure_.insert(client);
  Guest* const kept = guest.release();
  const auto gone = [this, client, kept] {
    unsure_.erase(client);
    delete kept;
  };
  if (!close_endpoint(kept->ep, kGuestPatienceMs, gone)) return false;
  gone();
  return true;
}

bool kvf_fabric::fence(uint64_t client) {
  auto entry = guests_.extract(client);
  if (entry.empty()) return unsure_.count(client) == 0;
  return dismiss(client, std::move(entry.mapped())) && !shared_memory_;
}
