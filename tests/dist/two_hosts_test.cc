// Two network namespaces stand for two hosts.
#include <unistd.h>

#include "tests/dist/workers.h"
#include "tests/support/process.h"

namespace thinkvg::dist {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;

class TwoHosts {
 public:
  TwoHosts() : tag_("tv" + std::to_string(getpid())) {
    problem_ = test::run_shell("set -e; ip netns add " + tag_ + "a; ip netns add " + tag_ + "b; ip link add " + tag_ +
                               "x netns " + tag_ + "a type veth peer name " + tag_ + "y netns " + tag_ + "b; " +
                               on('a', "ip addr add 10.77.0.1/24 dev " + tag_ + "x") + "; " +
                               on('b', "ip addr add 10.77.0.2/24 dev " + tag_ + "y") + "; " +
                               on('a', "ip link set lo up") + "; " + on('b', "ip link set lo up") + "; " +
                               on('a', "ip link set " + tag_ + "x up") + "; " + on('b', "ip link set " + tag_ + "y up"))
                   .err;
  }
  ~TwoHosts() { test::run_shell("ip netns del " + tag_ + "a; ip netns del " + tag_ + "b"); }
  TwoHosts(const TwoHosts&) = delete;
  TwoHosts& operator=(const TwoHosts&) = delete;

  // Why there are none; empty: they are there.
  const std::string& problem() const { return problem_; }
  std::string on(char host, const std::string& command) const {
    return "ip netns exec " + tag_ + std::string(1, host) + " " + command;
  }
  std::string unplug() const { return on('a', "ip link set " + tag_ + "x down"); }
  // Two processes on each; `meanwhile` runs beside them, in the folder where each leaves started-RANK.
  WorkersResult run(const std::string& mode, const Json& settings, const std::string& meanwhile) const {
    const test::TemporaryFolder folder;
    write_file_atomically(folder / "settings.json", settings.dump());
    std::string all;
    for (int rank = 0; rank < 4; ++rank)
      all += on(rank < 2 ? 'a' : 'b', "timeout 60 env WORLD_SIZE=4 MASTER_ADDR=10.77.0.1 MASTER_PORT=29511 RANK=" +
                                          std::to_string(rank) + " LOCAL_RANK=" + std::to_string(rank % 2) + " " +
                                          THINKVG_DIST_WORKER + " " + mode + " " + folder.path().string()) +
             " & ";
    test::run_shell("cd " + folder.path().string() + "; " + all + meanwhile + "; wait");
    WorkersResult result;
    for (int rank = 0; rank < 4; ++rank) {
      const auto file = folder / ("rank-" + std::to_string(rank) + ".json");
      result.ranks.push_back(std::filesystem::exists(file) ? read_json_file(file) : Json());
    }
    return result;
  }

 private:
  std::string tag_;
  std::string problem_;
};

TEST(TwoHostsDist, ReachEachOther) {
  const TwoHosts hosts;
  if (!hosts.problem().empty()) GTEST_SKIP() << "no network namespaces here: " << hosts.problem();
  const WorkersResult result = hosts.run("collectives", Json::object(), "true");
  for (const Json& rank : result.ranks) EXPECT_EQ(rank.value("float", Json()), Json({10.0, 10.0, 10.0})) << rank.dump();
}

TEST(TwoHostsDist, ALostHostEndsTheJob) {
  const TwoHosts hosts;
  if (!hosts.problem().empty()) GTEST_SKIP() << "no network namespaces here: " << hosts.problem();
  const Json settings = {
      {"fault", "none"}, {"rank", 0}, {"num_steps", 2000}, {"dist", {{"heartbeat_timeout", 2.0}, {"timeout", 4.0}}}};
  const WorkersResult result =
      hosts.run("steps", settings, "until [ -e started-0 -a -e started-3 ]; do sleep 0.2; done; " + hosts.unplug());
  for (std::size_t rank = 0; rank < 4; ++rank) {
    EXPECT_THAT(result.error(rank), AnyOf(HasSubstr(rank < 2 ? "rank 2 on " : "rank 0 on "), HasSubstr("rank 3 on ")));
    if (result.ranks[rank].is_object()) EXPECT_LT(result.ranks[rank].value("seconds", 1e9), 40);
  }
}

}  // namespace
}  // namespace thinkvg::dist
