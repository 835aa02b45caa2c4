#include "sim/tokenizer.h"

#include <fmt/format.h>

#include <array>

namespace kvferry::sim {
namespace {

constexpr std::array<char, 256> make_bytes() {
  std::array<char, 256> bytes{};
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(static_cast<unsigned char>(i));
  return bytes;
}
constexpr std::array<char, 256> kBytes = make_bytes();

void append_bytes(std::vector<Token>& tokens, std::string_view text) {
  for (const char c : text) tokens.push_back(static_cast<unsigned char>(c));
}

Token role_token(std::string_view role) {
  if (role == "system" || role == "developer") return kSystem;
  if (role == "assistant") return kAssistant;
  if (role == "tool" || role == "function") return kTool;
  return kUser;
}

}  // namespace

std::vector<Token> encode(std::string_view text) {
  std::vector<Token> tokens;
  tokens.reserve(text.size() + 1);
  tokens.push_back(kBegin);
  append_bytes(tokens, text);
  return tokens;
}

std::vector<Token> encode_chat(const std::vector<ChatMessage>& messages) {
  std::vector<Token> tokens{kBegin};
  for (const ChatMessage& message : messages) {
    tokens.push_back(role_token(message.role));
    append_bytes(tokens, message.content);
    tokens.push_back(kTurnEnd);
  }
  tokens.push_back(kAssistant);
  return tokens;
}

std::string_view token_bytes(Token token) {
  if (token < 0 || token >= 256) return {};
  return {kBytes.data() + token, 1};
}

std::string token_name(Token token) {
  switch (token) {
    case kBegin:
      return "<|begin|>";
    case kEnd:
      return "<|end|>";
    case kSystem:
      return "<|system|>";
    case kUser:
      return "<|user|>";
    case kAssistant:
      return "<|assistant|>";
    case kTool:
      return "<|tool|>";
    case kTurnEnd:
      return "<|turn_end|>";
    default:
      break;
  }
  if (token >= 0 && token < 128) return std::string(token_bytes(token));
  if (token < 256) return fmt::format("<0x{:02X}>", token);
  return fmt::format("<|{}|>", token);
}

bool is_offered(Token token) {
  return (token >= 0x20 && token < 0x7f) || token == '\n' || token == kEnd;
}

}  // namespace kvferry::sim
