#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "engine/fabric/ofi/letter.h"

namespace kvferry::ofi {

// The owner's side: an endpoint that hears hellos and does nothing else, and one for each client. A client's memory
// operations come by the endpoint that was made for it, so that closing that one ends them.
class Door final : private Port::User, private Tended {
 public:
  // Null: `why` says so.
  static std::unique_ptr<Door> open(kvf_fabric& fabric, kvf_text why);
  ~Door() override;

  Name name() const { return port_->name(); }
  // Whether a connection of that number stands, or is being made.
  bool knows(uint64_t number) const;
  // Ends that client's connection. True: nothing that came by it is applied any more.
  bool fence(uint64_t client);

 private:
  // The end of one client's connection.
  class Guest final : public Port::User {
   public:
    Guest(kvf_fabric& fabric, Door& door) : fabric_(fabric), door_(door) {}
    ~Guest() override { port_.reset(); }  // whose close() tells us of ends
    int32_t open(const Letter& hello, Letter::Kind kind, kvf_text why);
    // Sends the answer as soon as there is a connection. True: that is over, one way or the other.
    bool answer();
    bool over() const { return answered_ || lost_; }
    bool lost() const { return lost_; }
    uint64_t number() const { return answer_.letter.number; }
    bool close() { return port_ == nullptr || port_->close(); }

   private:
    void ended(Request& request, int32_t result, const std::string& why) override;
    void broke(const std::string&) override { lose(); }
    void lose();

    kvf_fabric& fabric_;
    Door& door_;
    Mailbox answer_;
    Mailbox thanks_;  // received and not looked at: that it could be sent is what counts
    std::unique_ptr<Port> port_;
    std::chrono::steady_clock::time_point until_;
    bool posted_ = false;
    bool answered_ = false;
    bool thanked_ = false;
    bool lost_ = false;
  };

  explicit Door(kvf_fabric& fabric) : fabric_(fabric) {}
  int32_t start(kvf_text why);
  void ended(Request& request, int32_t result, const std::string& why) override;
  void broke(const std::string&) override {}
  bool tend() override;
  bool admit(const Letter& hello);

  static constexpr size_t kLetters = 32;      // heard at once; the provider keeps what comes beyond
  static constexpr size_t kMostGuests = 256;  // I6: 5 MB and a dozen descriptors each; others go by tcp
  static constexpr size_t kMostRefused = 4;   // I6: strangers that are being told so; the others hear nothing
  kvf_fabric& fabric_;
  std::array<Mailbox, kLetters> boxes_;
  std::vector<Mailbox*> idle_;                         // not posted
  std::deque<Letter> heard_;                           // bounded by kLetters
  std::map<uint64_t, std::unique_ptr<Guest>> guests_;  // by client; their sessions' end is theirs
  std::set<uint64_t> unsure_;                          // whose connection did not end when it was to
  std::vector<std::unique_ptr<Guest>> refused_;
  std::unique_ptr<Port> port_;
};

}  // namespace kvferry::ofi
