#include <fmt/format.h>
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings/python/core/bind.h"
#include "bindings/python/core/errors.h"
#include "bindings/python/core/objects.h"
#include "bootstrap/bootstrap.h"
#include "common/secret.h"

namespace nb = nanobind;
using namespace nb::literals;  // NOLINT(google-build-using-namespace): holds "name"_a alone

// How decoders find prefillers, and how parcels are released over HTTP: docs/bootstrap.md.

namespace kvferry::python {
namespace {

using bootstrap::BlockingClient;
using bootstrap::Registration;

// A worker's server. It ends while the engine is there still, and keeps the engine no longer than that.
class PyBootstrapServer {
 public:
  PyBootstrapServer(const PyEngine& engine, const std::string& instance_id, const KvLayout& layout,
                    const std::string& host, const std::string& base_host, uint16_t base_port, bool external_base,
                    const std::string& token, std::string certificate_file, std::string key_file, std::string ca_file)
      : engine_(engine.get()), control_(std::make_unique<bootstrap::EngineParcels>(*engine_)) {
    bootstrap::ServerSettings settings;
    settings.host = host;
    settings.token = take(read_secret(token));
    settings.certificate_file = std::move(certificate_file);
    settings.key_file = std::move(key_file);
    settings.ca_file = std::move(ca_file);
    settings = take(bootstrap::settings_of_worker(std::move(settings), base_host, base_port, layout.rank));
    if (external_base) {  // its port is not this worker's to take
      settings.port = 0;
      settings.keeps_directory = false;
    }
    server_ = take(without_gil([&] { return bootstrap::Server::create(std::move(settings), control_.get()); }));
    server_->set_worker(bootstrap::worker_of(*engine_, instance_id, layout));
  }
  ~PyBootstrapServer() { close(); }
  PyBootstrapServer(const PyBootstrapServer&) = delete;
  PyBootstrapServer& operator=(const PyBootstrapServer&) = delete;

  uint16_t port() const { return server_ ? server_->port() : uint16_t{0}; }
  void close() {
    std::shared_ptr<Engine> engine = std::move(engine_);
    std::unique_ptr<bootstrap::EngineParcels> control = std::move(control_);
    std::unique_ptr<bootstrap::Server> last = std::move(server_);
    without_gil([&] {
      last.reset();
      control.reset();
      engine.reset();
    });
  }

 private:
  std::shared_ptr<Engine> engine_;  // null: closed
  std::unique_ptr<bootstrap::EngineParcels> control_;
  std::unique_ptr<bootstrap::Server> server_;
};

class PyBootstrapClient {
 public:
  PyBootstrapClient(double timeout, const std::string& token, std::string ca_file)
      : client_(take(BlockingClient::create({take(read_secret(token)), to_duration(timeout), std::move(ca_file)}))) {}
  BlockingClient& get() const { return *client_; }

 private:
  std::unique_ptr<BlockingClient> client_;
};

// host:port of the engine, out of the URL that vLLM's own workers would be reached by.
std::string address_of(const Registration& worker) {
  const size_t scheme = worker.addr.find("://");
  return scheme == std::string::npos ? worker.addr : worker.addr.substr(scheme + 3);
}

const char* name_of(bootstrap::ReleaseState state) {
  switch (state) {
    case bootstrap::ReleaseState::acknowledged:
      return "acknowledged";
    case bootstrap::ReleaseState::pending:
      return "pending";
    default:
      return "unknown";
  }
}

void bind_server(nb::module_& module) {
  nb::class_<PyBootstrapServer>(
      module, "BootstrapServer", nb::is_weak_referenceable(),
      "Serves this engine's identity and parcels over HTTP, and keeps its rank registered at "
      "the base. The first rank of an instance keeps the directory there, unless the base is "
      "a server of its own (`external_base`). `token` may be \"@file\". With a certificate it "
      "speaks TLS only; with a `ca_file` it asks other servers by https.")
      .def(nb::init<const PyEngine&, const std::string&, const KvLayout&, const std::string&, const std::string&,
                    uint16_t, bool, const std::string&, std::string, std::string, std::string>(),
           "engine"_a, "instance_id"_a, "layout"_a, nb::kw_only(), "host"_a = "127.0.0.1", "base_host"_a = "127.0.0.1",
           "base_port"_a = bootstrap::kDefaultPort, "external_base"_a = false, "token"_a = "",
           "certificate_file"_a = "", "key_file"_a = "", "ca_file"_a = "")
      .def_prop_ro("port", &PyBootstrapServer::port)
      .def("close", &PyBootstrapServer::close);
}

void bind_client(nb::module_& module) {
  nb::class_<Registration>(module, "RegisteredWorker", "A worker, as a directory knows it.")
      .def_ro("engine_id", &Registration::engine_id, "Of its instance.")
      .def_prop_ro("dp_rank", [](const Registration& self) { return self.rank.dp; })
      .def_prop_ro("tp_rank", [](const Registration& self) { return self.rank.tp; })
      .def_prop_ro("pp_rank", [](const Registration& self) { return self.rank.pp; })
      .def_prop_ro("address", &address_of, "host:port of its engine.")
      .def_ro("http", &Registration::http, "URL of its own server; empty: it has none.");
  nb::class_<PyBootstrapClient>(module, "BootstrapClient",
                                "Asks bootstrap servers, by \"http[s]://host:port\": https where a `ca_file` names "
                                "the authorities to believe. `token` may be \"@file\". Thread-safe.")
      .def(nb::init<double, const std::string&, std::string>(), "timeout"_a = 5.0, "token"_a = "", "ca_file"_a = "")
      .def(
          "workers",
          [](const PyBootstrapClient& self, const std::string& base) {
            return *take(without_gil([&] { return self.get().workers(base); }));
          },
          "base"_a, "Who is registered there.")
      .def(
          "release",
          [](const PyBootstrapClient& self, const std::string& base, const std::string& transfer_id, bool force) {
            return name_of(take(without_gil([&] { return self.get().release(base, transfer_id, force); })));
          },
          "base"_a, "transfer_id"_a, "force"_a = false,
          "Releases a parcel at every rank: acknowledged, pending (ask again) or unknown.");
}

}  // namespace

void bind_bootstrap(nb::module_& module) {
  bind_server(module);
  bind_client(module);
}

}  // namespace kvferry::python
