#include "thinkvg/serve/server.h"

#include <gmock/gmock.h>
#include <httplib.h>

#include <optional>
#include <thread>

#include "tests/serve/fake_backend.h"
#include "tests/serve/http_client.h"
#include "tests/support/oracle.h"

namespace thinkvg::serve {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr const char* kAnswer =
    "<think>The heart (region [100, 200, 300, 400]) is large. The aorta is fine.</think><response><answer>A</answer>"
    "<location><ref>heart</ref><box>[100, 200, 300, 400]</box></location></response>";

// A server on a free port, with a backend that answers `answer`.
class Running {
 public:
  explicit Running(const std::string& answer = kAnswer, ServeOptions options = {},
                   std::chrono::microseconds step = std::chrono::microseconds(0))
      : backend(std::make_shared<test::FakeBackend>(answer, step)) {
    options.port = 0;
    options.api_key_env = "";
    server = std::make_unique<Server>(options, "tiny", backend);
    server->start();
  }
  httplib::Client client() const {
    httplib::Client made("127.0.0.1", server->port());
    made.set_read_timeout(20);
    return made;
  }
  httplib::Result ask(const Json& body) const {
    return client().Post("/v1/chat/completions", body.dump(), "application/json");
  }
  std::string metric(const std::string& name) const {
    const std::string text = client().Get("/metrics")->body;
    const std::size_t at = text.find("\n" + name + " ");
    if (at == std::string::npos) return "none";
    const std::size_t begin = at + name.size() + 2;
    return text.substr(begin, text.find('\n', begin) - begin);
  }

