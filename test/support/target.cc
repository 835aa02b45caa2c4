#include "test/support/target.h"

#include "common/config.h"

namespace kvferry::test {

// KVFERRY_TEST_TARGET: another build of it, for test/system/mutants.py.
std::string target_program() {
  const auto other = Environment::of_process().get("KVFERRY_TEST_TARGET");
  return other ? *other : KVF_TEST_TARGET;
}

}  // namespace kvferry::test
