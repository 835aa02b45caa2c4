#pragma once

#include <memory>
#include <string>

#include "common/result.h"
#include "engine/fabric/plugin_abi.h"

namespace kvferry::plugin {

// A fabric's shared object, loaded for the rest of the process: what such libraries start (threads, handlers at exit)
// does not survive an unload.
class Library {
 public:
  // libkvferry_fabric_<name>.so in `folder`; where that is empty, beside the file that this code is in, or in the
  // folder lib beside that one's. The Error says where it was looked for, or what the loader did not like.
  static Result<std::shared_ptr<const Library>> load(const std::string& name, const std::string& folder);

  const kvf_fabric_table& table() const { return table_; }
  const std::string& file() const { return file_; }

 private:
  Library(const kvf_fabric_table& table, std::string file) : table_(table), file_(std::move(file)) {}
  const kvf_fabric_table& table_;
  const std::string file_;
};

}  // namespace kvferry::plugin