  std::shared_ptr<test::FakeBackend> backend;
  std::unique_ptr<Server> server;
};

Json picture_question(const std::string& question, const Json& more = Json::object()) {
  Json body = {{"messages", Json::array({Json::object(
                                {{"role", "user"},
                                 {"content", Json::array({test::image_part(test::grey_png(200, 100)),
                                                          Json::object({{"type", "text"}, {"text", question}})})}})})}};
  body.update(more);
  return body;
}

void expect_error(const httplib::Result& result, int status, const std::string& code) {
  ASSERT_TRUE(result) << httplib::to_string(result.error());
  EXPECT_EQ(result->status, status) << result->body;
  const Json json = Json::parse(result->body, nullptr, false);
  ASSERT_TRUE(json.is_object()) << result->body;
  EXPECT_EQ(json["error"]["code"], code) << result->body;
  EXPECT_TRUE(json["error"]["message"].is_string());
  EXPECT_TRUE(json["error"]["type"].is_string());
}

TEST(Server, AnswersAQuestionWithItsRegions) {
  const Running running;
  const auto result = running.ask(picture_question("Is the heart large?", {{"n", 2}, {"max_tokens", 500}}));
  ASSERT_TRUE(result);
  ASSERT_EQ(result->status, 200) << result->body;
  const Json body = Json::parse(result->body);
  EXPECT_EQ(body["object"], "chat.completion");
  EXPECT_THAT(body["id"].get<std::string>(), testing::StartsWith("chatcmpl-"));
  EXPECT_EQ(body["model"], "tiny");
  EXPECT_EQ(body["usage"]["completion_tokens"], 2 * std::string(kAnswer).size());
  EXPECT_EQ(body["usage"]["total_tokens"].get<int>(),
            body["usage"]["prompt_tokens"].get<int>() + body["usage"]["completion_tokens"].get<int>());
  ASSERT_EQ(body["choices"].size(), 2u);
  for (const Json& choice : body["choices"]) {
    EXPECT_EQ(choice["message"]["role"], "assistant");
    EXPECT_EQ(choice["message"]["content"], kAnswer);
    EXPECT_EQ(choice["finish_reason"], "stop");
    EXPECT_TRUE(choice["logprobs"].is_null());
    const Json& grounded = choice["thinkvg"];
    EXPECT_EQ(grounded["answer"], "A");
    EXPECT_EQ(grounded["complete"], true);
    EXPECT_EQ(grounded["pictures"], Json::parse(R"([{"width":200,"height":100,"frame":"thousand"}])"));
    ASSERT_EQ(grounded["boxes"].size(), 1u);
    EXPECT_EQ(grounded["boxes"][0]["ref"], "heart");
    EXPECT_EQ(grounded["boxes"][0]["box"], Json::parse("[20.0, 20.0, 60.0, 40.0]"));
    EXPECT_EQ(grounded["boxes"][0]["model_box"], Json::parse("[100.0, 200.0, 300.0, 400.0]"));
    ASSERT_EQ(grounded["sentences"].size(), 2u);
    const Json& sentence = grounded["sentences"][0];
    EXPECT_EQ(sentence["regions"][0]["box"], grounded["boxes"][0]["box"]);
    EXPECT_EQ(std::string(kAnswer).substr(sentence["start"],
                                          sentence["end"].get<std::size_t>() - sentence["start"].get<std::size_t>()),
              sentence["text"].get<std::string>());
    EXPECT_TRUE(grounded["sentences"][1]["regions"].empty());
  }
}

TEST(Server, StreamsAnswerAndSentencesAsTheyCome) {
  const Running running(kAnswer, {}, std::chrono::microseconds(200));
  const auto result =
      running.ask(picture_question("x", {{"stream", true}, {"stream_options", {{"include_usage", true}}}}));
  ASSERT_TRUE(result);
  EXPECT_EQ(result->get_header_value("Content-Type"), "text/event-stream");
  const std::vector<Json> events = test::stream_events(result->body);
  ASSERT_GT(events.size(), 10u);
  EXPECT_EQ(events.back(), "[DONE]");
  EXPECT_EQ(events.front()["choices"][0]["delta"]["role"], "assistant");
  EXPECT_EQ(events.front()["choices"][0]["thinkvg"]["pictures"][0]["width"], 200);
  std::string content;
  Json sentences = Json::array();
  std::size_t sentences_before_end = 0;
  const Json* last = nullptr;
  for (std::size_t i = 0; i + 2 < events.size(); ++i) {
    const Json& event = events[i];
    EXPECT_EQ(event["object"], "chat.completion.chunk");
    EXPECT_EQ(event["id"], events.front()["id"]);
    EXPECT_TRUE(event.contains("usage") && event["usage"].is_null());
    const Json& choice = event["choices"][0];
    content += choice["delta"].value("content", "");
    if (choice.contains("thinkvg") && choice["thinkvg"].contains("sentences") && choice["finish_reason"].is_null()) {
      for (const Json& sentence : choice["thinkvg"]["sentences"]) sentences.push_back(sentence);
      if (content.find("</think>") == std::string::npos) ++sentences_before_end;
    }
    last = &choice;
  }
  EXPECT_EQ(content, kAnswer);
  ASSERT_NE(last, nullptr);
  EXPECT_EQ((*last)["finish_reason"], "stop");
  EXPECT_EQ((*last)["thinkvg"]["sentences"], sentences);
  EXPECT_GE(sentences_before_end, 1u);
  const Json& usage = events[events.size() - 2];
  EXPECT_TRUE(usage["choices"].empty());
  EXPECT_EQ(usage["usage"]["completion_tokens"], std::string(kAnswer).size());
}

TEST(Server, GivesLogprobsStreamedOrNot) {
  const Running running("abc");
  const Json body = test::chat_body("x", {{"logprobs", true}, {"top_logprobs", 2}});
  const Json whole = Json::parse(running.ask(body)->body)["choices"][0]["logprobs"]["content"];
  ASSERT_EQ(whole.size(), 3u);
  EXPECT_EQ(whole[1]["token"], "b");
  EXPECT_EQ(whole[1]["bytes"], Json::parse("[98]"));
  EXPECT_EQ(whole[1]["logprob"], -0.5);
  ASSERT_EQ(whole[1]["top_logprobs"].size(), 2u);
  EXPECT_EQ(whole[1]["top_logprobs"][1]["token"], "b");
  Json streaming = body;
  streaming["stream"] = true;
  Json streamed = Json::array();
  for (const Json& event : test::stream_events(running.ask(streaming)->body)) {
    if (!event.is_object() || !event["choices"][0]["logprobs"].is_object()) continue;
    for (const Json& item : event["choices"][0]["logprobs"]["content"]) streamed.push_back(item);
  }
  EXPECT_EQ(streamed, whole);
}

TEST(Server, EndsAtStopTextsAndLengths) {
  const Running running("one two three");
  const Json stopped = Json::parse(running.ask(test::chat_body("x", {{"stop", " three"}}))->body)["choices"][0];
  EXPECT_EQ(stopped["message"]["content"], "one two");
  EXPECT_EQ(stopped["finish_reason"], "stop");
  const Json cut = Json::parse(running.ask(test::chat_body("x", {{"max_tokens", 3}}))->body)["choices"][0];
  EXPECT_EQ(cut["message"]["content"], "one");
  EXPECT_EQ(cut["finish_reason"], "length");
}

TEST(Server, ErrorsHaveTheirStatusAndObject) {
  ServeOptions options;
  options.limits.body_mb = 1;
  options.limits.uploads_mb = 1;
  const Running running(kAnswer, options);
  httplib::Client client = running.client();
  expect_error(running.ask(test::chat_body("x", {{"model", "other"}})), 404, "model_not_found");
  expect_error(running.ask(test::chat_body("refuse this")), 400, "invalid_value");
  expect_error(running.ask(test::chat_body("break here")), 500, "internal_error");
  expect_error(running.ask(test::chat_body("x", {{"n", 99}})), 400, "invalid_value");
  expect_error(client.Post("/v1/chat/completions", "{", "application/json"), 400, "invalid_json");
  expect_error(client.Post("/v1/chat/completions", "x=1", "application/x-www-form-urlencoded"), 415,
               "unsupported_media_type");
  expect_error(client.Post("/v1/chat/completions", std::string((1 << 20) + 1, ' '), "application/json"), 413,
               "request_too_large");
  expect_error(client.Get("/v1/chat/completions"), 405, "method_not_allowed");
  expect_error(client.Get("/v2"), 404, "not_found");
  expect_error(client.Get("/v1/models/other"), 404, "model_not_found");
  EXPECT_EQ(Json::parse(client.Get("/v1/models/tiny")->body)["id"], "tiny");
  EXPECT_EQ(Json::parse(client.Get("/v1/models")->body)["data"][0]["max_model_len"], 4096);
  EXPECT_EQ(client.Get("/health")->status, 200);
  EXPECT_TRUE(running.backend->all_returned());
}

TEST(Server, AnErrorWithinAStreamIsAnEvent) {
  const Running running;
  const std::vector<Json> events = test::stream_events(running.ask(test::chat_body("break", {{"stream", true}}))->body);
  ASSERT_GE(events.size(), 3u);
  EXPECT_EQ(events.back(), "[DONE]");
  EXPECT_THAT(events[events.size() - 2]["error"]["message"].get<std::string>(), HasSubstr("out of memory"));
}

TEST(Server, BodiesWithoutLengthCountToo) {
  ServeOptions options;
  options.limits.body_mb = 1;
  const Running running(kAnswer, options);
  test::RawClient chunked(running.server->port());
  chunked.send(
      "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
      "Transfer-Encoding: chunked\r\n\r\n");
  const std::string chunk = "10000\r\n" + std::string(0x10000, ' ') + "\r\n";
  for (int i = 0; i < 20 && chunked.send(chunk); ++i) {
  }
  EXPECT_THAT(chunked.receive(5), HasSubstr("413"));
  test::RawClient silent(running.server->port());
  silent.send("POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\r\n");
  EXPECT_THAT(silent.receive(5), HasSubstr("411"));
  test::RawClient wrong(running.server->port());
  wrong.send("POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: many\r\n\r\n");
  EXPECT_THAT(wrong.receive(5), HasSubstr("invalid_length"));
}

TEST(Server, SlowRequestsEndInTime) {
  ServeOptions options;
  options.limits.upload_seconds = 0.3;
  options.limits.idle_seconds = 0.3;
  const Running running(kAnswer, options);
  test::RawClient head(running.server->port());
  head.send("POST /v1/chat");
  EXPECT_THAT(head.receive(5), HasSubstr("408"));
  EXPECT_TRUE(head.closed());
  // A body that drips: no single pause is long.
  test::RawClient body(running.server->port());
  body.send(
      "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
      "1000\r\n\r\n");
  std::string reply;
  for (int i = 0; i < 100 && !body.closed(); ++i) {
    body.send(" ");
    reply += body.receive_some(0.03);
  }
  EXPECT_THAT(reply, HasSubstr("408"));
  test::RawClient idle(running.server->port());
  EXPECT_EQ(idle.receive(5), "");
  EXPECT_TRUE(idle.closed());
  test::RawClient huge(running.server->port());
  const std::string header = "X: " + std::string(4000, 'x') + "\r\n";
  huge.send("GET /health HTTP/1.1\r\n");
  for (int i = 0; i < 30 && huge.send(header); ++i) {
  }
  EXPECT_THAT(huge.receive(5), HasSubstr("431"));
}

TEST(Server, ConnectionsServeSeveralRequests) {
  const Running running("hi");
  test::RawClient client(running.server->port());
  const std::string request = test::http_post("/v1/chat/completions", test::chat_body("x").dump());
  for (int i = 0; i < 3; ++i) {
    client.send(request);
    EXPECT_THAT(client.receive(5, "\"total_tokens\":3}}"), HasSubstr("200 OK")) << i;
  }
  // Two at once, and one that asks to close.
  client.send(
      "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /health HTTP/1.1\r\nHost: localhost\r\nConnection: "
      "close\r\n\r\n");
  const std::string both = client.receive(5);
  EXPECT_THAT(both.substr(both.find("ok") + 2), HasSubstr("{\"status\":\"ok\"}"));
  EXPECT_TRUE(client.closed());
}

TEST(Server, AClientThatGoesAwayFreesItsPages) {
  const Running running;
  for (const bool stream : {false, true}) {
    test::RawClient client(running.server->port());
    client.send(test::http_post("/v1/chat/completions", test::chat_body("hold", {{"stream", stream}}).dump()));
    if (stream) EXPECT_THAT(client.receive(5, "assistant"), HasSubstr("text/event-stream"));
    for (int i = 0; i < 500 && running.backend->load().pages_used == 0; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    ASSERT_EQ(running.backend->load().pages_used, 1);
    if (stream)
      client.reset();
    else
      client.close();
    EXPECT_TRUE(running.backend->all_returned()) << stream;
  }
  EXPECT_EQ(running.backend->num_cancelled(), 2);
  EXPECT_EQ(running.metric("thinkvg_completions_total{finish=\"client_gone\"}"), "2");
  EXPECT_EQ(running.metric("thinkvg_requests_in_progress"), "0");
}

TEST(Server, ARequestBeyondTheQueueIsTurnedAway) {
  ServeOptions options;
  options.limits.requests = 1;
  options.limits.request_seconds = 1;
  const Running running(kAnswer, options);
  std::thread holder([&] { expect_error(running.ask(test::chat_body("hold")), 504, "timeout"); });
  while (running.backend->num_submitted() == 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  const auto refused = running.ask(test::chat_body("x"));
  expect_error(refused, 429, "server_busy");
  EXPECT_EQ(refused->get_header_value("Retry-After"), "1");
  holder.join();
  EXPECT_TRUE(running.backend->all_returned());
  EXPECT_EQ(running.ask(test::chat_body("x"))->status, 200);
}

TEST(Server, ConnectionsBeyondTheLimitGetAnAnswer) {
  ServeOptions options;
  options.limits.connections = 2;
  const Running running(kAnswer, options);
  test::RawClient first(running.server->port()), second(running.server->port());
  first.send("GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
  second.send("GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
  EXPECT_THAT(first.receive(5, "ok"), HasSubstr("200"));
  EXPECT_THAT(second.receive(5, "ok"), HasSubstr("200"));
  test::RawClient third(running.server->port());
  EXPECT_THAT(third.receive(5), HasSubstr("503"));
  first.close();
  for (int i = 0; i < 100; ++i) {
    test::RawClient again(running.server->port());
    again.send("GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
    if (again.receive(5, "}").find("200 OK") != std::string::npos) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  ADD_FAILURE() << "the place of a closed connection did not come back";
}

TEST(Server, AKeyIsNeededWhereOneIsSet) {
  ServeOptions options;
  options.api_key = "secret";
  const Running running(kAnswer, options);
  httplib::Client client = running.client();
  const std::string body = test::chat_body("x").dump();
  for (const char* wrong : {"", "secret", "Bearer ", "Bearer secre", "Bearer secrets", "Basic secret"})
    expect_error(client.Post("/v1/chat/completions", {{"Authorization", wrong}}, body, "application/json"), 401,
                 "invalid_api_key");
  expect_error(client.Get("/v1/models"), 401, "invalid_api_key");
  EXPECT_EQ(running.backend->num_submitted(), 0);
  EXPECT_EQ(client.Post("/v1/chat/completions", {{"Authorization", "Bearer secret"}}, body, "application/json")->status,
            200);
  EXPECT_EQ(client.Get("/health")->status, 200);
  EXPECT_EQ(client.Get("/")->status, 200);
}

// A page of another site must not be able to use a server that only this machine can reach.
TEST(Server, OtherSitesMayNotCall) {
  ServeOptions options;
  options.allowed_origins = {"https://friend.example"};
  const Running running(kAnswer, options);
  httplib::Client client = running.client();
  expect_error(client.Get("/v1/models", {{"Origin", "https://evil.example"}}), 403, "origin_not_allowed");
  expect_error(client.Get("/v1/models", {{"Host", "evil.example:8000"}}), 403, "wrong_host");
  const auto own = client.Get("/v1/models", {{"Host", "localhost:8000"}, {"Origin", "http://localhost:8000"}});
  EXPECT_EQ(own->status, 200);
  EXPECT_FALSE(own->has_header("Access-Control-Allow-Origin"));
  const auto friendly = client.Options("/v1/chat/completions", {{"Origin", "https://friend.example"}});
  EXPECT_EQ(friendly->status, 204);
  EXPECT_EQ(friendly->get_header_value("Access-Control-Allow-Origin"), "https://friend.example");
}

TEST(Server, TakesForms) {
  const Running running("ok");
  const std::string png = test::grey_png(30, 20);
  const httplib::MultipartFormDataItems items = {
      {"question", "What?", "", ""}, {"temperature", "0", "", ""}, {"image", png, "a.png", "image/png"}};
  const auto result = running.client().Post("/v1/chat/completions", items);
  ASSERT_EQ(result->status, 200) << result->body;
  const ChatRequest request = running.backend->last_request();
  ASSERT_EQ(request.messages.back().parts.size(), 2u);
  EXPECT_EQ(request.messages.back().parts[1].text, "What?");
  EXPECT_EQ(request.sampling.temperature, 0);
  EXPECT_EQ(Json::parse(result->body)["choices"][0]["thinkvg"]["pictures"][0]["width"], 30);
}

TEST(Server, BrokenUploadsAreErrorsAndLeaveNothing) {
  ServeOptions options;
  options.limits.upload_seconds = 1;
  const Running running("ok", options);
  const std::string type = "multipart/form-data; boundary=XX";
  const std::vector<std::string> bodies = {
      "",
      "no form at all",
      "--XX\r\n",
      "--XX\r\nContent-Disposition: form-data; name=\"question\"\r\n\r\nhello",
      "--XX\r\nContent-Disposition: form-data; name=\"image\"; filename=\"a.png\"\r\n\r\nnot a picture\r\n--XX--\r\n",
      "--XX\r\nContent-Disposition: form-data; name=\"question\"\r\n\r\nx\r\n--XX\r\nContent-Disposition: form-data; "
      "name=\"image\"; filename=\"a.png\"\r\n\r\n\x89PNG\r\n--XX--\r\n",
      "--YY\r\nContent-Disposition: form-data; name=\"question\"\r\n\r\nhello\r\n--YY--\r\n"};
  for (const std::string& body : bodies) {
    test::RawClient client(running.server->port());
    client.send(test::http_post("/v1/chat/completions", body, "", type));
    EXPECT_THAT(client.receive(5, "}}"), HasSubstr("HTTP/1.1 400")) << body;
  }
  test::RawClient without(running.server->port());
  without.send(test::http_post("/v1/chat/completions", "x", "", "multipart/form-data"));
  EXPECT_THAT(without.receive(5, "}}"), HasSubstr("HTTP/1.1 400"));
  // Cut off in the middle, by closing and by silence.
  const std::string whole = test::http_post("/v1/chat/completions", picture_question("x").dump());
  for (int i = 0; i < 8; ++i) {
    test::RawClient client(running.server->port());
    client.send(whole.substr(0, whole.size() * static_cast<std::size_t>(i) / 8));
    if (i % 2 == 0) client.reset();
  }
  test::RawClient gzip(running.server->port());
  gzip.send(test::http_post("/v1/chat/completions", "not gzip", "Content-Encoding: gzip\r\n"));
  EXPECT_THAT(gzip.receive(5, "}}"), HasSubstr("HTTP/1.1 400"));
  EXPECT_EQ(running.backend->num_submitted(), 0);
  EXPECT_EQ(running.ask(test::chat_body("x"))->status, 200);
}

TEST(Server, PreviewsPictures) {
  ServeOptions options;
  options.pictures.max_pixels = 300 * 200;
  const Running running("ok", options);
  httplib::Client client = running.client();
  const auto result = client.Post("/v1/pictures/preview?max_side=100", test::grey_png(300, 200), "image/png");
  ASSERT_EQ(result->status, 200) << result->body;
  EXPECT_EQ(result->get_header_value("X-Picture-Width"), "300");
  EXPECT_EQ(result->get_header_value("X-Picture-Height"), "200");
  EXPECT_EQ(image::parse_picture_info(result->body, "preview").stored, (grounding::ImageSize{100, 67}));
  expect_error(client.Post("/v1/pictures/preview", "hello", "image/png"), 400, "invalid_image");
  expect_error(client.Post("/v1/pictures/preview", test::grey_png(301, 200), "image/png"), 400, "invalid_image");
  expect_error(client.Post("/v1/pictures/preview?max_side=1", test::grey_png(3, 2), "image/png"), 400, "invalid_value");
}

TEST(Server, FinishesWhatItBeganBeforeItStops) {
  const Running running(kAnswer, {}, std::chrono::milliseconds(3));
  std::optional<httplib::Result> whole, streamed;
  std::thread first([&] { whole.emplace(running.ask(test::chat_body("x"))); });
  std::thread second([&] { streamed.emplace(running.ask(test::chat_body("x", {{"stream", true}}))); });
  test::RawClient idle(running.server->port());
  while (running.backend->num_submitted() < 2) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  running.server->stop();
  first.join();
  second.join();
  ASSERT_TRUE(*whole);
  EXPECT_EQ(Json::parse((*whole)->body)["choices"][0]["message"]["content"], kAnswer);
  ASSERT_TRUE(*streamed);
  EXPECT_THAT((*streamed)->body, HasSubstr("[DONE]"));
  EXPECT_THAT((*streamed)->body, Not(HasSubstr("\"error\"")));
  EXPECT_THROW(test::RawClient(running.server->port()), std::runtime_error);
}

TEST(Server, BreaksOffWhatDoesNotEndInTime) {
  ServeOptions options;
  options.limits.shutdown_seconds = 0.2;
  const Running running(kAnswer, options);
  std::optional<httplib::Result> held, streamed;
  std::thread first([&] { held.emplace(running.ask(test::chat_body("hold"))); });
  std::thread second([&] { streamed.emplace(running.ask(test::chat_body("hold", {{"stream", true}}))); });
  while (running.backend->num_submitted() < 2) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  running.server->stop();
  first.join();
  second.join();
  expect_error(*held, 503, "service_unavailable");
  ASSERT_TRUE(*streamed);
  EXPECT_THAT((*streamed)->body, HasSubstr("service_unavailable"));
  EXPECT_TRUE(running.backend->all_returned());
}

TEST(Server, RefusesWrongSettingsAndTakenPorts) {
  const Running running;
  ServeOptions options;
  options.port = running.server->port();
  Server second(options, "tiny", running.backend);
  EXPECT_THROW(second.start(), std::runtime_error);
  options.limits.connections = 0;
  EXPECT_THROW(Server(options, "tiny", running.backend), std::invalid_argument);
}

// 64 clients at once: plain and streaming ones, slow readers, clients that leave in the middle, broken uploads.
TEST(Server, HoldsUnderLoad) {
  std::string answer = "<think>";
  for (int i = 0; i < 200; ++i) answer += "Sentence number " + std::to_string(i) + " (region [1, 2, 30, 40]) is long. ";
  answer += "</think>";
  ServeOptions options;
  options.sampling.max_new_tokens = options.limits.new_tokens = 20000;
  const Running running(answer, options);
  constexpr int kClients = 64;
  std::atomic<int> answered{0}, wrong{0};
  std::vector<std::thread> threads;
  for (int client = 0; client < kClients; ++client) {
    threads.emplace_back([&, client] {
      const int kind = client % 4;
      for (int round = 0; round < 3; ++round) {
        const Json body = picture_question("x", {{"stream", kind != 0}});
        if (kind == 0) {  // must get every answer whole, whatever the others do
          const auto result = running.ask(body);
          const bool right = result && result->status == 200 &&
                             Json::parse(result->body)["choices"][0]["message"]["content"] == answer;
          ++(right ? answered : wrong);
        } else if (kind == 1) {  // reads slowly, to the end
          test::RawClient raw(running.server->port(), 4096);
          raw.send(test::http_post("/v1/chat/completions", body.dump(), "Connection: close\r\n"));
          std::string text;
          while (!raw.closed()) {
            text += raw.receive_some(5, 64 << 10);
            std::this_thread::sleep_for(std::chrono::microseconds(500));
          }
          const std::size_t done = text.find("[DONE]");
          ++(done != std::string::npos ? answered : wrong);
        } else if (kind == 2) {  // leaves in the middle
          test::RawClient raw(running.server->port());
          raw.send(test::http_post("/v1/chat/completions", body.dump()));
          raw.receive(5, "assistant");
          if (round % 2 == 0) raw.reset();
        } else {  // breaks its upload off
          test::RawClient raw(running.server->port());
          const std::string whole = test::http_post("/v1/chat/completions", body.dump());
          raw.send(whole.substr(0, whole.size() / 2));
          if (round % 2 == 0) raw.reset();
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(answered, kClients / 2 * 3);
  EXPECT_EQ(wrong, 0);
  EXPECT_TRUE(running.backend->all_returned());
  EXPECT_EQ(running.metric("thinkvg_requests_in_progress"), "0");
  EXPECT_EQ(running.ask(test::chat_body("x"))->status, 200);
}

TEST(Server, MetricsAreCountedByRouteAndStatus) {
  const Running running("abc");
  running.ask(test::chat_body("x"));
  running.ask(test::chat_body("x", {{"n", 0}}));
  running.client().Get("/nowhere");
  EXPECT_EQ(running.metric("thinkvg_http_responses_total{route=\"/v1/chat/completions\",status=\"200\"}"), "1");
  EXPECT_EQ(running.metric("thinkvg_http_responses_total{route=\"/v1/chat/completions\",status=\"400\"}"), "1");
  EXPECT_EQ(running.metric("thinkvg_http_responses_total{route=\"other\",status=\"404\"}"), "1");
  EXPECT_EQ(running.metric("thinkvg_completions_total{finish=\"stop\"}"), "1");
  EXPECT_EQ(running.metric("thinkvg_completion_tokens_sum"), "3");
  EXPECT_EQ(running.metric("thinkvg_first_token_seconds_count"), "1");
}

// The openai package itself.
TEST(OpenAiClientEndToEnd, FindsWhatItExpects) {
  const test::Oracle oracle = test::find_oracle("openai");
  if (oracle.python.empty()) GTEST_SKIP() << oracle.reason;
  const Running running(test::kRadiographAnswer);
  const test::ProcessResult result =
      test::run_process({oracle.python, THINKVG_SOURCE_DIR "/tests/serve/openai_client.py",
                         "http://127.0.0.1:" + std::to_string(running.server->port()), "--written"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.out, "ok\n");
  EXPECT_TRUE(running.backend->all_returned());
}

}  // namespace
}  // namespace thinkvg::serve
