#include "thinkvg/dist/launch.h"

#include <gmock/gmock.h>

#include <map>

#include "tests/support/temporary_folder.h"
#include "thinkvg/core/files.h"

namespace thinkvg::dist {
namespace {

LaunchEnvironment read(const std::map<std::string, std::string>& variables) {
  return read_launch_environment([&](const std::string& name) -> std::optional<std::string> {
    const auto found = variables.find(name);
    if (found == variables.end()) return std::nullopt;
    return found->second;
  });
}

TEST(LaunchEnvironmentTest, OfAProcessAlone) {
  const LaunchEnvironment alone = read({});
  EXPECT_EQ(alone.world_size, 1);
  EXPECT_EQ(alone.rank, 0);
  // A batch script of Slurm, and torchrun with one process.
  EXPECT_EQ(read({{"SLURM_NTASKS", "8"}, {"SLURM_PROCID", "0"}}).world_size, 1);
  EXPECT_EQ(read({{"WORLD_SIZE", "1"}, {"RANK", "0"}}).world_size, 1);
}

TEST(LaunchEnvironmentTest, OfTorchrun) {
  const LaunchEnvironment environment = read({{"WORLD_SIZE", "16"},
                                              {"RANK", "11"},
                                              {"LOCAL_RANK", "3"},
                                              {"MASTER_ADDR", "gpu01"},
                                              {"MASTER_PORT", "29501"},
                                              {"TORCHELASTIC_USE_AGENT_STORE", "True"},
                                              {"TORCHELASTIC_RESTART_COUNT", "2"},
                                              {"SLURM_STEP_NUM_TASKS", "2"},
                                              {"SLURM_PROCID", "1"}});
  EXPECT_EQ(environment.world_size, 16);
  EXPECT_EQ(environment.rank, 11);
  EXPECT_EQ(environment.local_rank, 3);
  EXPECT_EQ(environment.master_address, "gpu01");
  EXPECT_EQ(environment.master_port, 29501);
  EXPECT_TRUE(environment.external_store);
  EXPECT_EQ(environment.attempt, 2);
}

TEST(LaunchEnvironmentTest, OfSrun) {
  std::map<std::string, std::string> variables = {
      {"SLURM_STEP_NUM_TASKS", "8"}, {"SLURM_PROCID", "5"},
      {"SLURM_LOCALID", "1"},        {"SLURM_STEP_NODELIST", "gpu[007-009,12]"},
      {"SLURM_JOB_ID", "123456"},    {"SLURM_STEP_ID", "0"}};
  const LaunchEnvironment environment = read(variables);
  EXPECT_EQ(environment.world_size, 8);
  EXPECT_EQ(environment.rank, 5);
  EXPECT_EQ(environment.local_rank, 1);
  EXPECT_EQ(environment.master_address, "gpu007");
  EXPECT_FALSE(environment.external_store);
  variables["SLURM_STEP_ID"] = "1";
  EXPECT_NE(read(variables).master_port, environment.master_port);
  variables["MASTER_ADDR"] = "10.0.0.1";
  variables["MASTER_PORT"] = "4000";
  EXPECT_EQ(read(variables).master_address, "10.0.0.1");
  EXPECT_EQ(read(variables).master_port, 4000);
}

TEST(LaunchEnvironmentTest, NamesWhatIsMissingOrWrong) {
  const auto expect_message = [](const std::map<std::string, std::string>& variables, const std::string& part) {
    EXPECT_THAT([&] { read(variables); }, ::testing::ThrowsMessage<std::invalid_argument>(::testing::HasSubstr(part)));
  };
  expect_message({{"WORLD_SIZE", "2"}}, "RANK is not");
  expect_message({{"WORLD_SIZE", "2"}, {"RANK", "0"}}, "MASTER_ADDR");
  expect_message({{"WORLD_SIZE", "2"}, {"RANK", "0"}, {"MASTER_ADDR", "a"}}, "MASTER_PORT is not");
  expect_message({{"WORLD_SIZE", "two"}}, "'two'");
  expect_message({{"WORLD_SIZE", "2"}, {"RANK", "2"}, {"MASTER_ADDR", "a"}, {"MASTER_PORT", "1"}}, "rank 2 of 2");
  expect_message({{"WORLD_SIZE", "2"}, {"RANK", "1"}, {"MASTER_ADDR", "a"}, {"MASTER_PORT", "99999"}}, "MASTER_PORT");
  expect_message({{"SLURM_STEP_NUM_TASKS", "2"}}, "SLURM_PROCID is not");
}

TEST(FirstSlurmHostTest, ReadsCompactLists) {
  EXPECT_EQ(first_slurm_host("login"), "login");
  EXPECT_EQ(first_slurm_host("a,b"), "a");
  EXPECT_EQ(first_slurm_host("gpu[007-009,12],login"), "gpu007");
  EXPECT_EQ(first_slurm_host("gpu[12,3]"), "gpu12");
  EXPECT_EQ(first_slurm_host("rack1-[02-04]-ib,other"), "rack1-02-ib");
  EXPECT_EQ(first_slurm_host("first,gpu[1-2]"), "first");
  EXPECT_THROW(first_slurm_host("gpu[1-2"), std::invalid_argument);
}

TEST(LaunchLocalTest, GivesEachRankItsVariablesAndReturnsTheirCodes) {
  const test::TemporaryFolder folder;
  const std::string script =
      "echo $RANK $WORLD_SIZE $LOCAL_RANK $MASTER_ADDR > " + folder.path().string() + "/$RANK; exit $((RANK * 3))";
  const LocalLaunchResult result = launch_local({{"/bin/sh", "-c", script}, 3, 5});
  EXPECT_EQ(result.exit_codes, (std::vector<int>{0, 3, 6}));
  EXPECT_TRUE(result.failed == 1 || result.failed == 2);
  EXPECT_EQ(read_file(folder / "2"), "2 3 2 127.0.0.1\n");
  EXPECT_FALSE(launch_local({{"/bin/true"}, 2, 5}).failed);
  EXPECT_EQ(launch_local({{"/nowhere/program"}, 1, 5}).exit_codes, std::vector<int>{127});
}

TEST(LaunchLocalTest, EndsTheOthersWhenOneFails) {
  const LocalLaunchResult result =
      launch_local({{"/bin/sh", "-c", "test $RANK = 0 && kill -9 $$; exec sleep 100"}, 2, 0.2});
  EXPECT_EQ(result.failed, 0);
  EXPECT_EQ(result.exit_codes, (std::vector<int>{128 + 9, 128 + 15}));
}

}  // namespace
}  // namespace thinkvg::dist
