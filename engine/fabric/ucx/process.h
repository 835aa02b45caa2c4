#pragma once

#include <string>

namespace kvferry::ucx {

// What UCX does to the whole process when it is loaded, taken back: its handlers of crashes, and its lines on standard
// output. Repeated calls do nothing.
void tame_process();

// What UCX complained of last in this thread, and forgets.
std::string take_complaint();

}  // namespace kvferry::ucx
