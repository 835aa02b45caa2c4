// The splicer against a JSON library: whatever it accepts of valid JSON must, spliced, be the same document apart from
// the members that were taken out and put in, and nothing of what was to go may be left for any reader.

#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "proxy/legs.h"
#include "proxy/splice.h"

namespace {

using nlohmann::ordered_json;
using namespace kvferry::proxy;

void expect(bool good, const char* what, const std::string& text, const std::string& out) {
  if (good) return;
  std::cerr << what << "\nfrom: " << text << "\nto:   " << out << "\n";
  std::abort();
}

ordered_json parse(const std::string& text) {
  return ordered_json::parse(text, nullptr, false);
}

void check_splice(const std::string& text, const Members& members, const ordered_json& document) {
  const std::vector<std::string_view> removed = {"kv_transfer_params", "stream", "n"};
  const std::string out = splice(members, removed, R"("kv_transfer_params":{"t":1})").joined();
  ordered_json wanted = document;
  for (const std::string_view name : removed) wanted.erase(std::string(name));
  const ordered_json got = parse(out);
  expect(!got.is_discarded(), "the spliced text is not JSON", text, out);
  expect(got.value("kv_transfer_params", ordered_json()) == ordered_json({{"t", 1}}), "not inserted", text, out);
  ordered_json rest = got;
  rest.erase("kv_transfer_params");
  // Unordered comparison: a repeated name keeps the place of its first and the value of its last occurrence.
  expect(nlohmann::json(rest) == nlohmann::json(wanted), "another document", text, out);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string text(reinterpret_cast<const char*>(data), size);
  text.reserve(size + 64);
  static Scanner scanner;
  const auto members = scanner.scan(text);
  const ordered_json document = parse(text);
  if (!members.ok()) return 0;
  if (document.is_discarded()) {
    // The inside of values is not checked; such a text goes on, and the backend refuses it. It must not crash.
    (void)splice(*members, std::vector<std::string_view>{"stream"}, R"("a":1)").joined();
    return 0;
  }
  expect(document.is_object(), "not an object, but accepted", text, "");
  check_splice(text, *members, document);
  const std::string same = decode_body(*members, {}).joined();
  if (!document.contains("kv_transfer_params")) expect(same == text, "bytes changed", text, same);
  auto facts = read_request(Endpoint::completions, text, scanner);
  if (facts.ok()) {
    const std::string leg = prefill_body(Endpoint::completions, *facts, R"({"t":1})").joined();
    expect(parse(leg).value("max_tokens", 0) == 1, "prefill leg without its one token", text, leg);
  }
  return 0;
}
