#include "test/support/link/tun.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cstring>
#include <string_view>
#include <utility>

namespace kvferry::test {
namespace {

constexpr char kDevice[] = "kvf0";

ifreq request_for(std::string_view device) {
  ifreq request{};
  device.copy(request.ifr_name, IFNAMSIZ - 1);
  return request;
}

Status set_address(int control, unsigned long what, const std::string& address) {
  ifreq request = request_for(kDevice);
  sockaddr_in internet{};
  internet.sin_family = AF_INET;
  if (::inet_pton(AF_INET, address.c_str(), &internet.sin_addr) != 1)
    return Error{ErrorCode::invalid_argument, "not an IPv4 address: " + address, {}, {}, {}};
  std::memcpy(&request.ifr_addr, &internet, sizeof internet);
  if (::ioctl(control, what, &request) != 0) return errno_error("cannot set " + address);
  return {};
}

Status bring_up(int control, std::string_view device) {
  ifreq request = request_for(device);
  if (::ioctl(control, SIOCGIFFLAGS, &request) != 0) return errno_error("cannot read the flags of a device");
  request.ifr_flags = static_cast<short>(request.ifr_flags | IFF_UP | IFF_RUNNING);
  if (::ioctl(control, SIOCSIFFLAGS, &request) != 0) return errno_error("cannot bring a device up");
  return {};
}

}  // namespace

Result<TunNamespace> enter_new_tun_namespace(const std::string& address, int mtu) {
  if (::unshare(CLONE_NEWNET) != 0) return errno_error("cannot make a network namespace");
  TunNamespace made;
  made.network_namespace.reset(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
  if (!made.network_namespace) return errno_error("cannot open the network namespace");
  made.tun.reset(::open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC));
  if (!made.tun) return errno_error("cannot open /dev/net/tun");
  ifreq request = request_for(kDevice);
  request.ifr_flags = IFF_TUN | IFF_NO_PI;
  if (::ioctl(made.tun.get(), TUNSETIFF, &request) != 0) return errno_error("cannot make a tun device");

  const UniqueFd control(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!control) return errno_error("cannot make a socket");
  KVF_RETURN_IF_ERROR(set_address(control.get(), SIOCSIFADDR, address));
  KVF_RETURN_IF_ERROR(set_address(control.get(), SIOCSIFNETMASK, "255.255.255.0"));
  request = request_for(kDevice);
  request.ifr_mtu = mtu;
  if (::ioctl(control.get(), SIOCSIFMTU, &request) != 0) return errno_error("cannot set the MTU");
  KVF_RETURN_IF_ERROR(bring_up(control.get(), kDevice));
  KVF_RETURN_IF_ERROR(bring_up(control.get(), "lo"));
  return made;
}

}  // namespace kvferry::test
