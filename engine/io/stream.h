#pragma once

#include <sys/uio.h>

#include <functional>
#include <memory>
#include <span>
#include <string>

#include "common/result.h"
#include "engine/io/address.h"

namespace kvferry {

struct SendKeys;

class StreamHandler {
 public:
  virtual ~StreamHandler() = default;
  // Level-triggered: called again in each turn while a wanted condition holds. May destroy the stream.
  virtual void on_stream_ready(bool readable, bool writable) = 0;
};

// A non-blocking ordered byte stream: a socket, TLS over one, or two buffers of the simulator. On loop only.
class Stream {
 public:
  virtual ~Stream() = default;

  // Who is told; a stream without a handler stays silent.
  virtual void set_handler(StreamHandler* handler) = 0;
  virtual void want(bool readable, bool writable) = 0;

  // A hint: do not say "readable" before so many bytes can be read, or the stream has ended; has_input() follows it.
  // The caller asks for no more than what the other side is sure to send.
  virtual void wake_at(size_t /*bytes*/) {}

  // Bytes moved; 0: nothing can move now. The end of the stream, a reset and a failed connect are Errors.
  virtual Result<size_t> read(std::span<const iovec> into) = 0;
  virtual Result<size_t> write(std::span<const iovec> from) = 0;

  // I4: true when the other side has closed or reset this stream, even while its bytes are still readable here.
  virtual bool torn() const = 0;
  // True when read() would return bytes now.
  virtual bool has_input() const = 0;

  // Makes the destructor reset the connection: what the other side has not read yet, it must not apply.
  virtual void reset_on_close() = 0;

  virtual std::string peer_address() const = 0;

  // True: records of TLS are made beneath of what is written from here on, and for good; of the last, what the other
  // side has no room for when the stream is destroyed may be lost. False: they are not, and nothing has changed.
  virtual bool encrypt_with(const SendKeys& /*keys*/) { return false; }

  // Ends with the stream.
  void hold(std::shared_ptr<const void> what) { held_ = std::move(what); }

 private:
  std::shared_ptr<const void> held_;
};

class Listener {
 public:
  virtual ~Listener() = default;
  virtual Address address() const = 0;
};

// Where streams come from. On loop only.
class Network {
 public:
  using Accepted = std::function<void(std::unique_ptr<Stream>)>;
  virtual ~Network() = default;

  virtual Result<std::unique_ptr<Listener>> listen(const Address& address, Accepted accepted) = 0;
  // Returns at once; a connection that fails shows in the first read or write.
  virtual Result<std::unique_ptr<Stream>> dial(const Address& address) = 0;
};

}  // namespace kvferry
