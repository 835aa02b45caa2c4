#pragma once

#include <string_view>

namespace kvferry::proxy {

// proxy/dashboard.html.
std::string_view dashboard_page();

}  // namespace kvferry::proxy
