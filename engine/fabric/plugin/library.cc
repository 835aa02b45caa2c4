#include "engine/fabric/plugin/library.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <unistd.h>

#include <vector>

namespace kvferry::plugin {
namespace {

// The folder of the program or shared library that this code was linked into.
std::string own_folder() {
  Dl_info info{};
  if (::dladdr(reinterpret_cast<const void*>(&own_folder), &info) == 0 || info.dli_fname == nullptr) return ".";
  std::string file = info.dli_fname;
  if (file.find('/') == std::string::npos || file.starts_with("/proc/")) {  // found by PATH, or as /proc/self/exe
    char target[4096];
    const ssize_t length = ::readlink("/proc/self/exe", target, sizeof target);
    if (length > 0) file.assign(target, static_cast<size_t>(length));
  }
  const size_t slash = file.rfind('/');
  return slash == std::string::npos ? "." : file.substr(0, slash);
}

}  // namespace

Result<std::shared_ptr<const Library>> Library::load(const std::string& name, const std::string& folder) {
  std::vector<std::string> folders = {folder};
  if (folder.empty()) folders = {own_folder(), own_folder() + "/../lib"};
  std::string looked;
  for (const std::string& place : folders) {
    const std::string file = place + "/libkvferry_fabric_" + name + ".so";
    if (::access(file.c_str(), F_OK) != 0) {
      looked += (looked.empty() ? "" : ", ") + file;
      continue;
    }
    void* handle = ::dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (handle == nullptr)
      return Error{ErrorCode::unsupported, fmt::format("the plug-in of fabric \"{}\" cannot be loaded", name),
                   ::dlerror()};
    const auto entry = reinterpret_cast<const kvf_fabric_table* (*)()>(::dlsym(handle, KVF_FABRIC_ENTRY));
    const kvf_fabric_table* table = entry != nullptr ? entry() : nullptr;
    if (table == nullptr)
      return Error{ErrorCode::unsupported, fmt::format("{} is no fabric: it has no {}", file, KVF_FABRIC_ENTRY)};
    if (table->abi != KVF_FABRIC_ABI || name != table->name)
      return Error{ErrorCode::unsupported,
                   fmt::format("{} is fabric \"{}\" of plug-in interface {}, wanted is \"{}\" of {}", file,
                               table->abi == KVF_FABRIC_ABI ? table->name : "?", table->abi, name, KVF_FABRIC_ABI)};
    return std::shared_ptr<const Library>(new Library(*table, file));
  }
  return Error{ErrorCode::unsupported, fmt::format("fabric \"{}\" is not in this build: there is no {}", name, looked)};
}

}  // namespace kvferry::plugin
