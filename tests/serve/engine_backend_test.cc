#include "thinkvg/serve/engine_backend.h"

#include <gmock/gmock.h>
#include <httplib.h>

#include <atomic>
#include <cstdlib>
#include <thread>

#include "tests/serve/http_client.h"
#include "tests/support/oracle.h"
#include "tests/support/tiny_run.h"
#include "thinkvg/core/random.h"
#include "thinkvg/serve/server.h"

namespace thinkvg::serve {
namespace {

using testing::HasSubstr;

// A server with a real, tiny model. Its answers mean nothing; what matters is that they are the engine's.
class ServedModel : public testing::Test {
 protected:
  void SetUp() override {
    bundle_ = models::load_bundle(test::tiny_run().model);
    generation::EngineOptions engine;
    engine.max_rows = 16;
    engine.prefix_cache = false;  // so that every page comes back
    backend_ = std::make_shared<EngineBackend>(bundle_, engine, generation::PromptBuilder::Options{});
    ServeOptions options;
    options.port = 0;
    options.api_key_env = "";
    server_ = std::make_unique<Server>(options, "tiny", backend_);
    server_->start();
    for (const auto& entry : std::filesystem::recursive_directory_iterator(test::tiny_run().images))
      if (entry.is_regular_file() && entry.path().extension() == ".jpg") picture_file_ = entry.path();
    picture_ = read_file(picture_file_);
  }

