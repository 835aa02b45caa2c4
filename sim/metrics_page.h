#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace kvferry::sim {

// Joins several expositions of Prometheus' text format into one, where a name may stand in many of them.
class MetricsPage {
 public:
  // Each sample gets `label` (`name="value"`; empty: none) besides its own.
  void add(std::string_view exposition, std::string_view label = {});
  std::string text() const;

 private:
  struct Family {
    std::string comments;  // HELP and TYPE, of the first exposition
    std::string samples;
  };
  std::vector<std::string> order_;
  std::map<std::string, Family, std::less<>> families_;
};

}  // namespace kvferry::sim
