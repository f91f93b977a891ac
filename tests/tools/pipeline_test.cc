// The whole way from nothing to a report through the command line, and what it says about bad input.

#include <gmock/gmock.h>

#include <algorithm>
#include <fstream>
#include <random>
#include <sstream>

#include "tests/support/process.h"
#include "thinkvg/core/json.h"

namespace thinkvg {
namespace {

using test::ProcessResult;
using testing::HasSubstr;

class PipelineEndToEnd : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new test::TemporaryFolder;
    expect_done(run({"phantom", "--out", path("phantom"), "--num_images", "40", "--num_dev", "4", "--num_test", "8",
                     "--longest_side", "192"}));
    expect_done(run({"init",
                     "--data",
                     path("phantom/data/train.parquet"),
                     "--out",
                     path("init"),
                     "--vocab_size",
                     "400",
                     "--image_size",
                     "56",
                     "--language.hidden_size",
                     "32",
                     "--language.num_layers",
                     "2",
                     "--language.intermediate_size",
                     "48",
                     "--language.mrope_section",
                     "1,1,2",
                     "--vision.hidden_size",
                     "32",
                     "--vision.depth",
                     "2",
                     "--vision.num_heads",
                     "2",
                     "--vision.intermediate_size",
                     "48",
                     "--vision.full_attention_blocks",
                     "1"}));
    expect_done(run({"warmup", "--model", path("init"), "--annotations", path("phantom/annotations.jsonl"), "--images",
                     path("phantom/files"), "--out", path("warmup"), "--steps", "5"}));
    expect_done(run(sft("sft")));
  }
  static void TearDownTestSuite() { delete folder_; }

  static std::string path(const std::string& name) { return (*folder_ / name).string(); }
  static ProcessResult run(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), THINKVG_PROGRAM);
    return test::run_process(arguments);
  }
  static std::vector<std::string> sft(const std::string& out) {
    return {"sft",
            "--model",
            path("warmup"),
            "--data",
            path("phantom/data/train.parquet"),
            "--images",
            path("phantom/files"),
            "--out",
            path(out),
            "--run.steps",
            "30",
            "--batch_size",
            "8",
            "--freeze_vision",
            "--freeze_projector",
            "--optimizer.lr",
            "3e-3"};
  }
  // The name of the last checkpoint of a run.
  static std::string last_checkpoint(const std::filesystem::path& run) {
    std::string last;
    std::int64_t highest = -1;
    for (const auto& entry : std::filesystem::directory_iterator(run / "checkpoints")) {
      const std::string name = entry.path().filename().string();
      const std::int64_t step = std::stoll(name.substr(name.find('-') + 1));
      if (step > highest) {
        highest = step;
        last = name;
      }
    }
    return last;
  }
  static std::vector<std::string> losses_of(const std::string& file) {
    std::vector<std::string> losses;
    std::ifstream stream(file);
    for (std::string line; std::getline(stream, line);) {
      const Json json = Json::parse(line);
      losses.push_back(Json{json["step"], json["loss"]}.dump());
    }
    return losses;
  }
  static void expect_done(const ProcessResult& result) { ASSERT_EQ(result.exit_code, 0) << result.err; }
  static void expect_failure(const ProcessResult& result, int exit_code, const std::vector<std::string>& words) {
    EXPECT_EQ(result.exit_code, exit_code) << result.err;
    for (const std::string& word : words) EXPECT_THAT(result.err, HasSubstr(word));
    EXPECT_EQ(result.out, "");
  }

  static test::TemporaryFolder* folder_;
};
test::TemporaryFolder* PipelineEndToEnd::folder_ = nullptr;

