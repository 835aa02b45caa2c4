#include "test/support/target.h"

namespace kvferry::test {

const char* target_program() {
  return KVF_TEST_TARGET;
}

}  // namespace kvferry::test
