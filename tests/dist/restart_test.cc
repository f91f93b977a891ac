// Jobs that lose a process, or the disk of one, and go on.
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "tests/dist/workers.h"
#include "tests/support/oracle.h"
#include "tests/support/tiny_run.h"
#include "thinkvg/train/run_folder.h"

namespace thinkvg::dist {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

Json sft_options(const fs::path& out, std::int64_t steps, std::int64_t save_every) {
  const test::TinyRun& tiny = test::tiny_run();
  return {{"model", tiny.model.string()},
          {"data", {{"path", tiny.train.string()}}},
          {"images", tiny.images.string()},
          {"out", out.string()},
          {"resume", true},
          {"batch_size", 4},
          {"run",
           {{"steps", steps},
            {"save_every", save_every},
            {"micro_batch_tokens", 150},
            {"tensorboard", false},
            {"num_threads", 1}}}};
}

void expect_same_weights(const fs::path& got, const fs::path& expected) {
  EXPECT_EQ(train::checkpoint_damage(got), "");
  EXPECT_TRUE(read_file(got / "model.safetensors") == read_file(expected / "model.safetensors"));
}

// torchrun --max-restarts: a killed process costs the steps since the last checkpoint, and changes nothing.
TEST(RestartDist, TorchrunBringsTheJobBack) {
  const test::Oracle oracle = test::find_oracle("torch");
  if (oracle.python.empty()) GTEST_SKIP() << oracle.reason;
  const test::TemporaryFolder folder;
  Json options = sft_options(folder / "whole", 24, 4);
  options["dist"] = {{"sharding", "optimizer"}, {"heartbeat_timeout", 3.0}};
  write_file_atomically(folder / "run.yaml", options.dump());
  const std::string common = std::string(THINKVG_PROGRAM) + " sft --config " + (folder / "run.yaml").string();
  const test::ProcessResult whole = test::run_shell(common + " --processes 2");
  ASSERT_EQ(whole.exit_code, 0) << whole.err;
  // Rank 1 is killed once, in its first life, behind the first checkpoint.
  const std::string out = (folder / "restarted").string();
  write_file_atomically(folder / "start.sh",
                        "#!/bin/sh\n"
                        "[ \"$RANK$TORCHELASTIC_RESTART_COUNT\" = 10 ] || exec \"$@\"\n"
                        "\"$@\" & child=$!\n"
                        "until [ -e " +
                            out +
                            "/checkpoints/step-4 ]; do sleep 0.02; done\n"
                            "kill -9 $child; wait $child; touch " +
                            (folder / "killed").string() + "; exit 137\n");
  const test::ProcessResult restarted =
      test::run_shell(oracle.python +
                      " -m torch.distributed.run --no-python --nnodes 1 --nproc-per-node 2 --rdzv-backend c10d "
                      "--rdzv-endpoint localhost:0 --max-restarts 2 --monitor-interval 0.2 sh " +
                      (folder / "start.sh").string() + " " + common + " --out " + out);
  ASSERT_EQ(restarted.exit_code, 0) << restarted.err;
  EXPECT_TRUE(fs::exists(folder / "killed"));
  expect_same_weights(folder / "restarted/checkpoints/step-24", folder / "whole/checkpoints/step-24");
  const auto lines = json_lines(folder / "restarted/metrics.jsonl"),
             expected = json_lines(folder / "whole/metrics.jsonl");
  ASSERT_EQ(lines.size(), expected.size());
  for (std::size_t i = 0; i < lines.size(); ++i) EXPECT_EQ(lines[i]["loss"], expected[i]["loss"]) << i;
}

// torchrun's store outlives the processes: what the first life left there is not read by the second.
TEST(RestartDist, ALauncherThatKeepsItsStoreCanStartTheJobAgain) {
  c10d::TCPStoreOptions server;
  server.port = 0;
  server.isServer = true;
  server.waitWorkers = false;
  const auto store = c10::make_intrusive<c10d::TCPStore>("127.0.0.1", server);
  const auto life = [&](const std::string& mode, int attempt) {
    const Json settings = {{"fault", "error"}, {"rank", 1}, {"dist", {{"heartbeat_timeout", 2.0}}}};
    return run_workers(
        mode, 2, settings, 20,
        {"/usr/bin/env", "TORCHELASTIC_USE_AGENT_STORE=True", "MASTER_PORT=" + std::to_string(store->getPort()),
         "TORCHELASTIC_RESTART_COUNT=" + std::to_string(attempt)});
  };
  EXPECT_THAT(life("steps", 0).error(0), HasSubstr("the picture is damaged"));
  const WorkersResult again = life("collectives", 1);
  expect_success(again);
  for (const Json& rank : again.ranks) EXPECT_EQ(rank.value("sum", Json()), Json({1.0, 1.0})) << rank.dump();
}

// A file that cannot be written to its end on one process ends all, says who and which file, and leaves the checkpoint
// before as it was.
TEST(RestartDist, AFullDiskOfOneProcessEndsTheJobAndLosesNoCheckpoint) {
  const test::TemporaryFolder folder;
  const Json dist = {{"sharding", "optimizer"}};
  const auto run = [&](const std::string& name, std::int64_t steps, const std::vector<std::string>& wrapper = {}) {
    return run_workers("sft", 2, {{"options", sft_options(folder / name, steps, 3)}, {"dist", dist}}, 20, wrapper);
  };
  expect_success(run("whole", 6));
  fs::copy(folder / "whole", folder / "full", fs::copy_options::recursive);
  fs::remove_all(folder / "full/checkpoints/step-6");
  // Files of rank 1 end at 8 KiB: its share of the states is larger.
  const WorkersResult full =
      run("full", 6, {"/bin/sh", "-c", "if [ $RANK = 1 ]; then trap '' XFSZ; ulimit -f 16; fi; exec \"$0\" \"$@\""});
  for (std::size_t rank = 0; rank < 2; ++rank) {
    EXPECT_NE(full.launch.exit_codes[rank], 0) << rank;
    EXPECT_THAT(full.error(rank), AllOf(HasSubstr("step-6"), HasSubstr("File too large"))) << rank;
  }
  EXPECT_THAT(full.error(0), HasSubstr("rank 1"));
  EXPECT_EQ(train::checkpoint_damage(folder / "full/checkpoints/step-3"), "");
  EXPECT_FALSE(fs::exists(folder / "full/checkpoints/step-6"));
  expect_success(run("full", 6));
  expect_same_weights(folder / "full/checkpoints/step-6", folder / "whole/checkpoints/step-6");
}

}  // namespace
}  // namespace thinkvg::dist
