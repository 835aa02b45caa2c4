#include "test/support/fabric_folders.h"

namespace kvferry::test {

std::string nic_fabric_folder() {
  return KVF_NIC_FABRIC_FOLDER;
}

std::string null_fabric_folder() {
  return KVF_NULL_FABRIC_FOLDER;
}

std::string other_abi_folder() {
  return KVF_OTHER_ABI_FOLDER;
}

}  // namespace kvferry::test
