#include "engine/fabric/local/host.h"

#include <sys/stat.h>
#include <unistd.h>

#include <fstream>

namespace kvferry {

HostIdentity this_host() {
  HostIdentity host;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> host.boot_id;
  struct stat status {};
  if (::stat("/proc/self/ns/pid", &status) == 0) host.pid_namespace = status.st_ino;
  host.pid = static_cast<uint32_t>(::getpid());
  host.uid = ::getuid();
  return host;
}

}  // namespace kvferry
