#pragma once

#include <boost/asio/ssl/context.hpp>
#include <memory>
#include <string>

#include "common/result.h"

namespace kvferry::http {

// TLS 1.2 or later.
using TlsContext = boost::asio::ssl::context;

// What a server shows: a PEM chain and its key, which stands in the same file where `key_file` is empty. A file with a
// key that others may read is refused.
Result<std::unique_ptr<TlsContext>> serve_tls(const std::string& certificate_file, const std::string& key_file);

// Whom a client believes: servers whose certificate comes from an authority of the PEM file and names the host that was
// asked for.
Result<std::shared_ptr<TlsContext>> trust_authorities(const std::string& ca_file);

}  // namespace kvferry::http
