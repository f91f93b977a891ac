#include "thinkvg/serve/chat_request.h"

#include <gmock/gmock.h>

#include "tests/serve/http_client.h"

namespace thinkvg::serve {
namespace {

using testing::HasSubstr;

// The error of a body, which must be one.
ApiError error_of(const std::string& body, const ServeOptions& options = {}) {
  try {
    parse_chat_request(body, options);
  } catch (const ApiError& error) {
    return error;
  }
  ADD_FAILURE() << "no error for " << body.substr(0, 200);
  return {0, "", "", ""};
}
ApiError error_with(const Json& more, const ServeOptions& options = {}) {
  return error_of(test::chat_body("hello", more).dump(), options);
}

TEST(ChatRequest, ReadsOpenAisFields) {
  const Json body = test::chat_body("What?", {{"temperature", 0.5},
                                              {"top_p", 0.9},
                                              {"max_completion_tokens", 7},
                                              {"n", 3},
                                              {"seed", 11},
                                              {"stop", {"a", "b"}},
                                              {"stream", true},
                                              {"stream_options", {{"include_usage", true}}},
                                              {"logprobs", true},
                                              {"top_logprobs", 5},
                                              {"user", "someone"},
                                              {"presence_penalty", 0},
                                              {"tools", Json::array()},
                                              {"logit_bias", nullptr}});
  const ChatRequest request = parse_chat_request(body.dump(), {});
  EXPECT_EQ(request.model, "tiny");
  ASSERT_EQ(request.messages.size(), 1u);
  EXPECT_EQ(request.messages[0].role, text::Role::kUser);
  EXPECT_EQ(request.messages[0].parts[0].text, "What?");
  EXPECT_EQ(request.sampling.temperature, 0.5);
  EXPECT_EQ(request.sampling.top_p, 0.9);
  EXPECT_EQ(request.sampling.max_new_tokens, 7);
  EXPECT_EQ(request.num_completions, 3);
  EXPECT_EQ(request.seed, 11u);
  EXPECT_EQ(request.stop, (std::vector<std::string>{"a", "b"}));
  EXPECT_TRUE(request.stream);
  EXPECT_TRUE(request.include_usage);
  EXPECT_TRUE(request.logprobs);
  EXPECT_EQ(request.top_logprobs, 5);
  EXPECT_FALSE(request.format);
}

TEST(ChatRequest, ReadsVllmsFields) {
  const ChatRequest request = parse_chat_request(test::chat_body("x", {{"min_p", 0.1},
                                                                       {"top_k", -1},
                                                                       {"repetition_penalty", 1.2},
                                                                       {"min_tokens", 2},
                                                                       {"max_tokens", 9.0},
                                                                       {"stop", "end"},
                                                                       {"guided_regex", "[ab]+"}})
                                                     .dump(),
                                                 {});
  EXPECT_EQ(request.sampling.min_p, 0.1);
  EXPECT_EQ(request.sampling.top_k, 0);
  EXPECT_EQ(request.sampling.repetition_penalty, 1.2);
  EXPECT_EQ(request.sampling.min_new_tokens, 2);
  EXPECT_EQ(request.sampling.max_new_tokens, 9);
  EXPECT_EQ(request.stop, std::vector<std::string>{"end"});
  ASSERT_TRUE(request.format);
  EXPECT_EQ(request.format->kind, OutputFormat::Kind::regex);
  EXPECT_EQ(request.format->text, "[ab]+");
}

TEST(ChatRequest, DefaultsAreTheServers) {
  ServeOptions options;
  options.sampling.temperature = 0.25;
  options.sampling.max_new_tokens = 33;
  options.system = "Be brief.";
  options.instruction = "Answer in tags.";
  const ChatRequest request = parse_chat_request(test::chat_body("x").dump(), options);
  EXPECT_EQ(request.sampling.temperature, 0.25);
  EXPECT_EQ(request.sampling.max_new_tokens, 33);
  ASSERT_EQ(request.messages.size(), 2u);
  EXPECT_EQ(request.messages[0].role, text::Role::kSystem);
  EXPECT_EQ(request.messages[0].parts[0].text, "Be brief.");
  EXPECT_EQ(request.messages[1].parts.back().text, "\nAnswer in tags.");
  const Json own = {
      {"messages", Json::array({{{"role", "developer"}, {"content", "Mine."}}, {{"role", "user"}, {"content", "x"}}})}};
  EXPECT_EQ(parse_chat_request(own.dump(), options).messages[0].parts[0].text, "Mine.");
}

TEST(ChatRequest, PicturesComeInOrderFromAllTurns) {
  const std::string first = test::grey_png(4, 3), second = test::grey_png(6, 2);
  const Json body = {
      {"messages",
       Json::array({{{"role", "user"},
                     {"content", Json::array({{{"type", "text"}, {"text", "before"}}, test::image_part(first)})}},
                    {{"role", "assistant"}, {"content", "yes"}, {"refusal", nullptr}, {"tool_calls", nullptr}},
                    {{"role", "user"},
                     {"content", Json::array({test::image_part(second), {{"type", "text"}, {"text", "after"}}})}}})}};
  const ChatRequest request = parse_chat_request(body.dump(), {});
  ASSERT_EQ(request.pictures.size(), 2u);
  EXPECT_TRUE(request.pictures[0].bytes == first);
  EXPECT_TRUE(request.pictures[1].bytes == second);
  EXPECT_EQ(request.pictures[1].name, "messages[2].content[0]");
  EXPECT_EQ(request.messages[0].parts[1].kind, text::MessagePart::Kind::kImage);
  EXPECT_EQ(request.messages[2].parts[0].kind, text::MessagePart::Kind::kImage);
}

TEST(ChatRequest, FormatsAreRead) {
  const auto format = [](const Json& more) {
    return parse_chat_request(test::chat_body("x", more).dump(), {}).format.value();
  };
  EXPECT_EQ(format({{"response_format", {{"type", "json_object"}}}}).kind, OutputFormat::Kind::json_object);
  EXPECT_EQ(format({{"response_format", {{"type", "grounded"}}}}).kind, OutputFormat::Kind::grounded);
  const Json schema = {{"type", "object"}, {"properties", {{"z", {{"type", "string"}}}, {"a", {{"type", "null"}}}}}};
  const OutputFormat found =
      format({{"response_format",
               {{"type", "json_schema"}, {"json_schema", {{"name", "n"}, {"strict", true}, {"schema", schema}}}}}});
  EXPECT_EQ(found.kind, OutputFormat::Kind::json_schema);
  EXPECT_EQ(found.text, schema.dump());  // in the schema's own order
  EXPECT_EQ(format({{"guided_json", schema.dump()}}).text, schema.dump());
  EXPECT_EQ(format({{"guided_choice", {"yes", "no"}}}).choices, (std::vector<std::string>{"yes", "no"}));
  EXPECT_EQ(format({{"structured_outputs", {{"regex", "a|b"}}}}).text, "a|b");
  EXPECT_FALSE(parse_chat_request(test::chat_body("x", {{"response_format", {{"type", "text"}}}}).dump(), {}).format);
  EXPECT_EQ(error_with({{"guided_regex", "a"}, {"response_format", {{"type", "json_object"}}}}).param(),
            "guided_regex");
}

TEST(ChatRequest, ErrorsNameTheField) {
  const struct {
    Json more;
    const char* param;
    const char* words;
  } cases[] = {
      {{{"temprature", 1}}, "temprature", "did you mean temperature"},
      {{{"temperature", "hot"}}, "temperature", "must be a number, but is a text"},
      {{{"temperature", -1}}, "temperature", "temperature"},
      {{{"top_p", 0}}, "top_p", "top_p"},
      {{{"max_tokens", 0}}, "max_tokens", "between 1 and 8192"},
      {{{"max_tokens", 100000}}, "max_tokens", "between 1 and 8192"},
      {{{"max_tokens", 1.5}}, "max_tokens", "whole number"},
      {{{"n", 17}}, "n", "between 1 and 16"},
      {{{"stream", "yes"}}, "stream", "true or false"},
      {{{"stream_options", {{"include_usage", true}}}}, "stream_options", "stream"},
      {{{"top_logprobs", 3}}, "top_logprobs", "logprobs"},
      {{{"top_logprobs", 21}, {"logprobs", true}}, "top_logprobs", "20"},
      {{{"stop", ""}}, "stop", "1 to 1024 bytes"},
      {{{"stop", {1}}}, "stop", "texts"},
      {{{"tools", {{{"type", "function"}}}}}, "tools", "no tools"},
      {{{"presence_penalty", 0.5}}, "presence_penalty", "repetition_penalty"},
      {{{"logit_bias", {{"5", 1}}}}, "logit_bias", "not offered"},
      {{{"response_format", {{"type", "xml"}}}}, "response_format.type", "grounded"},
      {{{"messages", Json::array()}}, "messages", "a message"},
      {{{"messages", "hi"}}, "messages", "a list"},
      {{{"messages", {{{"role", "robot"}, {"content", "x"}}}}}, "messages[0].role", "'robot'"},
      {{{"messages", {{{"role", "assistant"}, {"content", "x"}}}}}, "messages", "the last message"},
      {{{"messages", {{{"role", "user"}, {"content", 5}}}}}, "messages[0].content", "list of parts"},
      {{{"messages", {{{"role", "user"}, {"content", "x"}, {"colour", 1}}}}}, "messages[0].colour", "unknown"},
  };
  for (const auto& item : cases) {
    const ApiError error = error_with(item.more);
    EXPECT_EQ(error.status(), 400) << item.more;
    EXPECT_EQ(error.type(), "invalid_request_error");
    EXPECT_EQ(error.param(), item.param) << error.what();
    EXPECT_THAT(error.what(), HasSubstr(item.words)) << item.more;
    const Json json = Json::parse(error.json());
    EXPECT_EQ(json["error"]["param"], item.param);
    EXPECT_FALSE(json["error"]["code"].is_null());
  }
  EXPECT_THAT(error_of("{\"messages\": [").what(), HasSubstr("not valid JSON"));
  EXPECT_THAT(error_of("[]").what(), HasSubstr("must be an object"));
  EXPECT_THAT(error_of("{\"messages\": [], \"n\": 1e999}").what(), HasSubstr("not valid JSON"));
}

Json with_image(const Json& part) {
  return {{"messages", Json::array({{{"role", "user"}, {"content", Json::array({part})}}})}};
}
Json url_part(const std::string& url) { return {{"type", "image_url"}, {"image_url", {{"url", url}}}}; }

TEST(ChatRequest, NothingThatARequestNamesIsOpened) {
  for (const char* url : {"http://127.0.0.1:1/x.png", "https://example.org/x.png", "file:///etc/passwd", "/etc/passwd",
                          "ftp://x/y", "x.png"}) {
    const ApiError error = error_of(with_image(url_part(url)).dump());
    EXPECT_EQ(error.status(), 400);
    EXPECT_EQ(error.code(), "unsupported_image_url") << url;
    EXPECT_THAT(error.what(), HasSubstr("fetches no URLs and reads no local files"));
    EXPECT_EQ(error.param(), "messages[0].content[0].image_url.url");
  }
}

TEST(ChatRequest, DamagedPicturesAreErrors) {
  for (const char* url : {"data:image/png;base64,", "data:image/png,abc", "data:image/png;base64,ab*d",
                          "data:image/png;base64,abcde", "data:image/png;base64,ab=d"})
    EXPECT_EQ(error_of(with_image(url_part(url)).dump()).code(), "invalid_image_url") << url;
  EXPECT_EQ(error_of(with_image(url_part("data:image/png;base64,aGVsbG8=")).dump()).code(), "invalid_image");
  const std::string png = test::grey_png(4, 4);
  EXPECT_EQ(error_of(with_image(url_part("data:;base64," + test::base64(png.substr(0, 20)))).dump()).code(),
            "invalid_image");
}

TEST(ChatRequest, PicturesBeyondTheLimitsAreErrors) {
  ServeOptions options;
  options.pictures.max_pixels = 11;
  EXPECT_EQ(error_of(with_image(test::image_part(test::grey_png(4, 3))).dump(), options).code(), "image_too_large");
  options.pictures.max_pixels = 12;
  EXPECT_EQ(parse_chat_request(with_image(test::image_part(test::grey_png(4, 3))).dump(), options).pictures.size(), 1u);
  options.limits.pictures = 0;
  EXPECT_EQ(error_of(with_image(test::image_part(test::grey_png(4, 3))).dump(), options).code(), "too_many_images");
}

TEST(ChatRequest, Base64RoundTrips) {
  std::string bytes;
  for (int i = 0; i < 300; ++i) {
    EXPECT_TRUE(i == 0 || decode_data_uri("data:x;base64," + test::base64(bytes), "p") == bytes) << i;
    bytes += static_cast<char>(i * 37);
  }
  EXPECT_EQ(decode_data_uri("data:;base64,aGVs\r\nbG8", "p"), "hello");
  EXPECT_EQ(decode_data_uri("data:;base64,-_-_", "p"), decode_data_uri("data:;base64,+/+/", "p"));
}

// A text may cost no more than its length: no deep recursion, no quadratic look-up of keys.
TEST(ChatRequest, HostileJsonIsCheap) {
  EXPECT_EQ(error_of(std::string(1 << 20, '[')).code(), "invalid_json");
  std::string deep = "{\"messages\":";
  for (int i = 0; i < 100000; ++i) deep += "{\"a\":";
  EXPECT_THAT(error_of(deep).what(), HasSubstr("nested"));
  std::string keys = "{\"metadata\":{";
  for (int i = 0; i < 200000; ++i) keys += "\"k" + std::to_string(i) + "\":0,";
  EXPECT_THAT(error_of(keys + "\"z\":0}}").what(), HasSubstr("1024 keys"));
  EXPECT_EQ(error_of("{\"model\":\"\xff\"}").code(), "invalid_json");
}

TEST(ChatForm, FieldsAndFilesMakeARequest) {
  const std::string first = test::grey_png(4, 3), second = test::grey_png(5, 5);
  const ChatRequest request = parse_chat_form({{"question", "", "Which side?"},
                                               {"temperature", "", "0.5"},
                                               {"model", "", "42"},
                                               {"stop", "", "END"},
                                               {"stream", "", "true"},
                                               {"image", "a.png", first},
                                               {"image", "b.png", second}},
                                              {});
  EXPECT_EQ(request.model, "42");
  EXPECT_EQ(request.sampling.temperature, 0.5);
  EXPECT_EQ(request.stop, std::vector<std::string>{"END"});
  EXPECT_TRUE(request.stream);
  ASSERT_EQ(request.pictures.size(), 2u);
  EXPECT_EQ(request.pictures[0].name, "a.png");
  EXPECT_TRUE(request.pictures[1].bytes == second);
  ASSERT_EQ(request.messages.back().parts.size(), 3u);
  EXPECT_EQ(request.messages.back().parts[2].text, "Which side?");
}

TEST(ChatForm, TakesAWholeRequest) {
  const std::string file = test::grey_png(4, 3), inside = test::grey_png(2, 2);
  Json body = with_image(test::image_part(inside));
  const Json system = {{"role", "system"}, {"content", "s"}};
  body["messages"].insert(body["messages"].begin(), system);
  const ChatRequest request = parse_chat_form({{"request", "", body.dump()}, {"x", "a.png", file}}, {});
  ASSERT_EQ(request.pictures.size(), 2u);
  EXPECT_TRUE(request.pictures[0].bytes == file);
  EXPECT_TRUE(request.pictures[1].bytes == inside);
  EXPECT_EQ(request.messages.back().parts.size(), 2u);
}

TEST(ChatForm, NeedsAQuestion) {
  EXPECT_THROW(parse_chat_form({{"image", "a.png", test::grey_png(4, 3)}}, {}), ApiError);
  EXPECT_THROW(parse_chat_form({{"question", "", "x"}, {"colour", "", "red"}}, {}), ApiError);
  EXPECT_THROW(parse_chat_form({{"question", "", "x"}, {"image", "a.png", "not a picture"}}, {}), ApiError);
}

}  // namespace
}  // namespace thinkvg::serve
