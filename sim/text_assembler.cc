#include "sim/text_assembler.h"

#include <algorithm>
#include <cstdint>

namespace kvferry::sim {
namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";

struct Character {
  size_t bytes = 0;  // to take off
  enum { whole, unfinished, broken } kind = broken;
};

// What stands at the front of `bytes` (not empty), by the table of well-formed sequences of the Unicode standard.
Character front_character(std::string_view bytes) {
  const auto at = [&](size_t i) { return static_cast<uint8_t>(bytes[i]); };
  const uint8_t lead = at(0);
  if (lead < 0x80) return {1, Character::whole};
  size_t length = 0;
  if (lead >= 0xc2 && lead <= 0xdf) length = 2;
  if (lead >= 0xe0 && lead <= 0xef) length = 3;
  if (lead >= 0xf0 && lead <= 0xf4) length = 4;
  if (length == 0) return {1, Character::broken};
  for (size_t i = 1; i < length; ++i) {
    if (i == bytes.size()) return {i, Character::unfinished};
    uint8_t low = 0x80;
    uint8_t high = 0xbf;
    if (i == 1 && lead == 0xe0) low = 0xa0;
    if (i == 1 && lead == 0xed) high = 0x9f;
    if (i == 1 && lead == 0xf0) low = 0x90;
    if (i == 1 && lead == 0xf4) high = 0x8f;
    if (at(i) < low || at(i) > high) return {i, Character::broken};
  }
  return {length, Character::whole};
}

}  // namespace

void take_characters(std::string& bytes, std::string& text, bool all) {
  size_t taken = 0;
  while (taken < bytes.size()) {
    const std::string_view rest = std::string_view(bytes).substr(taken);
    const Character character = front_character(rest);
    if (character.kind == Character::unfinished && !all) break;
    text += character.kind == Character::whole ? rest.substr(0, character.bytes) : kReplacement;
    taken += character.bytes;
  }
  bytes.erase(0, taken);
}

TextAssembler::TextAssembler(std::vector<std::string> stop) : stop_(std::move(stop)) {
  std::erase(stop_, "");
}

std::string TextAssembler::add(std::string_view bytes, bool may_stop) {
  if (stopped_) return {};
  bytes_ += bytes;
  take_characters(bytes_, pending_, false);
  if (!may_stop) return take(pending_.size());
  size_t found = std::string::npos;
  for (const std::string& stop : stop_) found = std::min(found, pending_.find(stop));
  if (found != std::string::npos) {
    stopped_ = true;
    pending_.resize(found);
    return take(found);
  }
  return take(pending_.size() - held_back());
}

std::string TextAssembler::finish() {
  if (stopped_) return {};
  take_characters(bytes_, pending_, true);
  return take(pending_.size());
}

std::string TextAssembler::take(size_t bytes) {
  std::string text = pending_.substr(0, bytes);
  pending_.erase(0, bytes);
  return text;
}

// The longest end of pending_ that begins a stop string, in bytes.
size_t TextAssembler::held_back() const {
  size_t longest = 0;
  for (const std::string& stop : stop_) {
    for (size_t length = std::min(stop.size() - 1, pending_.size()); length > longest; --length) {
      if (std::string_view(pending_).ends_with(std::string_view(stop).substr(0, length))) longest = length;
    }
  }
  return longest;
}

}  // namespace kvferry::sim