  Json body(const Json& more = Json::object(), const std::string& question = "Where is the nodule?") const {
    Json content = Json::array({test::image_part(picture_)});
    content.push_back({{"type", "text"}, {"text", question}});
    Json message = {{"role", "user"}};
    message["content"] = content;
    Json body = {{"model", "tiny"}};
    body["messages"] = Json::array();
    body["messages"].push_back(message);
    body.update(more);
    return body;
  }
  httplib::Result ask(const Json& body) const {
    httplib::Client client("127.0.0.1", server_->port());
    client.set_read_timeout(120);
    return client.Post("/v1/chat/completions", body.dump(), "application/json");
  }
  std::string content_of(const Json& body) const {
    const auto result = ask(body);
    return result->status == 200 ? Json::parse(result->body)["choices"][0]["message"]["content"].get<std::string>()
                                 : "status " + std::to_string(result->status) + ": " + result->body;
  }
  bool all_returned() const {
    for (int i = 0; i < 1000; ++i) {
      const BackendLoad load = backend_->load();
      if (load.pages_used == 0 && load.running_completions == 0 && load.waiting_requests == 0) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return false;
  }

  models::ModelBundle bundle_;
  std::shared_ptr<EngineBackend> backend_;
  std::unique_ptr<Server> server_;
  std::filesystem::path picture_file_;
  std::string picture_;
};

TEST_F(ServedModel, AnswersAsTheRolloutEngineDoes) {
  generation::PromptBuilder builder(bundle_, {});
  const auto built = builder.build(generation::question_messages({}, "Where is the nodule?", 1),
                                   {builder.encode(picture_, "picture")});
  generation::RolloutEngine engine(*bundle_.model, {1}, bundle_.tokenizer.get());
  const auto expected = engine.generate({built.request(1, {hash_key("serve"), 5})}, {.max_new_tokens = 24}).at(0).at(0);
  const auto result = ask(body({{"seed", 5}, {"max_tokens", 24}, {"logprobs", true}}));
  ASSERT_EQ(result->status, 200) << result->body;
  const Json reply = Json::parse(result->body);
  const Json& choice = reply["choices"][0];
  EXPECT_EQ(choice["message"]["content"], expected.text);
  EXPECT_EQ(reply["usage"]["prompt_tokens"], built.prompt.ids.size());
  EXPECT_EQ(reply["usage"]["completion_tokens"], expected.ids.size());
  const Json& tokens = choice["logprobs"]["content"];
  ASSERT_EQ(tokens.size(), expected.ids.size());
  for (std::size_t i = 0; i < tokens.size(); ++i)
    EXPECT_NEAR(tokens[i]["logprob"].get<double>(), expected.logprobs[i], 1e-4);
  EXPECT_EQ(choice["thinkvg"]["pictures"][0]["width"], built.original().width);
  EXPECT_EQ(choice["thinkvg"]["pictures"][0]["frame"], built.frame().name());
}

TEST_F(ServedModel, TheSameSeedGivesTheSameAnswerWhateverElseRuns) {
  const Json asked = body({{"seed", 9}, {"max_tokens", 20}});
  const std::string alone = content_of(asked);
  std::vector<std::thread> others;
  for (int i = 0; i < 4; ++i)
    others.emplace_back([&, i] { content_of(body({{"seed", i}, {"max_tokens", 30}, {"n", 2}})); });
  EXPECT_EQ(content_of(asked), alone);
  for (std::thread& other : others) other.join();
  Json streaming = asked;
  streaming["stream"] = true;
  std::string streamed;
  for (const Json& event : test::stream_events(ask(streaming)->body))
    if (event.is_object()) streamed += event["choices"][0]["delta"].value("content", "");
  EXPECT_EQ(streamed, alone);
  Json other_seed = asked;
  other_seed["seed"] = 10;
  EXPECT_NE(content_of(other_seed), alone);
}

TEST_F(ServedModel, TakesTextAloneAndSeveralPictures) {
  const auto text = ask(test::chat_body("Hello?", {{"max_tokens", 4}}));
  ASSERT_EQ(text->status, 200) << text->body;
  EXPECT_TRUE(Json::parse(text->body)["choices"][0]["thinkvg"]["pictures"].empty());
  Json two = body({{"max_tokens", 4}});
  two["messages"][0]["content"].insert(two["messages"][0]["content"].begin(), test::image_part(test::grey_png(90, 60)));
  const auto result = ask(two);
  ASSERT_EQ(result->status, 200) << result->body;
  EXPECT_EQ(Json::parse(result->body)["choices"][0]["thinkvg"]["pictures"].size(), 2u);
}

TEST_F(ServedModel, RefusesWhatCannotRun) {
  const auto too_long = ask(test::chat_body(std::string(400000, 'x')));
  EXPECT_EQ(too_long->status, 400);
  EXPECT_THAT(too_long->body, HasSubstr("context_length_exceeded"));
  // A header that is whole, pixels that are not.
  const auto damaged = ask([&] {
    Json asked = body();
    asked["messages"][0]["content"][0] = test::image_part(picture_.substr(0, picture_.size() / 2));
    return asked;
  }());
  EXPECT_EQ(damaged->status, 400);
  EXPECT_THAT(damaged->body, HasSubstr("invalid_image"));
  EXPECT_TRUE(all_returned());
}

TEST_F(ServedModel, StopTextsAreNotPartOfTheAnswer) {
  const Json asked = body({{"seed", 3}, {"max_tokens", 40}});
  const std::string whole = content_of(asked);
  ASSERT_GT(whole.size(), 8u);
  // A stop text is whole characters: two of one byte each, behind the first.
  const auto one_byte = [](char c) { return static_cast<unsigned char>(c) < 0x80; };
  std::size_t place = 2;
  while (place + 2 < whole.size() && !(one_byte(whole[place]) && one_byte(whole[place + 1]))) ++place;
  ASSERT_LT(place + 2, whole.size()) << whole;
  const std::string stop = whole.substr(place, 2);
  Json stopped = asked;
  stopped["stop"] = stop;
  EXPECT_EQ(content_of(stopped), whole.substr(0, whole.find(stop)));
}

// 64 clients; some read slowly, some leave in the middle, some break their uploads off. Everybody who stays gets the
// answer that the same seed gives alone, and every page comes back.
TEST_F(ServedModel, HoldsUnderLoad) {
  const Json asked = body({{"seed", 1}, {"max_tokens", 16}});
  const std::string expected = content_of(asked);
  Json streaming = asked;
  streaming["stream"] = true;
  std::atomic<int> right{0}, wrong{0};
  std::vector<std::thread> threads;
  for (int client = 0; client < 64; ++client) {
    threads.emplace_back([&, client] {
      const std::string request = test::http_post("/v1/chat/completions", streaming.dump(), "Connection: close\r\n");
      switch (client % 4) {
        case 0:
          ++(content_of(asked) == expected ? right : wrong);
          break;
        case 1: {
          test::RawClient slow(server_->port(), 2048);
          slow.send(request);
          std::string text;
          while (!slow.closed()) {
            text += slow.receive_some(120, 512);
            std::this_thread::sleep_for(std::chrono::milliseconds(2));
          }
          ++(text.find("[DONE]") != std::string::npos && text.find("\"error\"") == std::string::npos ? right : wrong);
          break;
        }
        case 2: {
          test::RawClient gone(server_->port());
          gone.send(request);
          gone.receive(60, "assistant");
          gone.reset();
          break;
        }
        default: {
          test::RawClient broken(server_->port());
          broken.send(request.substr(0, request.size() / 2));
          broken.reset();
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(right, 32);
  EXPECT_EQ(wrong, 0);
  EXPECT_TRUE(all_returned());
  EXPECT_EQ(content_of(asked), expected);
}

class ServedModelEndToEnd : public ServedModel {};

TEST_F(ServedModelEndToEnd, ServesTheOpenAiClient) {
  const test::Oracle oracle = test::find_oracle("openai");
  if (oracle.python.empty()) GTEST_SKIP() << oracle.reason;
  const test::ProcessResult result =
      test::run_process({oracle.python, THINKVG_SOURCE_DIR "/tests/serve/openai_client.py",
                         "http://127.0.0.1:" + std::to_string(server_->port())});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_TRUE(all_returned());
}

}  // namespace
}  // namespace thinkvg::serve
