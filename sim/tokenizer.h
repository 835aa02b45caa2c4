#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "sim/model_config.h"

namespace kvferry::sim {

// A byte is a token; above them the specials. Any text has exactly one encoding, and no training is needed.
constexpr Token kBegin = 256;   // first token of every text prompt
constexpr Token kEnd = 257;     // the model's end of sequence
constexpr Token kSystem = 258;  // opens a chat message of that role
constexpr Token kUser = 259;
constexpr Token kAssistant = 260;
constexpr Token kTool = 261;
constexpr Token kTurnEnd = 262;      // closes a chat message
constexpr size_t kVocabulary = 264;  // one id unused, for an even number of panels

struct ChatMessage {
  std::string role;
  std::string content;
};

// Begin, then the bytes.
std::vector<Token> encode(std::string_view text);

// Begin, each message between its role token and kTurnEnd, then kAssistant: the model's turn. Unknown roles count as
// user.
std::vector<Token> encode_chat(const std::vector<ChatMessage>& messages);

// The byte of a token; nothing for specials.
std::string_view token_bytes(Token token);

// How logprobs name a token: its text, "<0x80>" style for bytes that are no text by themselves, "<|end|>" style for
// specials.
std::string token_name(Token token);

// Whether the model's head offers this token: printable ASCII, newline and kEnd; the rest is biased away, so that
// answers can be read.
bool is_offered(Token token);

}  // namespace kvferry::sim