TEST_F(PipelineEndToEnd, ReinforcesEvaluatesAndReports) {
  expect_done(run({"grpo", "--model", path("sft"), "--data", path("phantom/data/train.parquet"), "--images",
                   path("phantom/files"), "--out", path("grpo"), "--run.steps", "2", "--prompts_per_step", "3",
                   "--group_size", "4", "--freeze_vision", "--freeze_projector", "--sampling.max_new_tokens", "40"}));
  std::ifstream metrics(path("grpo/metrics.jsonl"));
  std::string line;
  ASSERT_TRUE(std::getline(metrics, line));
  const Json step = Json::parse(line);
  for (const char* name : {"reward",
                           "reward_std",
                           "rewards/answer/mean",
                           "rewards/grounding/std",
                           "frac_reward_zero_std",
                           "advantage_abs_mean",
                           "kl",
                           "entropy",
                           "clip_ratio/low",
                           "clip_ratio/high",
                           "completions/mean_length",
                           "completions/min_length",
                           "completions/max_length",
                           "completions/clipped_ratio",
                           "rollout_gap/mean",
                           "rollout_gap/max",
                           "grad_norm",
                           "lr",
                           "step_time",
                           "step_time/rollout",
                           "num_tokens",
                           "tokens_per_second",
                           "peak_memory"})
    EXPECT_TRUE(step.contains(name)) << name;
  EXPECT_LT(step["rollout_gap/max"].get<double>(), 1e-3);
  EXPECT_NEAR(step["kl"].get<double>(), 0, 1e-6);

  // The log holds all that the rewards need: computed again they are the same.
  const ProcessResult again =
      run({"score", "--rollouts", path("grpo/samples/completions.jsonl"), "--json", "--out", path("again")});
  expect_done(again);
  EXPECT_GT(Json::parse(again.out)["num_completions"].get<int>(), 8);
  std::ifstream logged(path("grpo/samples/completions.jsonl")), computed(path("again/rollouts.jsonl"));
  for (std::string then, now; std::getline(logged, then);) {
    ASSERT_TRUE(std::getline(computed, now));
    EXPECT_EQ(Json::parse(now)["rewards"], Json::parse(then)["rewards"]);
    EXPECT_EQ(Json::parse(now)["reward"], Json::parse(then)["reward"]);
  }

  const ProcessResult eval =
      run({"eval", "--model", path("grpo"), "--data", path("phantom/data/test.parquet"), "--images",
           path("phantom/files"), "--out", path("eval"), "--json", "--sampling.max_new_tokens", "60"});
  expect_done(eval);
  const Json scores = Json::parse(eval.out);
  EXPECT_EQ(scores["num_questions"]["overall"], 32);
  EXPECT_EQ(scores["provenance"]["subset"], "all 32 questions") << "what is printed is what metrics.json holds";
  EXPECT_EQ(scores["provenance"]["data_sha256"].get<std::string>().size(), 64u);

  // The same responses scored as a predictions file, in the reference's frame, give the same numbers.
  const ProcessResult score = run({"score", "--predictions", path("eval/predictions.jsonl"), "--data",
                                   path("phantom/data/test.parquet"), "--json"});
  expect_done(score);
  const Json rescored = Json::parse(score.out);
  EXPECT_EQ(rescored["a_score"]["overall"], scores["a_score"]["overall"]);
  EXPECT_EQ(rescored["parse_rate"]["overall"], scores["parse_rate"]["overall"]);

  expect_done(run({"report", path("sft"), path("grpo"), path("eval"), "--out", path("report.html")}));
  const std::string html = read_file(path("report.html"));
  EXPECT_THAT(html, HasSubstr("<svg"));
  EXPECT_THAT(html, HasSubstr("data:image/jpeg;base64"));
  EXPECT_THAT(html, testing::Not(HasSubstr("http://")));
  // Two steps: watched before the first and behind the last.
  EXPECT_THAT(html, HasSubstr("The same questions over time"));
  EXPECT_THAT(html, HasSubstr("<h4>step 2</h4>"));
}

TEST_F(PipelineEndToEnd, AModelOfOnesOwnIsTheJudge) {
  const auto eval = [](const std::string& out) {
    return run({"eval",
                "--model",
                path("sft"),
                "--data",
                path("phantom/data/test.parquet"),
                "--images",
                path("phantom/files"),
                "--out",
                path(out),
                "--limit",
                "4",
                "--sampling.max_new_tokens",
                "8",
                "--judge.url",
                "local",
                "--judge.model",
                path("init"),
                "--judge.prompt",
                THINKVG_SOURCE_DIR "/configs/judge/ar_score.yaml",
                "--judge.max_tokens",
                "4",
                "--judge.cache",
                path("judge.cache")});
  };
  const ProcessResult first = eval("judged");
  expect_done(first);
  EXPECT_THAT(first.err, HasSubstr(": 4 of 4 answers to grade, 8 requests of about "));
  // A new model's replies hold no scores: that is said, and the other figures stand.
  EXPECT_THAT(first.err, HasSubstr("4 of 4 answers have no grade"));
  EXPECT_EQ(read_json_file(path("judged/metrics.json"))["num_judged"], 0);
  const ProcessResult again = eval("judged-again");
  expect_done(again);
  EXPECT_THAT(again.err, HasSubstr(": 4 of 4 answers to grade, 0 requests"));
}

