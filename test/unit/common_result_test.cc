#include <gtest/gtest.h>

#include <cerrno>
#include <memory>
#include <set>
#include <string>
#include <utility>

#include "common/result.h"

namespace kvferry {
namespace {

Error refused() {
  return Error{ErrorCode::unavailable, "cannot connect", "Connection refused", "p0", "fabric tcp"};
}

TEST(ResultDeathTest, AbortsWithTheErrorWhenTheValueIsNotThere) {
  const Result<int> result = refused();
  EXPECT_DEATH(static_cast<void>(result.value()), "cannot connect: Connection refused");
  EXPECT_DEATH(static_cast<void>(*result), "cannot connect");
}

TEST(ResultDeathTest, AbortsWhenTheErrorIsNotThere) {
  const Result<int> result = 1;
  EXPECT_DEATH(static_cast<void>(result.error()), "invariant broken");
  const Status status;
  EXPECT_DEATH(static_cast<void>(status.error()), "invariant broken");
}

TEST(Result, CarriesWhatCannotBeCopied) {
  Result<std::unique_ptr<int>> result = std::make_unique<int>(3);
  ASSERT_TRUE(result.ok());
  const std::unique_ptr<int> taken = std::move(result).value();
  EXPECT_EQ(*taken, 3);
}

TEST(Result, TellsAFalseValueFromAnError) {
  const Result<bool> result = false;
  EXPECT_TRUE(result.ok());
  EXPECT_FALSE(*result);
}

Result<int> half(int number) {
  if (number % 2 != 0) return Error{ErrorCode::invalid_argument, "odd", {}, {}, {}};
  return number / 2;
}

Result<int> quarter(int number) {
  KVF_ASSIGN_OR_RETURN(const int once, half(number));
  KVF_ASSIGN_OR_RETURN(const int twice, half(once));
  return twice;
}

Status check_quarter(int number, int* calls) {
  KVF_RETURN_IF_ERROR(quarter(number));
  ++*calls;
  return {};
}

TEST(Result, MacrosReturnTheFirstErrorAndElseGoOn) {
  EXPECT_EQ(*quarter(8), 2);
  EXPECT_EQ(quarter(6).error().message, "odd");
  int calls = 0;
  EXPECT_FALSE(check_quarter(6, &calls).ok());
  EXPECT_EQ(calls, 0);
  EXPECT_TRUE(check_quarter(8, &calls).ok());
  EXPECT_EQ(calls, 1);
}

TEST(Error, SaysCausePeerAndPlaceOnce) {
  EXPECT_EQ(refused().to_string(), "cannot connect: Connection refused (peer p0, fabric tcp)");
  Error told = refused();
  told.message = "cannot connect to p0 over fabric tcp";
  EXPECT_EQ(told.to_string(), "cannot connect to p0 over fabric tcp: Connection refused");
  EXPECT_EQ((Error{ErrorCode::gone, "no such parcel", {}, {}, {}}).to_string(), "no such parcel");
}

TEST(Error, TakesErrnoAsItsCauseBeforeAnythingCanChangeIt) {
  errno = ECONNREFUSED;
  const Error error = errno_error(std::string(1000, 'x'));
  EXPECT_EQ(error.code, ErrorCode::unavailable);
  EXPECT_EQ(error.cause, "Connection refused");
  EXPECT_EQ(errno_error("x", EMFILE).code, ErrorCode::resource_exhausted);
  EXPECT_EQ(errno_error("x", EIO).code, ErrorCode::internal);
}

TEST(ErrorCode, HasADifferentNameForEachNumber) {
  std::set<std::string_view> names;
  for (uint16_t code = 1; code <= 16; ++code) names.insert(to_string(static_cast<ErrorCode>(code)));
  EXPECT_EQ(names.size(), 16u);
  EXPECT_FALSE(names.contains("unknown"));
  EXPECT_EQ(to_string(static_cast<ErrorCode>(999)), "unknown") << "a newer peer may send a code of its own";
}

}  // namespace
}  // namespace kvferry
