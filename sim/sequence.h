#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "common/clock.h"
#include "sim/block_allocator.h"
#include "sim/model_config.h"

namespace kvferry::sim {

using SequenceId = uint64_t;

// What a request does with KV of other servers.
enum class KvRole : uint8_t {
  none,
  produce,  // the blocks of the prompt stay pinned when it ends, until release()
  consume,  // the prompt's KV comes from elsewhere into its blocks before it runs
};

// waiting  no blocks yet
// loading  has its blocks; somebody else writes KV into them
// running  prefill and decode
// held     ended for the client; blocks pinned for a reader
// draining ended for the client while loading; blocks pinned until nobody writes into them any more
// ended    forgotten
//
//            admit     load      loaded    hold   end        quiet
// waiting    running   loading   -         -      ended      -
// loading    -         -         running   -      draining   ended (the load failed)
// running    -         -         -         held   ended      -
// held       -         -         -         -      ended      -
// draining   -         -         -         -      -          ended
enum class SequenceState : uint8_t { waiting, loading, running, held, draining, ended };
enum class SequenceEvent : uint8_t { admit, load, loaded, hold, end, quiet };

// The table above; nothing where it has a dash.
std::optional<SequenceState> transition(SequenceState from, SequenceEvent event);

struct SequenceSpec {
  std::vector<Token> prompt;
  size_t max_new_tokens = 1;
  KvRole role = KvRole::none;
  ChainHash salt = 0;  // prompts of different salts share no cached blocks
  TimePoint deadline = kNever;
};

struct Sequence {
  SequenceId id = 0;
  SequenceSpec spec;
  SequenceState state = SequenceState::waiting;
  std::vector<Token> tokens;     // prompt, then answer
  size_t computed = 0;           // tokens whose KV is in the blocks
  size_t cached = 0;             // of the prompt, found in the prefix cache or loaded instead of computed
  std::vector<BlockId> blocks;   // enough for prompt and max_new_tokens, from admission on
  size_t remembered_blocks = 0;  // the first ones, known to the prefix cache
  ChainHash chain = 0;           // of these
};

}  // namespace kvferry::sim