// Killed again and again, at moments that differ from run to run of this test, and resumed: the same weights and logs.
TEST_F(PipelineEndToEnd, AKilledTrainingGivesTheSameBits) {
  std::mt19937 moments{std::random_device{}()};
  const auto sft = [](const std::string& out) {
    std::vector<std::string> arguments = PipelineEndToEnd::sft(out);
    arguments.insert(arguments.end(), {"--run.save_every", "2", "--run.async_save", "true", "--lora.rank", "2",
                                       "--lora.dropout", "0.1", "--run.num_threads", "1"});
    return arguments;
  };
  const auto grpo = [](const std::string& out) {
    return std::vector<std::string>{"grpo",
                                    "--model",
                                    path("sft"),
                                    "--data",
                                    path("phantom/data/train.parquet"),
                                    "--images",
                                    path("phantom/files"),
                                    "--out",
                                    path(out),
                                    "--run.steps",
                                    "8",
                                    "--prompts_per_step",
                                    "2",
                                    "--group_size",
                                    "4",
                                    "--freeze_vision",
                                    "--freeze_projector",
                                    "--sampling.max_new_tokens",
                                    "24",
                                    "--run.save_every",
                                    "1",
                                    "--rewards",
                                    "repetition=1",
                                    "--reward.repetition_unit",
                                    "tokens",
                                    "--reward.repetition_ngram",
                                    "1",
                                    "--optimizer.lr",
                                    "1e-3",
                                    "--run.num_threads",
                                    "1"};
  };
  const auto check = [&](const std::string& name, const auto& arguments_of, const std::string& weights) {
    SCOPED_TRACE(name);
    expect_done(run(arguments_of(name + "-whole")));
    std::vector<std::string> arguments = arguments_of(name + "-killed");
    arguments.insert(arguments.end(), {"--resume", "true"});
    std::string command = test::shell_quoted(THINKVG_PROGRAM);
    for (const std::string& argument : arguments) command += " " + test::shell_quoted(argument);
    std::vector<int> waits;
    for (int round = 0; round < 4; ++round) {
      waits.push_back(std::uniform_int_distribution<int>(300, 2500)(moments));
      test::run_shell(command + " & pid=$!\nsleep " + std::to_string(waits.back() / 1000.0) +
                      "\nkill -KILL $pid 2>/dev/null\nwait $pid");
    }
    SCOPED_TRACE("killed after " + Json(waits).dump() + " ms");
    expect_done(run(arguments));
    const auto last = last_checkpoint(path(name + "-whole"));
    EXPECT_EQ(sha256_file(path(name + "-killed/checkpoints/" + last + "/" + weights)),
              sha256_file(path(name + "-whole/checkpoints/" + last + "/" + weights)));
    EXPECT_EQ(losses_of(path(name + "-killed/metrics.jsonl")), losses_of(path(name + "-whole/metrics.jsonl")));
  };
  check("kill-sft", sft, "adapter_model.safetensors");
  check("kill-grpo", grpo, "model.safetensors");
}

