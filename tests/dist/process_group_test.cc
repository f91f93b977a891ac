#include "thinkvg/dist/process_group.h"

#include <ATen/ATen.h>

#include "tests/dist/workers.h"

namespace thinkvg::dist {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(ProcessGroupTest, AloneEveryCollectiveIsTheIdentity) {
  ProcessGroup group;
  EXPECT_EQ(group.size(), 1);
  EXPECT_TRUE(group.is_main());
  at::Tensor tensor = at::full({2}, 3.0f);
  group.all_reduce(tensor, "sum");
  group.broadcast(tensor, "broadcast");
  EXPECT_TRUE(at::equal(tensor, at::full({2}, 3.0f)));
  EXPECT_TRUE(at::equal(group.all_gather(tensor, "gather"), tensor.unsqueeze(0)));
  EXPECT_TRUE(at::equal(group.reduce_scatter(tensor.unsqueeze(0), "scatter"), tensor));
  at::Tensor gathered = at::zeros({2}), scattered = at::zeros({2});
  group.start_all_gather(tensor, gathered, "gather").wait();
  group.start_reduce_scatter(tensor.unsqueeze(0), scattered, "scatter").wait();
  EXPECT_TRUE(at::equal(gathered, tensor));
  EXPECT_TRUE(at::equal(scattered, tensor));
  EXPECT_THROW(group.start_all_gather(tensor, at::zeros({3}), "three"), std::invalid_argument);
  EXPECT_THROW(group.start_reduce_scatter(tensor.unsqueeze(0), at::zeros({3}), "three"), std::invalid_argument);
  EXPECT_EQ(group.gather_texts("a", "texts"), std::vector<std::string>{"a"});
  EXPECT_EQ(group.share_of(3), (std::vector<std::int64_t>{0, 1, 2}));
  EXPECT_TRUE(group.any(true, "any"));
  EXPECT_EQ(group.total_stats().bytes_sent, 0);
  EXPECT_THROW(group.reduce_scatter(at::ones({2, 3}), "two rows"), std::invalid_argument);
}

TEST(DistOptionsTest, NamesWhatIsWrong) {
  DistOptions options;
  EXPECT_NO_THROW(options.check());
  options.sharding = "zero2";
  EXPECT_THAT([&] { options.check(); },
              ::testing::ThrowsMessage<std::invalid_argument>(AllOf(HasSubstr("dist.sharding"), HasSubstr("zero2"))));
  options = {};
  options.backend = "mpi";
  EXPECT_THAT([&] { options.check(); },
              ::testing::ThrowsMessage<std::invalid_argument>(AllOf(HasSubstr("dist.backend"), HasSubstr("mpi"))));
  options = {};
  options.shard_size = 2;
  EXPECT_THAT([&] { options.check(); },
              ::testing::ThrowsMessage<std::invalid_argument>(AllOf(HasSubstr("dist.shard_size"), HasSubstr("none"))));
  options.sharding = "parameters";
  EXPECT_NO_THROW(options.check());
  EXPECT_EQ(options.processes_a_shard(1), 1);
  EXPECT_EQ(options.processes_a_shard(6), 2);
  EXPECT_THAT([&] { options.processes_a_shard(5); },
              ::testing::ThrowsMessage<std::invalid_argument>(AllOf(HasSubstr("dist.shard_size 2"), HasSubstr("5"))));
  options.shard_size = 0;
  EXPECT_EQ(options.processes_a_shard(5), 5);
  options = {};
  options.timeout = 0;
  EXPECT_THAT([&] { options.check(); }, ::testing::ThrowsMessage<std::invalid_argument>(HasSubstr("dist.timeout")));
}

TEST(CollectivesDist, GiveEveryRankTheSame) {
  using Case = std::pair<std::int64_t, bool>;  // processes, tensors of another device that go by way of the CPU
  for (const auto& [size, on_another_device] : {Case{2, false}, Case{4, false}, Case{2, true}}) {
    const WorkersResult result = run_workers("collectives", size, {{"on_another_device", on_another_device}});
    expect_success(result);
    const double sum = static_cast<double>(size * (size + 1) / 2), n = static_cast<double>(size);
    for (std::size_t rank = 0; rank < result.ranks.size(); ++rank) {
      const Json& got = result.ranks[rank];
      ASSERT_TRUE(got.contains("stats")) << got.dump();
      for (const char* type : {"float", "double", "bfloat16", "int64"})
        EXPECT_EQ(got[type], Json(std::vector<double>(3, sum))) << type;
      EXPECT_EQ(got["largest"], Json({n - 1}));
      EXPECT_EQ(got["smallest"], Json({0.0}));
      EXPECT_EQ(got["broadcast"], Json({n - 1, n - 1}));
      std::vector<double> gathered;
      for (std::int64_t other = 0; other < size; ++other)
        gathered.insert(gathered.end(), 2, static_cast<double>(other));
      EXPECT_EQ(got["gathered"], Json(gathered));
      const auto first = static_cast<double>(2 * rank);
      EXPECT_EQ(got["scattered"], Json({first * sum, (first + 1) * sum}));
      EXPECT_EQ(got["texts"][static_cast<std::size_t>(size - 1)], std::string(static_cast<std::size_t>(size - 1), 'x'));
      EXPECT_EQ(got["text"], "hello");
      EXPECT_EQ(got["sum"], Json({n / 2, n * (n - 1) / 2}));
      EXPECT_EQ(got["any"], Json({true, false}));
      EXPECT_EQ(got["share"][0], rank);
      for (std::size_t i = 0; i < 5; ++i)
        EXPECT_EQ(got["at_once"][i].get<double>(), n * (n - 1) / 2 + n * static_cast<double>(i));
      EXPECT_EQ(got["bytes"].get<std::int64_t>(), 5 * 2 * 4000 * (size - 1) / size);
    }
  }
}

Json fault(const std::string& kind, std::int64_t rank) {
  return {{"fault", kind}, {"rank", rank}, {"dist", {{"heartbeat_timeout", 3.0}, {"timeout", 4.0}}}};
}

// All ranks but the guilty one end with the same kind of message, within `seconds`.
void expect_all_others_say(const WorkersResult& result, std::size_t guilty, double seconds,
                           const ::testing::Matcher<std::string>& message) {
  for (std::size_t rank = 0; rank < result.ranks.size(); ++rank) {
    if (rank == guilty) continue;
    EXPECT_EQ(result.launch.exit_codes[rank], 1);
    EXPECT_THAT(result.error(rank), message) << "rank " << rank;
    if (result.ranks[rank].is_object()) EXPECT_LT(result.ranks[rank].value("seconds", 1e9), seconds);
  }
}

// The others' limit: the time-out of the fault, starting up, and what telling takes.
constexpr double kLimit = 25;

TEST(FaultsDist, AKilledRankIsNamed) {
  for (const auto& [size, rank] : {std::pair<std::int64_t, std::int64_t>{2, 1}, {4, 2}}) {
    const WorkersResult result = run_workers("steps", size, fault("killed", rank), 10);
    EXPECT_EQ(result.launch.exit_codes[static_cast<std::size_t>(rank)], 128 + 9);
    expect_all_others_say(
        result, static_cast<std::size_t>(rank), kLimit,
        AllOf(HasSubstr("rank " + std::to_string(rank) + " on "), HasSubstr("'work' of step 3"), HasSubstr("process")));
  }
}

TEST(FaultsDist, TheRankThatKeepsTheStoreIsNamedToo) {
  const WorkersResult result = run_workers("steps", 4, fault("killed", 0), 10);
  expect_all_others_say(result, 0, kLimit, AllOf(HasSubstr("rank 0 on "), HasSubstr("'work'")));
}

TEST(FaultsDist, AStoppedRankIsNamed) {
  const WorkersResult result = run_workers("steps", 4, fault("stopped", 2), 10);
  expect_all_others_say(
      result, 2, kLimit,
      AllOf(HasSubstr("rank 2 on "), HasSubstr("no sign of life for 3 s"), HasSubstr("'work' of step 3")));
}

TEST(FaultsDist, AStoppedStoreIsNamed) {
  const WorkersResult result = run_workers("steps", 2, fault("stopped", 0), 10);
  expect_all_others_say(result, 0, kLimit, AllOf(HasSubstr("rank 0 on "), HasSubstr("has not answered for 3 s")));
}

TEST(FaultsDist, ALateRankIsNamed) {
  const WorkersResult result = run_workers("steps", 2, fault("late", 1), 10);
  expect_all_others_say(result, 1, kLimit,
                        AllOf(HasSubstr("still lacks rank 1 on "), HasSubstr("'result'"), HasSubstr("'work' of step 3"),
                              HasSubstr("dist.timeout")));
}

TEST(FaultsDist, AnErrorReachesTheOthers) {
  for (const std::int64_t rank : {0, 1}) {
    const WorkersResult result = run_workers("steps", 4, fault("error", rank), 10);
    EXPECT_EQ(result.error(static_cast<std::size_t>(rank)), "row 17: the picture is damaged");
    expect_all_others_say(result, static_cast<std::size_t>(rank), kLimit,
                          AllOf(HasSubstr("rank " + std::to_string(rank) + " on "), HasSubstr("'work' of step 3"),
                                HasSubstr("failed: row 17: the picture is damaged")));
  }
}

TEST(FaultsDist, ARankThatIsBusyIsEndedAfterAnError) {
  const WorkersResult result = run_workers("steps", 2, fault("busy", 0), 25);
  EXPECT_EQ(result.launch.exit_codes[1], 3);
  EXPECT_THAT(result.ranks[1].dump(), AllOf(HasSubstr("stuck"), HasSubstr("no memory left")));
}

TEST(FaultsDist, DifferentCollectivesAreToldApart) {
  const WorkersResult shapes = run_workers("steps", 2, fault("shape", 1), 10);
  for (std::size_t rank = 0; rank < 2; ++rank)
    EXPECT_THAT(shapes.error(rank), AllOf(HasSubstr("went different ways"), HasSubstr("rank 0 is at exchange 3"),
                                          HasSubstr("[4] of Float"), HasSubstr("[5] of Float")));
  const WorkersResult names = run_workers("steps", 4, fault("name", 2), 10);
  for (std::size_t rank = 0; rank < 4; ++rank)
    EXPECT_THAT(names.error(rank), AllOf(HasSubstr("rank 0, 1, 3 is at"), HasSubstr("'result'"), HasSubstr("'other'")));
}

TEST(FaultsDist, ARankThatNeverComesIsNamed) {
  Json settings = fault("none", 0);
  settings["absent"] = 1;
  settings["dist"]["start_timeout"] = 2.0;
  const WorkersResult result = run_workers("steps", 4, settings, 10);
  EXPECT_THAT(result.error(0), AllOf(HasSubstr("of 4 processes, rank 1 did not join within 2 s")));
}

}  // namespace
}  // namespace thinkvg::dist
