#include "thinkvg/serve/chat_request.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <set>

#include "thinkvg/core/error.h"
#include "thinkvg/image/picture_info.h"

namespace thinkvg::serve {
namespace {

constexpr std::size_t kMaxDepth = 64;
constexpr std::size_t kMaxKeys = 1024;  // of one object: looking a key up costs as many steps
constexpr std::size_t kMaxStops = 16;
constexpr std::size_t kMaxStopBytes = 1024;
constexpr std::int64_t kMaxTopLogprobs = 20;

// What others understand and what does not change an answer here.
constexpr const char* kPassedOver[] = {"user",
                                       "metadata",
                                       "store",
                                       "service_tier",
                                       "safety_identifier",
                                       "prompt_cache_key",
                                       "prompt_cache_retention",
                                       "parallel_tool_calls",
                                       "reasoning_effort",
                                       "verbosity"};

const char* type_of(const Json& value) {
  if (value.is_string()) return "a text";
  if (value.is_boolean()) return "true or false";
  if (value.is_number()) return "a number";
  if (value.is_array()) return "a list";
  return value.is_object() ? "an object" : "null";
}

[[noreturn]] void throw_type(const std::string& param, const char* expected, const Json& found) {
  throw invalid_request(fmt::format("{} must be {}, but is {}", param, expected, type_of(found)), param,
                        "invalid_type");
}

// The fields of one object. Null stands for a field that is not there.
class Fields {
 public:
  Fields(const Json& object, std::string path) : object_(object), path_(std::move(path)) {
    if (!object.is_object()) throw_type(path_.empty() ? "the body" : path_, "an object", object);
  }

  std::string param(const std::string& name) const { return path_.empty() ? name : path_ + "." + name; }
  const Json* find(const std::string& name) {
    known_.insert(name);
    const auto found = object_.find(name);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }
  const Json& require(const std::string& name) {
    const Json* value = find(name);
    if (value == nullptr) throw invalid_request(param(name) + " is missing", param(name), "missing_required_parameter");
    return *value;
  }
  std::string text(const std::string& name, std::string otherwise = {}) {
    const Json* value = find(name);
    if (value == nullptr) return otherwise;
    if (!value->is_string()) throw_type(param(name), "a text", *value);
    return value->get<std::string>();
  }
  bool flag(const std::string& name, bool otherwise = false) {
    const Json* value = find(name);
    if (value == nullptr) return otherwise;
    if (!value->is_boolean()) throw_type(param(name), "true or false", *value);
    return value->get<bool>();
  }
  double number(const std::string& name, double otherwise) {
    const Json* value = find(name);
    if (value == nullptr) return otherwise;
    if (!value->is_number()) throw_type(param(name), "a number", *value);
    return value->get<double>();
  }
  std::int64_t integer(const std::string& name, std::int64_t otherwise) {
    const Json* value = find(name);
    if (value == nullptr) return otherwise;
    const bool whole =
        value->is_number_integer() || (value->is_number_float() && std::abs(value->get<double>()) < 9e15 &&
                                       value->get<double>() == std::floor(value->get<double>()));
    if (!whole) throw_type(param(name), "a whole number", *value);
    return value->get<std::int64_t>();
  }
  std::int64_t integer(const std::string& name, std::int64_t otherwise, std::int64_t least, std::int64_t most) {
    const std::int64_t value = integer(name, otherwise);
    if (find(name) != nullptr && (value < least || value > most))
      throw invalid_request(fmt::format("{} must be between {} and {}, but is {}", param(name), least, most, value),
                            param(name));
    return value;
  }
  // A field that is understood but whose effect is not offered: only its neutral value may come.
  void refuse_unless(const std::string& name, bool neutral, const std::string& instead) {
    if (find(name) != nullptr && !neutral)
      throw invalid_request(fmt::format("{} is not offered by this server; {}", param(name), instead), param(name),
                            "unsupported_parameter");
  }
  // Throws for a field that none of the calls above has named.
  void finish() const {
    for (const auto& [name, value] : object_.items()) {
      if (known_.contains(name) || value.is_null()) continue;
      const std::string near = nearest_name(name, {known_.begin(), known_.end()});
      throw invalid_request(
          fmt::format("unknown field {}{}", param(name), near.empty() ? "" : "; did you mean " + near), param(name),
          "unknown_parameter");
    }
  }

