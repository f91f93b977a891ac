#include "thinkvg/generation/async_engine.h"

#include <atomic>
#include <future>
#include <map>
#include <mutex>
#include <thread>

#include "tests/generation/questions.h"
#include "thinkvg/core/random.h"

namespace thinkvg::generation {
namespace {

// What an engine told of one request.
struct Heard {
  std::mutex mutex;
  std::map<std::int64_t, Completion> finished;
  std::map<std::int64_t, std::vector<std::int64_t>> ids;
  std::map<std::int64_t, std::string> text;
  std::string error;

  RequestEvents events() {
    return {.on_token =
                [this](std::int64_t completion, const DrawnToken& token) {
                  const std::lock_guard lock(mutex);
                  EXPECT_FALSE(finished.contains(completion));
                  ids[completion].push_back(token.id);
                  text[completion] += token.text;
                },
            .on_finish =
                [this](std::int64_t completion, const Completion& result) {
                  const std::lock_guard lock(mutex);
                  EXPECT_TRUE(finished.emplace(completion, result).second);
                },
            .on_error =
                [this](const std::exception_ptr& failure) {
                  const std::lock_guard lock(mutex);
                  try {
                    std::rethrow_exception(failure);
                  } catch (const std::exception& what) {
                    error = what.what();
                  }
                }};
  }
};

class AsyncEngineTest : public QuestionsTest {};

TEST_F(AsyncEngineTest, AnswersAsTheRolloutEngineDoes) {
  const SamplingOptions sampling{.max_new_tokens = 20};
  RolloutEngine rollout(*bundle_.model, {}, bundle_.tokenizer.get());
  std::vector<GenerationRequest> all = requests(3);
  all.push_back(text_request("Is the heart large?", 1));
  all.push_back(two_pictures(0, 3));
  const auto expected = rollout.generate(all, sampling);
  AsyncEngine engine(bundle_, {.max_rows = 5});
  std::vector<Heard> heard(all.size());
  for (std::size_t i = 0; i < all.size(); ++i) engine.submit(all[i], sampling, heard[i].events());
  engine.drain();
  for (std::size_t i = 0; i < all.size(); ++i) {
    ASSERT_EQ(heard[i].finished.size(), expected[i].size()) << i << heard[i].error;
    for (std::size_t g = 0; g < expected[i].size(); ++g) {
      const Completion& completion = heard[i].finished[static_cast<std::int64_t>(g)];
      EXPECT_EQ(completion.ids, expected[i][g].ids);
      EXPECT_EQ(completion.text, expected[i][g].text);
      const auto decoder = bundle_.tokenizer->decode_stream();
      std::string text;
      for (const std::int64_t id : completion.ids) text += decoder->add(id);
      EXPECT_EQ(completion.text, text + decoder->finish());
      EXPECT_EQ(heard[i].ids[static_cast<std::int64_t>(g)], completion.ids);
      EXPECT_TRUE(completion.text.starts_with(heard[i].text[static_cast<std::int64_t>(g)]));
    }
  }
  EXPECT_EQ(engine.load().pages_used, 0);
}

TEST_F(AsyncEngineTest, QuantizesAsTheRolloutEngineDoes) {
  const SamplingOptions sampling{.max_new_tokens = 20};
  const auto plain = RolloutEngine(*bundle_.model, {}).generate({request(0, 1)}, sampling);
  const auto expected = RolloutEngine(*bundle_.model, {.quantization = "int8"}).generate({request(0, 1)}, sampling);
  EXPECT_NE(plain[0][0].logprobs, expected[0][0].logprobs);
  AsyncEngine engine(bundle_, {.quantization = "int8"});
  Heard heard;
  engine.submit(request(0, 1), sampling, heard.events());
  engine.drain();
  ASSERT_EQ(heard.finished.size(), 1) << heard.error;
  EXPECT_EQ(heard.finished[0].ids, expected[0][0].ids);
  EXPECT_EQ(heard.finished[0].logprobs, expected[0][0].logprobs);
}

TEST_F(AsyncEngineTest, GivesBackEveryPageUnderRandomCancelling) {
  RandomStream random({3});
  AsyncEngine engine(bundle_, {.max_rows = 6, .cache_mb = 1});
  std::vector<std::unique_ptr<Heard>> heard;
  std::vector<std::int64_t> wanted;
  std::vector<AsyncEngine::Ticket> tickets;
  for (int round = 0; round < 60; ++round) {
    const std::int64_t num_completions = random.between(1, 5);
    GenerationRequest one = round % 5 == 0   ? two_pictures(random.below(6), random.below(6))
                            : round % 3 == 0 ? text_request("What is seen?", static_cast<std::uint64_t>(round))
                                             : request(random.below(6), 1);
    one.num_completions = num_completions;
    wanted.push_back(num_completions);
    heard.push_back(std::make_unique<Heard>());
    tickets.push_back(engine.submit(std::move(one), {.max_new_tokens = random.between(1, 60)}, heard.back()->events()));
    if (random.chance(0.5)) engine.cancel(tickets[random.below(tickets.size())]);
    if (random.chance(0.3)) std::this_thread::sleep_for(std::chrono::milliseconds(random.between(0, 4)));
  }
  engine.drain();
  EXPECT_EQ(engine.load().pages_used, 0);
  EXPECT_EQ(engine.load().running_completions, 0);
  EXPECT_EQ(engine.load().waiting_requests, 0);
  int num_cancelled = 0;
  for (std::size_t i = 0; i < heard.size(); ++i) {
    EXPECT_EQ(heard[i]->error, "");
    EXPECT_EQ(std::ssize(heard[i]->finished), wanted[i]);
    for (const auto& [index, completion] : heard[i]->finished)
      num_cancelled += completion.finish == FinishReason::cancelled;
  }
  EXPECT_GT(num_cancelled, 0);
}

TEST_F(AsyncEngineTest, TheNextTurnReusesPromptAndAnswer) {
  AsyncEngine engine(bundle_, {});
  Heard first;
  GenerationRequest turn = request(0, 1);
  engine.submit(turn, {.max_new_tokens = 40, .temperature = 0, .min_new_tokens = 40}, first.events());
  engine.drain();
  const std::int64_t computed = engine.load().prompt_tokens;
  const std::vector<std::int64_t>& answer = first.finished.at(0).ids;
  turn.prompt.ids.insert(turn.prompt.ids.end(), answer.begin(), answer.end());
  const auto length = std::ssize(turn.prompt.ids);
  Heard second, again;
  engine.submit(turn, {.max_new_tokens = 8, .temperature = 0}, second.events());
  engine.drain();
  EXPECT_EQ(engine.load().reused_tokens, (length - 1) / 16 * 16);
  EXPECT_EQ(engine.load().prompt_tokens - computed, length - (length - 1) / 16 * 16);

  // Without reuse the same comes out.
  AsyncEngine plain(bundle_, {.prefix_cache = false});
  plain.submit(turn, {.max_new_tokens = 8, .temperature = 0}, again.events());
  plain.drain();
  EXPECT_EQ(plain.load().reused_tokens, 0);
  EXPECT_EQ(second.finished.at(0).ids, again.finished.at(0).ids);

  // Another picture under the same ids is not taken for this one.
  const std::int64_t reused = engine.load().reused_tokens;
  GenerationRequest other = request(0, 1);
  other.image_features[0] = other.image_features[0] * 1.5;
  Heard third;
  engine.submit(other, {.max_new_tokens = 2}, third.events());
  engine.drain();
  const std::int64_t before_picture = other.prompt.image_rows.front() / 16 * 16;
  EXPECT_EQ(engine.load().reused_tokens - reused, before_picture);
}

TEST_F(AsyncEngineTest, RefusesWhatCanNeverRun) {
  AsyncEngine engine(bundle_, {.cache_mb = 1});
  EXPECT_THROW(engine.submit(request(0, 1), {.max_new_tokens = 1000000}, {}), std::invalid_argument);
  EXPECT_THROW(engine.submit(request(0, 0), {}, {}), std::invalid_argument);
  EXPECT_THROW(engine.submit(request(0, 1), {.min_p = 2}, {}), std::invalid_argument);
  GenerationRequest broken = request(0, 1);
  broken.image_features[0] = broken.image_features[0].narrow(0, 0, 1);
  EXPECT_THROW(engine.submit(broken, {}, {}), std::invalid_argument);
  broken = request(0, 1);
  broken.prompt.ids[0] = 1 << 30;
  EXPECT_THROW(engine.submit(broken, {}, {}), std::invalid_argument);
  EXPECT_THROW(AsyncEngine(bundle_, {.max_rows = 0}), std::invalid_argument);
}

TEST_F(AsyncEngineTest, AFailedPassIsToldAndLeavesNothingBehind) {
  AsyncEngine engine(bundle_, {});
  Heard failed, fine;
  GenerationRequest broken = request(0, 2);
  broken.image_features[0] = broken.image_features[0].narrow(1, 0, 4);  // too narrow for the model
  engine.submit(broken, {}, failed.events());
  engine.drain();
  EXPECT_NE(failed.error, "");
  EXPECT_TRUE(failed.finished.empty());
  EXPECT_EQ(engine.load().pages_used, 0);
  engine.submit(request(1, 2), {.max_new_tokens = 3}, fine.events());
  engine.drain();
  EXPECT_EQ(fine.finished.size(), 2u);
}

TEST_F(AsyncEngineTest, DestroyingItCancelsWhatRuns) {
  Heard heard;
  {
    AsyncEngine engine(bundle_, {});
    engine.submit(request(0, 3), {.max_new_tokens = 5000, .min_new_tokens = 5000}, heard.events());
    while (engine.load().new_tokens < 10) std::this_thread::yield();
  }
  EXPECT_EQ(heard.finished.size(), 3u);
  for (const auto& [index, completion] : heard.finished) EXPECT_EQ(completion.finish, FinishReason::cancelled);
}

TEST_F(AsyncEngineTest, ThreadsMaySubmitAndCancelAtTheSameTime) {
  AsyncEngine engine(bundle_, {.max_rows = 8});
  std::atomic<int> num_finished{0};
  std::vector<std::jthread> clients;
  for (std::uint64_t client = 0; client < 4; ++client)
    clients.emplace_back([&, client] {
      for (std::uint64_t i = 0; i < 5; ++i) {
        RequestEvents events;
        events.on_finish = [&](std::int64_t, const Completion&) { ++num_finished; };
        const auto ticket =
            engine.submit(text_request("Where?", 10 * client + i), {.max_new_tokens = 12}, std::move(events));
        if (i % 2 == 1) engine.cancel(ticket);
      }
    });
  clients.clear();
  engine.drain();
  EXPECT_EQ(num_finished, 20);
  EXPECT_EQ(engine.load().pages_used, 0);
}

}  // namespace
}  // namespace thinkvg::generation
