#pragma once

#include <cstdint>
#include <functional>
#include <map>

namespace kvferry::plugin {

// What an owner must know of the peers that reach its memory by a plug-in's fabric, to give memory back (I4). A peer
// that has such a fabric says so in its hello, and from then on tells for each version of the region table when
// nothing of it is under way any more to what that version no longer has. On loop only.
class Guests {
 public:
  // `fence` ends a client's connection. True: nothing that came by it is applied any more.
  explicit Guests(std::function<bool(uint64_t client)> fence) : fence_(std::move(fence)) {}

  // A session whose initiator's fabric is `client`, from its hello to its end.
  void came(uint64_t session, uint64_t client) { guests_[session].client = client; }
  void left(uint64_t session);
  // Told by the initiator: nothing is under way to regions that were gone at `version`.
  void quiet(uint64_t session, uint64_t version);
  // Told by the initiator: nothing of it begins any more to regions that were gone at `version`.
  void known(uint64_t session, uint64_t version);

  // Whether a connection of that client's may be taken.
  bool admits(uint64_t client) const;
  // Whether nobody touches regions that are gone since `version`.
  bool quiet_since(uint64_t version) const;
  // Ends the connections of those who have not said so; whether that is enough, quiet_since() knows.
  void fence_late(uint64_t version);
  // How many connections that has ended.
  size_t cut_off() const { return cut_off_; }

 private:
  struct Guest {
    uint64_t client = 0;
    uint64_t quiet = 0;      // version of the region table
    uint64_t known = 0;      // likewise
    uint64_t fenced = 0;     // likewise: its connection was ended for that version's sake
    bool fence_held = true;  // and nothing that came by it is applied any more
  };
  const std::function<bool(uint64_t)> fence_;
  std::map<uint64_t, Guest> guests_;  // by session
  size_t cut_off_ = 0;
  bool lost_one_ = false;  // a guest that may still write went without a word, for good
};

}  // namespace kvferry::plugin
