#pragma once

#include <memory>
#include <string>

#include "engine/io/credentials.h"
#include "engine/io/secure_stream.h"

namespace kvferry {

// Puts TLS over every connection of the network beneath, dialled or accepted, sessions and lanes alike. Outlives its
// streams and listeners. On loop only.
class SecureNetwork final : public Network {
 public:
  // Everything outlives this. `plain_refusal`: said to a peer that speaks kvferry's protocol in the clear.
  SecureNetwork(Loop& loop, Network& beneath, Credentials& credentials, std::string plain_refusal)
      : loop_(loop),
        beneath_(beneath),
        credentials_(credentials),
        plain_refusal_(std::move(plain_refusal)),
        turns_(loop) {}

  Result<std::unique_ptr<Listener>> listen(const Address& address, Accepted accepted) override;
  Result<std::unique_ptr<Stream>> dial(const Address& address) override;

 private:
  std::unique_ptr<Stream> secure(std::unique_ptr<Stream> raw, bool is_server);

  Loop& loop_;
  Network& beneath_;
  Credentials& credentials_;
  const std::string plain_refusal_;
  HandshakeTurns turns_;
};

}  // namespace kvferry
