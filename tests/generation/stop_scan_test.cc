#include "generation/stop_scan.h"

#include <gtest/gtest.h>

#include "thinkvg/core/random.h"

namespace thinkvg::generation {
namespace {

// Ids are bytes.
class Bytes final : public text::StreamingDecoder {
 public:
  std::string add(std::int64_t id) override { return std::string(1, static_cast<char>(id)); }
  std::string finish() override { return ""; }
};

// Random texts over few letters: what is released never has to be taken back.
TEST(StopScan, CutsAtTheEarliestStopAndReleasesNoPartOfIt) {
  RandomStream random({1});
  int num_stopped = 0;
  for (int round = 0; round < 3000; ++round) {
    const auto word = [&](std::uint64_t longest) {
      std::string letters;
      for (std::uint64_t i = 0; i < longest; ++i) letters += static_cast<char>('a' + random.below(2));
      return letters;
    };
    std::vector<std::string> stops;
    for (std::uint64_t i = random.below(4); i > 0; --i) stops.push_back(word(1 + random.below(6)));
    const std::string text = word(30);
    // By definition: the stop that is complete first, at its earliest place.
    std::size_t end = text.size() + 1, cut = text.size();
    for (std::size_t i = 1; i <= text.size() && end > text.size(); ++i)
      for (const std::string& stop : stops)
        if (const std::size_t place = text.substr(0, i).find(stop); place != std::string::npos) {
          end = i;
          cut = std::min(cut, place);
        }
    StopScan scan(std::make_unique<Bytes>(), stops);
    std::string released;
    std::size_t added = 0;
    while (added < text.size() && scan.stop_text().empty()) {
      released += scan.add(text[added++]);
      ASSERT_TRUE(text.substr(0, cut).starts_with(released));
    }
    ASSERT_EQ(added, std::min(end, text.size()));
    ASSERT_EQ(scan.finish(), text.substr(0, cut));
    ASSERT_EQ(scan.stop_text().empty(), end > text.size());
    num_stopped += scan.stop_text().empty() ? 0 : 1;
    if (!scan.stop_text().empty()) {
      ASSERT_EQ(text.substr(cut, scan.stop_text().size()), scan.stop_text());
    }
  }
  EXPECT_GT(num_stopped, 500);
}

}  // namespace
}  // namespace thinkvg::generation