TEST_F(PipelineEndToEnd, AKilledEvaluationGoesOnWhereItStopped) {
  const auto eval = [](const std::string& out) {
    return std::vector<std::string>{"eval",
                                    "--model",
                                    path("sft"),
                                    "--data",
                                    path("phantom/data/test.parquet"),
                                    "--images",
                                    path("phantom/files"),
                                    "--out",
                                    path(out),
                                    "--sampling.max_new_tokens",
                                    "24",
                                    "--sampling.temperature",
                                    "1",
                                    "--batch_questions",
                                    "1"};
  };
  expect_done(run(eval("eval-whole")));
  std::string command = test::shell_quoted(THINKVG_PROGRAM);
  for (const std::string& argument : eval("eval-killed")) command += " " + test::shell_quoted(argument);
  const std::string partial = path("eval-killed/answers.partial.jsonl");
  const ProcessResult killed = test::run_shell(
      command + " & pid=$!\nfor i in $(seq 3000); do\n  lines=$(wc -l <" + test::shell_quoted(partial) +
      " 2>/dev/null || echo 0)\n  [ \"$lines\" -gt 4 ] && break\n  sleep 0.01\ndone\nkill -KILL $pid\nwait $pid");
  EXPECT_EQ(killed.exit_code, 137) << killed.err;
  ASSERT_TRUE(std::filesystem::exists(partial));
  EXPECT_FALSE(std::filesystem::exists(path("eval-killed/metrics.json")));
  std::ofstream(partial, std::ios::app) << R"({"id": "cut off", "respo)";

  const ProcessResult resumed = run(eval("eval-killed"));
  expect_done(resumed);
  EXPECT_THAT(resumed.err, HasSubstr("answers are there already"));
  EXPECT_FALSE(std::filesystem::exists(partial));
  EXPECT_EQ(read_file(path("eval-killed/predictions.jsonl")), read_file(path("eval-whole/predictions.jsonl")));
  Json whole = read_json_file(path("eval-whole/metrics.json")),
       after = read_json_file(path("eval-killed/metrics.json"));
  for (Json* document : {&whole, &after}) document->erase("generation_seconds");
  EXPECT_EQ(after, whole);
  EXPECT_TRUE(whole["baselines"].contains("random_boxes"));
  EXPECT_EQ(whole["provenance"]["subset"], "all 32 questions");
  EXPECT_EQ(whole["provenance"]["model_sha256"].get<std::string>().size(), 64u);

  // Answers are kept before their batch ends, and another use of the machine takes them, too.
  std::vector<std::string> in_one = eval("eval-batch");
  in_one.back() = "1000";
  command = test::shell_quoted(THINKVG_PROGRAM);
  in_one.insert(in_one.end(), {"--engine.max_rows", "1"});
  for (const std::string& argument : in_one) command += " " + test::shell_quoted(argument);
  const std::string begun = path("eval-batch/answers.partial.jsonl");
  test::run_shell(
      command + " & pid=$!\nfor i in $(seq 3000); do\n  lines=$(wc -l <" + test::shell_quoted(begun) +
      " 2>/dev/null || echo 0)\n  [ \"$lines\" -gt 3 ] && break\n  sleep 0.01\ndone\nkill -KILL $pid\nwait $pid");
  ASSERT_TRUE(std::filesystem::exists(begun));
  const std::string kept = read_file(begun);
  const auto num_kept = std::count(kept.begin(), kept.end(), '\n') - 1;
  EXPECT_GT(num_kept, 2);
  EXPECT_LT(num_kept, 32);
  const ProcessResult taken = run(eval("eval-batch"));
  expect_done(taken);
  EXPECT_THAT(taken.err, HasSubstr(std::to_string(num_kept) + " of 32 answers are there already"));
  const auto texts_of = [](const std::string& file) {
    std::vector<std::string> texts;
    std::istringstream lines(read_file(path(file)));
    for (std::string line; std::getline(lines, line);)
      texts.push_back(Json::parse(line)["response"].get<std::string>());
    return texts;
  };
  EXPECT_EQ(texts_of("eval-batch/predictions.jsonl"), texts_of("eval-whole/predictions.jsonl"));

  // Answers of other settings are not taken.
  std::vector<std::string> other = eval("eval-other");
  other.insert(other.end(), {"--shuffle_pictures", "true", "--dtype", "bfloat16"});
  std::filesystem::create_directories(path("eval-other"));
  write_file_atomically(path("eval-other/answers.partial.jsonl"), "{\"key\":\"of another\"}\n");
  expect_done(run(other));
  EXPECT_NE(read_file(path("eval-other/predictions.jsonl")), read_file(path("eval-whole/predictions.jsonl")));
  EXPECT_EQ(read_json_file(path("eval-other/metrics.json"))["shuffled_pictures"], true);
  EXPECT_EQ(read_json_file(path("eval-other/metrics.json"))["dtype"], "bfloat16");
  EXPECT_FALSE(whole.contains("dtype"));
  const auto first_line = [](const std::string& file) {
    const std::string text = read_file(path(file));
    return Json::parse(text.substr(0, text.find('\n')));
  };
  const Json shuffled = first_line("eval-other/predictions.jsonl"), own = first_line("eval-whole/predictions.jsonl");
  EXPECT_EQ(shuffled["reference"], own["reference"]) << "only the picture that is shown is another one";
  EXPECT_EQ(shuffled["image"], own["image"]);
  EXPECT_NE(shuffled["image_file"], own["image_file"]);
}