 private:
  const Json& object_;
  std::string path_;
  std::set<std::string> known_;
};

void check_picture(const UploadedPicture& picture, const ServeOptions& options) {
  image::PictureInfo info;
  try {
    info = image::parse_picture_info(picture.bytes, picture.name);
  } catch (const std::exception& error) {
    throw invalid_request(error.what(), picture.name, "invalid_image");
  }
  const grounding::ImageSize size = info.shown();
  if (size.width <= 0 || size.height <= 0 || size.width > options.pictures.max_pixels / size.height)
    throw invalid_request(fmt::format("{}: a picture of {} x {} pixels, more than the {} that this server takes",
                                      picture.name, size.width, size.height, options.pictures.max_pixels),
                          picture.name, "image_too_large");
}

void add_picture(ChatRequest& request, std::size_t at, UploadedPicture picture, const ServeOptions& options) {
  if (static_cast<std::int64_t>(request.pictures.size()) >= options.limits.pictures)
    throw invalid_request(
        fmt::format("more than {} pictures, as many as this server takes in one request", options.limits.pictures),
        "messages", "too_many_images");
  check_picture(picture, options);
  request.pictures.insert(request.pictures.begin() + static_cast<std::ptrdiff_t>(at), std::move(picture));
}

// The URI of an image part: {"image_url": {"url": ..}}, or the URI itself.
std::string image_uri(Fields& part, const std::string& key, std::string& param) {
  const Json& value = part.require(key);
  param = part.param(key);
  if (value.is_string()) return value.get<std::string>();
  Fields fields(value, param);
  std::string uri = fields.text("url");
  param = fields.param("url");
  fields.text("detail");
  fields.finish();
  if (uri.empty()) throw invalid_request(param + " is missing", param, "missing_required_parameter");
  return uri;
}

text::Message read_message(const Json& json, const std::string& path, ChatRequest& request,
                           const ServeOptions& options) {
  Fields fields(json, path);
  text::Message message;
  const std::string role = fields.text("role");
  if (role == "system" || role == "developer")
    message.role = text::Role::kSystem;
  else if (role == "assistant")
    message.role = text::Role::kAssistant;
  else if (role != "user")
    throw invalid_request(
        fmt::format("{} must be system, developer, user or assistant, but is '{}'", fields.param("role"), role),
        fields.param("role"));
  fields.text("name");
  fields.find("refusal");
  fields.find("thinkvg");  // an earlier answer may be sent back as it came
  fields.refuse_unless("tool_calls", false, "it calls no tools");
  fields.refuse_unless("audio", false, "it reads text and pictures");
  const Json* content = fields.find("content");
  fields.finish();
  if (content == nullptr || content->is_string()) {
    message.parts.push_back({text::MessagePart::Kind::kText, content == nullptr ? "" : content->get<std::string>()});
    return message;
  }
  if (!content->is_array()) throw_type(path + ".content", "a text or a list of parts", *content);
  for (std::size_t i = 0; i < content->size(); ++i) {
    const std::string place = fmt::format("{}.content[{}]", path, i);
    Fields part((*content)[i], place);
    const std::string type = part.text("type");
    if (type == "text" || type == "input_text") {
      message.parts.push_back({text::MessagePart::Kind::kText, part.text("text")});
    } else if (type == "image_url" || type == "input_image" || type == "image") {
      if (message.role != text::Role::kUser)
        throw invalid_request(place + ": only the user's messages can hold pictures", place);
      std::string param;
      const std::string uri = image_uri(part, type == "image" ? "image" : "image_url", param);
      part.text("detail");
      add_picture(request, request.pictures.size(), {place, decode_data_uri(uri, param)}, options);
      message.parts.push_back(text::MessagePart::image());
    } else {
      throw invalid_request(
          fmt::format("{}.type must be text or image_url, but is '{}'; this server reads text and pictures", place,
                      type),
          place + ".type");
    }
    part.finish();
  }
  return message;
}

// The conversation's last question is the user's; the server's own system line and instruction are put to it.
void finish_messages(ChatRequest& request, const ServeOptions& options) {
  if (request.messages.empty()) throw invalid_request("messages must hold a message at least", "messages");
  if (request.messages.back().role != text::Role::kUser)
    throw invalid_request("the last message must be the user's; going on with an assistant's message is not offered",
                          "messages");
  const bool has_system = std::any_of(request.messages.begin(), request.messages.end(),
                                      [](const text::Message& message) { return message.role == text::Role::kSystem; });
  if (!has_system && !options.system.empty())
    request.messages.insert(request.messages.begin(),
                            {text::Role::kSystem, {{text::MessagePart::Kind::kText, options.system}}});
  if (!options.instruction.empty())
    request.messages.back().parts.push_back({text::MessagePart::Kind::kText, "\n" + options.instruction});
}

std::vector<std::string> read_texts(const Json& value, const std::string& param) {
  if (value.is_string()) return {value.get<std::string>()};
  if (!value.is_array()) throw_type(param, "a text or a list of texts", value);
  std::vector<std::string> texts;
  for (const Json& item : value) {
    if (!item.is_string()) throw_type(param, "a list of texts", item);
    texts.push_back(item.get<std::string>());
  }
  return texts;
}

void read_stop(Fields& fields, ChatRequest& request) {
  const Json* value = fields.find("stop");
  if (value == nullptr) return;
  request.stop = read_texts(*value, "stop");
  if (request.stop.size() > kMaxStops)
    throw invalid_request(fmt::format("stop must hold at most {} texts, but holds {}", kMaxStops, request.stop.size()),
                          "stop");
  for (const std::string& text : request.stop)
    if (text.empty() || text.size() > kMaxStopBytes)
      throw invalid_request(
          fmt::format("a text of stop must have 1 to {} bytes, but one has {}", kMaxStopBytes, text.size()), "stop");
}

std::string schema_text(const Json& value, const std::string& param) {
  if (value.is_object() || value.is_boolean()) return value.dump();
  if (!value.is_string()) throw_type(param, "a JSON schema", value);
  return value.get<std::string>();
}

OutputFormat json_schema_format(const Json& value, const std::string& param) {
  return {OutputFormat::Kind::json_schema, schema_text(value, param), {}, param};
}

OutputFormat choice_format(const Json& value, const std::string& param) {
  OutputFormat format{OutputFormat::Kind::choice, {}, read_texts(value, param), param};
  if (!value.is_array() || format.choices.empty()) throw_type(param, "a list of texts", value);
  return format;
}

OutputFormat regex_format(Fields& fields, const std::string& name) {
  return {OutputFormat::Kind::regex, fields.text(name), {}, fields.param(name)};
}

std::optional<OutputFormat> response_format(const Json& value) {
  Fields fields(value, "response_format");
  const std::string type = fields.text("type");
  std::optional<OutputFormat> format;
  if (type == "json_object") {
    format = {OutputFormat::Kind::json_object, {}, {}, "response_format"};
  } else if (type == "json_schema") {
    Fields schema(fields.require("json_schema"), "response_format.json_schema");
    for (const char* name : {"name", "description"}) schema.text(name);
    schema.flag("strict");
    format = json_schema_format(schema.require("schema"), schema.param("schema"));
    schema.finish();
  } else if (type == "regex") {
    format = regex_format(fields, "regex");
  } else if (type == "grounded") {
    format = {OutputFormat::Kind::grounded, {}, {}, "response_format"};
  } else if (type != "text") {
    throw invalid_request(
        fmt::format("response_format.type must be text, json_object, json_schema, regex or grounded, but is '{}'",
                    type),
        "response_format.type");
  }
  fields.finish();
  return format;
}

void read_format(Fields& fields, ChatRequest& request) {
  std::vector<OutputFormat> found;
  const auto read_three = [&](Fields& from, const std::string& prefix) {
    if (const Json* value = from.find(prefix + "json"))
      found.push_back(json_schema_format(*value, from.param(prefix + "json")));
    if (from.find(prefix + "regex") != nullptr) found.push_back(regex_format(from, prefix + "regex"));
    if (const Json* value = from.find(prefix + "choice"))
      found.push_back(choice_format(*value, from.param(prefix + "choice")));
  };
  if (const Json* value = fields.find("response_format")) {
    if (auto format = response_format(*value)) found.push_back(std::move(*format));
  }
  read_three(fields, "guided_");
  if (const Json* value = fields.find("structured_outputs")) {
    Fields structured(*value, "structured_outputs");
    read_three(structured, "");
    structured.finish();
  }
  if (found.size() > 1)
    throw invalid_request(
        fmt::format("{} and {} both say what form the answer has; only one may", found[0].param, found[1].param),
        found[1].param);
  if (!found.empty()) request.format = std::move(found.front());
}

void read_sampling(Fields& fields, ChatRequest& request, const ServeOptions& options) {
  generation::SamplingOptions& sampling = request.sampling;
  sampling = options.sampling;
  sampling.temperature = fields.number("temperature", sampling.temperature);
  sampling.top_p = fields.number("top_p", sampling.top_p);
  sampling.min_p = fields.number("min_p", sampling.min_p);
  sampling.repetition_penalty = fields.number("repetition_penalty", sampling.repetition_penalty);
  sampling.top_k = fields.integer("top_k", sampling.top_k);
  if (sampling.top_k == -1) sampling.top_k = 0;  // vLLM's "all"
  const std::int64_t most = options.limits.new_tokens;
  sampling.max_new_tokens = fields.integer("max_tokens", sampling.max_new_tokens, 1, most);
  sampling.max_new_tokens = fields.integer("max_completion_tokens", sampling.max_new_tokens, 1, most);
  sampling.min_new_tokens = fields.integer("min_tokens", sampling.min_new_tokens, 0, sampling.max_new_tokens);
  try {
    sampling.check();
  } catch (const std::invalid_argument& error) {
    const std::string message = error.what();
    std::string param;
    for (const char* name : {"temperature", "top_k", "top_p", "min_p", "repetition_penalty"})
      if (message.find(name) != std::string::npos) param = name;
    throw invalid_request(message, param);
  }
}

ChatRequest read_request(const Json& body, const ServeOptions& options) {
  Fields fields(body, "");
  ChatRequest request;
  request.model = fields.text("model");
  const Json& messages = fields.require("messages");
  if (!messages.is_array()) throw_type("messages", "a list", messages);
  for (std::size_t i = 0; i < messages.size(); ++i)
    request.messages.push_back(read_message(messages[i], fmt::format("messages[{}]", i), request, options));
  read_sampling(fields, request, options);
  request.num_completions = fields.integer("n", 1, 1, options.limits.completions);
  if (fields.find("seed") != nullptr) request.seed = static_cast<std::uint64_t>(fields.integer("seed", 0));
  read_stop(fields, request);
  request.logprobs = fields.flag("logprobs");
  request.top_logprobs = fields.integer("top_logprobs", 0, 0, kMaxTopLogprobs);
  if (request.top_logprobs > 0 && !request.logprobs)
    throw invalid_request("top_logprobs needs logprobs to be true", "top_logprobs");
  request.stream = fields.flag("stream");
  if (const Json* value = fields.find("stream_options")) {
    if (!request.stream) throw invalid_request("stream_options needs stream to be true", "stream_options");
    Fields stream(*value, "stream_options");
    request.include_usage = stream.flag("include_usage");
    stream.find("include_obfuscation");
    stream.finish();
  }
  read_format(fields, request);

  for (const char* name : kPassedOver) fields.find(name);
  const auto is_zero = [&](const char* name) { return fields.number(name, 0) == 0; };
  const auto is_empty = [&](const char* name) {
    const Json* value = fields.find(name);
    return value == nullptr || value->empty();
  };
  for (const char* name : {"presence_penalty", "frequency_penalty"})
    fields.refuse_unless(name, is_zero(name), "use repetition_penalty");
  fields.refuse_unless("logit_bias", is_empty("logit_bias"), "use guided_regex or guided_choice");
  for (const char* name : {"tools", "functions"}) fields.refuse_unless(name, is_empty(name), "it calls no tools");
  for (const char* name : {"tool_choice", "function_call"}) {
    const Json* value = fields.find(name);
    fields.refuse_unless(name, value == nullptr || *value == "none" || *value == "auto", "it calls no tools");
  }
  const Json* modalities = fields.find("modalities");
  fields.refuse_unless("modalities", modalities == nullptr || *modalities == Json::array({"text"}), "it writes text");
  for (const char* name : {"audio", "prediction", "web_search_options"})
    fields.refuse_unless(name, false, "it writes text, from nothing but the request");
  fields.finish();
  return request;
}

}  // namespace

std::string decode_data_uri(std::string_view uri, const std::string& param) {
  if (!uri.starts_with("data:"))
    throw invalid_request(
        param +
            " must be a data URI (data:image/png;base64,..): this server fetches no URLs and reads no local files; "
            "send the picture itself, inline or as multipart/form-data",
        param, "unsupported_image_url");
  const std::size_t comma = uri.find(',');
  if (comma == std::string_view::npos || !uri.substr(0, comma).ends_with(";base64"))
    throw invalid_request(param + " must be a data URI in base64 (data:image/png;base64,..)", param,
                          "invalid_image_url");
  static const std::array<std::int8_t, 256> kValues = [] {
    std::array<std::int8_t, 256> values{};
    values.fill(-1);
    constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (std::size_t i = 0; i < kDigits.size(); ++i)
      values[static_cast<unsigned char>(kDigits[i])] = static_cast<std::int8_t>(i);
    values['-'] = 62;  // the alphabet for URLs
    values['_'] = 63;
    return values;
  }();
  const std::string_view text = uri.substr(comma + 1);
  std::string bytes;
  bytes.reserve(text.size() / 4 * 3 + 3);
  std::uint32_t bits = 0;
  int num_bits = 0;
  std::size_t num_digits = 0;
  bool padded = false;
  for (const char c : text) {
    if (c == '\r' || c == '\n' || c == ' ' || c == '\t') continue;
    if (c == '=') {
      padded = true;
      continue;
    }
    const int value = kValues[static_cast<unsigned char>(c)];
    if (value < 0 || padded) throw invalid_request(param + " is not valid base64", param, "invalid_image_url");
    bits = (bits << 6 | static_cast<std::uint32_t>(value)) & 0xFFFFFF;
    num_bits += 6;
    ++num_digits;
    if (num_bits < 8) continue;
    num_bits -= 8;
    bytes += static_cast<char>(bits >> num_bits & 0xFF);
  }
  if (num_digits % 4 == 1) throw invalid_request(param + " is not valid base64", param, "invalid_image_url");
  if (bytes.empty()) throw invalid_request(param + " holds no data", param, "invalid_image_url");
  return bytes;
}

Json parse_request_json(std::string_view text) {
  std::vector<std::size_t> keys(kMaxDepth + 2, 0);
  const auto watch = [&](int depth, Json::parse_event_t event, Json&) {
    const auto level = static_cast<std::size_t>(depth);
    if (level > kMaxDepth)
      throw invalid_request(fmt::format("the body is nested deeper than {} levels", kMaxDepth), {}, "invalid_json");
    if (event == Json::parse_event_t::object_start) keys[level + 1] = 0;
    if (event == Json::parse_event_t::key && ++keys[level] > kMaxKeys)
      throw invalid_request(fmt::format("an object of the body has more than {} keys", kMaxKeys), {}, "invalid_json");
    return true;
  };
  try {
    return Json::parse(text, watch);
  } catch (const nlohmann::json::exception& error) {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: .."
    const std::string what = error.what();
    const std::size_t start = what.find("] ");
    std::string reason = start == std::string::npos ? what : what.substr(start + 2);
    // Of the text itself, which may be long and private, only the place.
    reason = reason.substr(0, reason.find("; last read"));
    throw invalid_request("the body is not valid JSON: " + reason, {}, "invalid_json");
  }
}

ChatRequest parse_chat_request(std::string_view body, const ServeOptions& options) {
  ChatRequest request = read_request(parse_request_json(body), options);
  finish_messages(request, options);
  return request;
}

ChatRequest parse_chat_form(const std::vector<FormPart>& parts, const ServeOptions& options) {
  Json body = Json::object();
  std::string question, system;
  bool whole = false;
  for (const FormPart& part : parts) {
    if (!part.filename.empty() || part.name.empty()) continue;
    if (part.name == "request") {
      body = parse_request_json(part.content);
      whole = true;
    } else if (part.name == "question") {
      question = part.content;
    } else if (part.name == "system") {
      system = part.content;
    } else if (part.name == "model") {
      body["model"] = part.content;
    } else if (!part.content.empty()) {
      const Json value = Json::parse(part.content, nullptr, false);
      body[part.name] = value.is_discarded() ? Json(part.content) : value;
    }
  }
  if (!whole) {
    if (body.contains("messages") == !question.empty())
      throw invalid_request("a form needs one of the fields request (a JSON body), messages and question", "question",
                            "missing_required_parameter");
    if (!question.empty()) {
      body["messages"] = Json::array();
      if (!system.empty()) body["messages"].push_back({{"role", "system"}, {"content", system}});
      body["messages"].push_back({{"role", "user"}, {"content", question}});
    }
  }
  ChatRequest request = read_request(body, options);
  std::vector<text::MessagePart> images;
  // Pictures of the last message that came inline stay behind the files.
  std::size_t at = 0;
  for (std::size_t i = 0; i + 1 < request.messages.size(); ++i)
    for (const text::MessagePart& part : request.messages[i].parts)
      if (part.kind == text::MessagePart::Kind::kImage) ++at;
  for (const FormPart& part : parts) {
    if (part.filename.empty()) continue;
    add_picture(request, at++, {part.filename, part.content}, options);
    images.push_back(text::MessagePart::image());
  }
  if (!images.empty() && !request.messages.empty()) {
    std::vector<text::MessagePart>& last = request.messages.back().parts;
    last.insert(last.begin(), images.begin(), images.end());
  }
  finish_messages(request, options);
  return request;
}

}  // namespace thinkvg::serve
