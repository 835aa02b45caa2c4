#pragma once

namespace kvferry::test {

// A sanitizer takes memory of its own and, above all ThreadSanitizer, time: limits of tests are wider there.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif
#if defined(__SANITIZE_THREAD__)
inline constexpr bool kThreadsSanitized = true;
#else
inline constexpr bool kThreadsSanitized = false;
#endif
inline constexpr int kSlower = kThreadsSanitized ? 5 : 1;

// The loopback fabric plays the part that the kernel or a network card has elsewhere: it moves bytes of memory that its
// owner may give away at any moment. The gate, not a lock, says afterwards whether they count.
inline constexpr const char* kRacesOnPurpose = "an owner overwrites memory that is being read, on purpose";

}  // namespace kvferry::test
