#pragma once

#include <google/protobuf/message_lite.h>
#include <google/protobuf/stubs/logging.h>

#include <string_view>

#include "common/bytes.h"

namespace kvferry::proto {

// Reads bytes that a stranger may have sent; false where they are not a Message. protobuf's own word about them, a line
// on standard error for each, is left out: who reads says what was wrong, and how often it says so.
template <class Message>
bool parse(Message& message, std::string_view bytes) {
  const google::protobuf::LogSilencer no_line_for_each;
  return message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()));
}

template <class Message>
bool parse(Message& message, ByteSpan bytes) {
  return parse(message, std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

}  // namespace kvferry::proto
