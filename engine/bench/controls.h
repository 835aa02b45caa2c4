#pragma once

#include <string>
#include <vector>

#include "engine/bench/report.h"

namespace kvferry::bench {

// The control figures: what a user notices besides the speed of transfers. Each spawns the processes that it needs, on
// this host.
std::vector<std::string> control_names();
Result<std::vector<Figure>> run_control(const std::string& name);

Result<std::vector<Figure>> measure_contact();   // connect and first read, by number of regions
Result<std::vector<Figure>> measure_notify();    // round trips of notifications
Result<std::vector<Figure>> measure_register();  // cost of a region
Result<std::vector<Figure>> measure_stopped();   // CPU while a peer is stopped
Result<std::vector<Figure>> measure_crowd();     // 1000 sessions to one engine
Result<std::vector<Figure>> measure_fairness();  // slow and stopped peers among others
Result<std::vector<Figure>> measure_parcels();   // one small parcel, many, their ends, digests

}  // namespace kvferry::bench
