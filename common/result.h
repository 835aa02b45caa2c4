#pragma once

#include <optional>
#include <utility>
#include <variant>

#include "common/check.h"
#include "common/error.h"

namespace kvferry {

// A value or the Error that came instead. Reading the side that is not there is a broken invariant.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}      // NOLINT(google-explicit-constructor)
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}  // NOLINT(google-explicit-constructor)

  bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }

  T& value() & { return check_value(), std::get<0>(state_); }
  const T& value() const& { return check_value(), std::get<0>(state_); }
  T&& value() && { return check_value(), std::get<0>(std::move(state_)); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

  const Error& error() const& {
    KVF_CHECK(!ok());
    return std::get<1>(state_);
  }
  Error&& error() && {
    KVF_CHECK(!ok());
    return std::get<1>(std::move(state_));
  }

 private:
  void check_value() const {
    if (!ok()) check_failed(error().to_string().c_str(), __FILE__, __LINE__);
  }
  std::variant<T, Error> state_;
};

// Success or an Error.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Error error) : error_(std::move(error)) {}  // NOLINT(google-explicit-constructor)

  bool ok() const { return !error_.has_value(); }
  explicit operator bool() const { return ok(); }
  const Error& error() const& {
    KVF_CHECK(error_.has_value());
    return *error_;
  }
  Error&& error() && {
    KVF_CHECK(error_.has_value());
    return *std::move(error_);
  }

 private:
  std::optional<Error> error_;
};

}  // namespace kvferry

#define KVF_CONCAT_INNER(a, b) a##b
#define KVF_CONCAT(a, b) KVF_CONCAT_INNER(a, b)

// Returns from the enclosing function with the Error of `expression`, if it has one.
#define KVF_RETURN_IF_ERROR(expression)                                                         \
  do {                                                                                          \
    if (auto kvf_status = (expression); !kvf_status.ok()) return std::move(kvf_status).error(); \
  } while (false)

// Declares `declaration` as the value of `expression`, or returns its Error from the enclosing function.
#define KVF_ASSIGN_OR_RETURN(declaration, expression) \
  KVF_ASSIGN_OR_RETURN_INNER(KVF_CONCAT(kvf_result_, __LINE__), declaration, expression)
#define KVF_ASSIGN_OR_RETURN_INNER(temporary, declaration, expression) \
  auto temporary = (expression);                                       \
  if (!temporary.ok()) return std::move(temporary).error();            \
  declaration = std::move(temporary).value()
