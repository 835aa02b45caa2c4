#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "engine/parcel/ranks.h"

namespace kvferry {
namespace {

using ::testing::ElementsAre;

ParallelRank rank(uint32_t tp_size, uint32_t tp, uint32_t pp_size = 1, uint32_t pp = 0) {
  return {tp_size, tp, pp_size, pp, 1, 0};
}

TEST(SettlingRanks, PartnersShareAPieceOfTheHeads) {
  EXPECT_THAT(settling_readers(rank(4, 2), 2, 1), ElementsAre(RankId{0, 1}));
  EXPECT_THAT(settling_readers(rank(2, 1), 4, 1), ElementsAre(RankId{0, 2}, RankId{0, 3}));
  EXPECT_THAT(settling_readers(rank(3, 1), 2, 1), ElementsAre(RankId{0, 0}, RankId{0, 1}));
}

TEST(SettlingRanks, EveryStageSettlesWithEveryStage) {
  EXPECT_THAT(settling_readers(rank(2, 0, 3, 1), 2, 2), ElementsAre(RankId{0, 0}, RankId{1, 0}));
}

TEST(SettlingRanks, OwnerAndReaderDeriveTheSamePairsAndNobodyIsLeftOut) {
  for (uint32_t owner_tp = 1; owner_tp <= 9; ++owner_tp) {
    for (uint32_t reader_tp = 1; reader_tp <= 9; ++reader_tp) {
      for (const uint32_t owner_pp : {1U, 3U}) {
        for (const uint32_t reader_pp : {1U, 2U}) {
          for (uint32_t owner = 0; owner < owner_tp; ++owner) {
            const auto readers = settling_readers(rank(owner_tp, owner, owner_pp, 0), reader_tp, reader_pp);
            EXPECT_FALSE(readers.empty());
            for (uint32_t reader = 0; reader < reader_tp; ++reader) {
              const auto owners = owners_to_settle(rank(reader_tp, reader, reader_pp, 1), owner_tp, owner_pp);
              EXPECT_EQ(std::count(owners.begin(), owners.end(), RankId{0, owner}),
                        std::count(readers.begin(), readers.end(), RankId{1 % reader_pp, reader}))
                  << owner << "/" << owner_tp << " and " << reader << "/" << reader_tp;
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace kvferry
