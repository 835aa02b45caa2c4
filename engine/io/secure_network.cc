#include "engine/io/secure_network.h"

namespace kvferry {

std::unique_ptr<Stream> SecureNetwork::secure(std::unique_ptr<Stream> raw, bool is_server) {
  return std::make_unique<SecureStream>(
      std::move(raw), SecureStream::Parts{loop_, turns_, credentials_.current(loop_.now()), plain_refusal_}, is_server);
}

Result<std::unique_ptr<Listener>> SecureNetwork::listen(const Address& address, Accepted accepted) {
  return beneath_.listen(address, [this, accepted = std::move(accepted)](std::unique_ptr<Stream> raw) {
    accepted(secure(std::move(raw), true));
  });
}

Result<std::unique_ptr<Stream>> SecureNetwork::dial(const Address& address) {
  KVF_ASSIGN_OR_RETURN(auto raw, beneath_.dial(address));
  return secure(std::move(raw), false);
}

}  // namespace kvferry
