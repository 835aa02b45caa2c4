#pragma once

#include <memory>

#include "engine/bench/trial_keys.h"

namespace kvferry::bench {

// Makes keys for that mode and puts them into this process's environment, where base_config() here and in every process
// that this one spawns finds them. They go with what is returned; nothing in mode open.
Result<std::unique_ptr<TrialKeys>> use_trial_keys(AuthMode mode);

// What every engine of the benchmark begins with: authentication and fabrics of plug-ins as the environment says
// (docs/settings.md).
Result<EngineConfig> base_config();

}  // namespace kvferry::bench
