#include <gtest/gtest.h>

#include "engine/parcel.h"
#include "test/support/engines.h"
#include "test/support/eventually.h"
#include "test/support/raw_peer.h"

// Readers that restart, as their owner sees them: an owner that was stopped may handle the hello of the life before
// after that of the life that is (I5).

namespace kvferry::test {
namespace {

class ReaderIncarnations : public ::testing::Test {
 protected:
  // A machine that stands still for seconds must end neither the sessions, which send no heartbeats, nor the grace.
  explicit ReaderIncarnations(Duration reader_grace = std::chrono::seconds(60)) : memory_(4096) {
    EngineConfig config;
    config.engine_id = "owner";
    config.fabrics = {"tcp"};
    config.missed_heartbeats = 60;
    config.parcels.reader_grace = reader_grace;
    engine_ = must(Engine::create(config));
    region_ = must(engine_->register_memory(memory_.data(), memory_.size(), MemoryKind::host, kPrivate));
    KvGroup group;
    group.block_tokens = 4;
    group.block_count = 8;
    group.heads_total = group.heads_local = 1;
    group.head_size_k = group.head_size_v = 8;
    group.element_bits = 16;
    KvLayout layout;
    layout.layers_total = 1;
    layout.groups = {group};
    layout.layers = {dense_layer(0, 0, group, PageShape::head_major, KvOrder::in_block, region_.id(), 0)};
    parcels_.emplace(*engine_);
    EXPECT_TRUE(parcels_->set_cache("owner-instance", layout).ok());
    EXPECT_TRUE(parcels_->announce("t1").ok());
  }

  // A session of the reader's life `incarnation`, greeted.
  RawConnection come(uint64_t incarnation) {
    RawConnection connection = RawConnection::dial(engine_->address());
    proto::Frame frame = hello("reader");
    frame.mutable_hello()->set_incarnation(incarnation);
    EXPECT_TRUE(connection.send(encode_session_preface() + RawConnection::encode(frame)));
    EXPECT_TRUE(connection.receive_frame(proto::Frame::kWelcome).has_welcome());
    return connection;
  }
  void claim(RawConnection& session) {
    proto::Frame frame;
    proto::Claim& asked = *frame.mutable_claim();
    asked.set_number(1);
    asked.set_transfer_id("t1");
    asked.set_fingerprint("model");
    asked.set_remaining_ms(60000);
    asked.mutable_group()->set_instance_id("decoder");
    asked.mutable_group()->set_tp_size(1);
    asked.mutable_group()->set_pp_size(1);
    EXPECT_TRUE(session.send_frame(frame));
  }
  // When this returns, the owner has handled what came before.
  void settle_down(RawConnection& session) {
    proto::Frame frame;
    frame.mutable_heartbeat()->set_number(1);
    EXPECT_TRUE(session.send_frame(frame));
    EXPECT_TRUE(session.receive_frame(proto::Frame::kHeartbeatEcho).has_heartbeat_echo());
  }
  void publish() {
    ParcelSpec spec;
    spec.transfer_id = "t1";
    spec.tokens = 4;
    spec.blocks = {{0, {2}}};
    spec.fingerprint = "model";
    EXPECT_TRUE(parcels_->publish(std::move(spec)).ok());
  }

  std::vector<std::byte> memory_;
  std::unique_ptr<Engine> engine_;
  Region region_;
  std::optional<Parcels> parcels_;
};

TEST_F(ReaderIncarnations, AFormerLifesLateHelloTakesNothingFromTheReader) {
  RawConnection reader = come(2);
  claim(reader);
  settle_down(reader);
  come(1).shut();
  publish();
  const proto::Ticket ticket = reader.receive_frame(proto::Frame::kTicket).ticket();
  EXPECT_EQ(ticket.number(), 1u);
  EXPECT_EQ(ticket.code(), 0u) << ticket.message();
}

class ReaderIncarnationsOfShortGrace : public ReaderIncarnations {
 protected:
  ReaderIncarnationsOfShortGrace() : ReaderIncarnations(std::chrono::seconds(2)) {}
};

TEST_F(ReaderIncarnationsOfShortGrace, AFormerLifesClaimFailsWhenItsSessionStaysAway) {
  RawConnection former = come(1);
  publish();
  claim(former);
  ASSERT_TRUE(former.receive_frame(proto::Frame::kTicket).has_ticket());
  RawConnection reader = come(2);
  settle_down(reader);
  EXPECT_EQ(parcels_->status("t1")->readers, 1u);  // which of the two is the newest cannot be known
  former.shut();
  std::vector<ParcelReleased> released;
  ASSERT_TRUE(eventually([&] { return !(released = parcels_->take_released()).empty(); }));
  EXPECT_EQ(released.front().why, ReleaseReason::reader_failed);
}

TEST_F(ReaderIncarnations, ANewLifeTakesItsRanksPlaceWithinTheGrace) {
  {
    RawConnection former = come(1);
    publish();
    claim(former);
    ASSERT_TRUE(former.receive_frame(proto::Frame::kTicket).has_ticket());
  }
  RawConnection reader = come(2);
  claim(reader);
  const proto::Ticket ticket = reader.receive_frame(proto::Frame::kTicket).ticket();
  EXPECT_EQ(ticket.code(), 0u) << ticket.message();
  EXPECT_EQ(parcels_->status("t1")->readers, 1u);
}

}  // namespace
}  // namespace kvferry::test