TEST_F(PipelineEndToEnd, AnswersAQuestionAboutAPicture) {
  std::string picture;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(path("phantom/files")))
    if (entry.path().extension() == ".jpg") picture = entry.path().string();
  const ProcessResult json =
      run({"generate", "--model", path("sft"), "--image", picture, "--question", "Where is the nodule?", "--json",
           "--max_new_tokens", "30", "--overlay", path("o.png")});
  expect_done(json);
  EXPECT_NE(json.err.find(" image tokens"), std::string::npos) << json.err;
  const Json document = Json::parse(json.out);
  for (const char* name : {"prompt_ids", "ids", "text", "logprobs", "answer", "boxes"})
    EXPECT_TRUE(document.contains(name)) << name;
  EXPECT_EQ(document["ids"].size(), document["logprobs"].size());
  EXPECT_TRUE(std::filesystem::exists(path("o.png")));
  const ProcessResult again = run({"generate", "--model", path("sft"), "--image", picture, "--question",
                                   "Where is the nodule?", "--json", "--max_new_tokens", "30"});
  EXPECT_EQ(Json::parse(again.out)["ids"], document["ids"]);
  // Rounded weights: nearly the same probability, not the same.
  for (const char* dtype : {"bfloat16", "float16"}) {
    const ProcessResult rounded = run({"generate", "--model", path("sft"), "--image", picture, "--question",
                                       "Where is the nodule?", "--json", "--max_new_tokens", "1", "--dtype", dtype});
    expect_done(rounded);
    const Json got = Json::parse(rounded.out);
    const double before = document["logprobs"][0].get<double>(), after = got["logprobs"][0].get<double>();
    EXPECT_NE(after, before) << dtype;
    EXPECT_NEAR(after, before, 0.1) << dtype;
  }
  expect_failure(run({"generate", "--model", path("sft"), "--image", picture, "--question", "?", "--dtype", "int8"}), 2,
                 {"dtype must be float32, bfloat16 or float16, but is 'int8'"});
  expect_failure(run({"serve", "--model", path("sft"), "--dtype", "half"}), 2, {"dtype must be", "'half'"});
  expect_failure(run({"serve", "--model", path("sft"), "--device", "gpu"}), 2, {"device must be", "'gpu'"});
  // The tests hide the GPUs of the machine.
  expect_failure(run({"bench", "--model", path("sft"), "--device", "cuda"}), 1, {"CUDA cannot be used"});
}

TEST_F(PipelineEndToEnd, AnswersADataSetAndGoesOnWhereItStopped) {
  const std::vector<std::string> ask = {"generate",
                                        "--model",
                                        path("sft"),
                                        "--data",
                                        path("phantom/data/test.parquet"),
                                        "--images",
                                        path("phantom/files"),
                                        "--data.limit",
                                        "6",
                                        "--max_new_tokens",
                                        "20",
                                        "--out",
                                        path("answers.jsonl"),
                                        "--overlay",
                                        path("overlays")};
  expect_done(run(ask));
  const std::string whole = read_file(path("answers.jsonl"));
  EXPECT_EQ(std::count(whole.begin(), whole.end(), '\n'), 6);
  const Json line = Json::parse(whole.substr(0, whole.find('\n')));
  for (const char* name : {"id", "question", "response", "frame", "answer", "boxes", "boxes_frame", "sentences"})
    EXPECT_TRUE(line.contains(name)) << name;
  EXPECT_FALSE(std::filesystem::is_empty(path("overlays")));
  expect_failure(run(ask), 1, {"answers.jsonl", "--resume"});
  // Killed in the middle of a line: what was whole is kept, the rest comes again, the same.
  std::ofstream(path("answers.jsonl")) << whole.substr(0, whole.size() * 2 / 3);
  std::vector<std::string> again = ask;
  again.push_back("--resume");
  expect_done(run(again));
  EXPECT_EQ(read_file(path("answers.jsonl")), whole);
  expect_done(run({"score", "--predictions", path("answers.jsonl"), "--data", path("phantom/data/test.parquet"),
                   "--data.limit", "6", "--json"}));
}

TEST_F(PipelineEndToEnd, ServesUntilItIsToldToStop) {
  const std::string script = std::string(THINKVG_PROGRAM) + " serve --model " + path("sft") + " --port 0 2>" +
                             path("serve.log") + R"( & pid=$!
for i in $(seq 600); do
  port=$(sed -n 's|.*http://127.0.0.1:\([0-9]*\).*|\1|p' )" +
                             path("serve.log") + R"()
  [ -n "$port" ] && break
  sleep 0.1
done
exec 3<>/dev/tcp/127.0.0.1/$port
body='{"messages":[{"role":"user","content":"Where?"}],"max_tokens":4}'
printf 'POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s' ${#body} "$body" >&3
cat <&3
kill -TERM $pid
wait $pid
echo "exit $?")";
  const ProcessResult result = test::run_process({"bash", "-c", script});
  EXPECT_THAT(result.out, HasSubstr("200 OK")) << read_file(path("serve.log"));
  EXPECT_THAT(result.out, HasSubstr("\"finish_reason\""));
  EXPECT_THAT(result.out, HasSubstr("exit 0\n")) << read_file(path("serve.log"));
}

TEST_F(PipelineEndToEnd, TrainingTwiceGivesTheSameWeights) {
  expect_done(run(sft("sft-again")));
  EXPECT_EQ(read_file(path("sft/checkpoints/step-30/model.safetensors")),
            read_file(path("sft-again/checkpoints/step-30/model.safetensors")));
}

TEST_F(PipelineEndToEnd, AMissingPictureNamesTheRow) {
  std::filesystem::create_directories(path("no-pictures"));
  std::vector<std::string> arguments = sft("sft-missing");
  arguments[6] = path("no-pictures");
  expect_failure(run(arguments), 1, {"picture", "no-pictures"});
  EXPECT_FALSE(std::filesystem::exists(path("sft-missing/checkpoints/step-30")));
}

TEST_F(PipelineEndToEnd, AnUnreadableParquetNamesItself) {
  std::ofstream(path("broken.parquet")) << "PAR1 this is no parquet file";
  std::vector<std::string> arguments = sft("sft-broken");
  arguments[4] = path("broken.parquet");
  expect_failure(run(arguments), 1, {"broken.parquet"});
  arguments[4] = path("absent.parquet");
  expect_failure(run(arguments), 1, {"absent.parquet"});
}

TEST_F(PipelineEndToEnd, ACheckpointThatDoesNotFitItsConfigIsRefused) {
  std::filesystem::copy(path("init"), path("misfit"), std::filesystem::copy_options::recursive);
  Json config = read_json_file(path("misfit/config.json"));
  config["text_config"]["intermediate_size"] = 64;
  std::ofstream(path("misfit/config.json")) << config.dump();
  std::vector<std::string> arguments = sft("sft-misfit");
  arguments[2] = path("misfit");
  expect_failure(run(arguments), 1, {"mlp", "64", "48"});
}

TEST_F(PipelineEndToEnd, ATruncatedCheckpointIsRefused) {
  std::filesystem::copy(path("init"), path("truncated"), std::filesystem::copy_options::recursive);
  std::filesystem::resize_file(path("truncated/model.safetensors"), 5000);
  std::vector<std::string> arguments = sft("sft-truncated");
  arguments[2] = path("truncated");
  expect_failure(run(arguments), 1, {"model.safetensors"});
}

TEST_F(PipelineEndToEnd, AFullDiskLeavesNoHalfCheckpoint) {
  // A limit on the size of files stands in for a full disk: the write fails in the same place.
  std::string line = "ulimit -f 60; trap '' XFSZ; " + test::shell_quoted(THINKVG_PROGRAM);
  for (const std::string& argument : sft("sft-full")) line += " " + test::shell_quoted(argument);
  const ProcessResult result = test::run_shell(line);
  expect_failure(result, 1, {"written", "model.safetensors"});
  EXPECT_TRUE(std::filesystem::is_empty(path("sft-full/checkpoints")));
}

TEST_F(PipelineEndToEnd, BadRowsAreNamedBeforeTrainingStarts) {
  std::ofstream(path("bad.jsonl")) << R"({"question": "Is it?", "answer": "yes", "image_path": "", "q_id": 1})"
                                   << "\n"
                                   << "not json\n";
  std::vector<std::string> arguments = sft("sft-bad");
  arguments[4] = path("bad.jsonl");
  expect_failure(run(arguments), 1, {"bad.jsonl", "row 1"});
}

TEST_F(PipelineEndToEnd, WrongSettingsAreWrongUse) {
  std::vector<std::string> arguments = sft("sft-typo");
  arguments.insert(arguments.end(), {"--optimizer.lrr", "1"});
  expect_failure(run(arguments), 2, {"optimizer.lrr", "did you mean --optimizer.lr"});
  expect_failure(run({"sft", "--data", "x"}), 2, {"--model"});
  expect_failure(
      run({"grpo", "--rewards", "ansver=1", "--model", path("sft"), "--data", path("phantom/data/train.parquet"),
           "--images", path("phantom/files"), "--out", path("x"), "--run.steps", "1"}),
      2, {"ansver"});
}

}  // namespace
}  // namespace thinkvg
