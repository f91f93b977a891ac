#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "thinkvg/core/json.h"
#include "thinkvg/serve/api_error.h"
#include "thinkvg/serve/options.h"
#include "thinkvg/text/chat.h"

namespace thinkvg::serve {

// A picture file as a request carries it.
struct UploadedPicture {
  std::string name;   // for messages: "messages[0].content[1]", a file's name
  std::string bytes;  // JPEG, PNG or DICOM
};

// A form that the answer must have.
struct OutputFormat {
  enum class Kind { json_object, json_schema, regex, choice, grounded };
  Kind kind = Kind::json_object;
  std::string text;                  // the schema as JSON, or the expression
  std::vector<std::string> choices;  // of `choice`
  std::string param;                 // the request's field, for messages
};

// The body of POST /v1/chat/completions.
struct ChatRequest {
  std::string model;  // empty: the only one
  std::vector<text::Message> messages;
  std::vector<UploadedPicture> pictures;  // one for each image part, in order
  generation::SamplingOptions sampling;
  std::int64_t num_completions = 1;   // n
  std::optional<std::uint64_t> seed;  // none: other numbers each time
  std::vector<std::string> stop;
  bool logprobs = false;
  std::int64_t top_logprobs = 0;
  bool stream = false;
  bool include_usage = false;  // stream_options
  std::optional<OutputFormat> format;
};

// A part of a multipart/form-data body.
struct FormPart {
  std::string name;
  std::string filename;  // empty: a field, not a file
  std::string content;
};

// Reads a JSON body. The fields are OpenAI's, and of vLLM's own min_p, top_k, repetition_penalty, min_tokens,
// guided_json, guided_regex, guided_choice and structured_outputs; response_format also takes {"type": "grounded"}, the
// form of the model's own grounded answers. Fields that change nothing here (user, metadata, ..) are passed over; ones
// that are known but not offered, and unknown ones, are errors. Pictures come as data URIs only: a URL or a path that a
// request names is never opened. Throws ApiError.
ChatRequest parse_chat_request(std::string_view body, const ServeOptions& options);

// The same from a form: the field `request` with such a JSON body, or its fields one by one, `question` and `system`
// standing for the messages. Files become pictures in front of the last user message, in order.
ChatRequest parse_chat_form(const std::vector<FormPart>& parts, const ServeOptions& options);

// The bytes behind "data:[type];base64,..". Throws ApiError with `param`.
std::string decode_data_uri(std::string_view uri, const std::string& param);

// JSON text to a value, within limits that keep hostile texts from costing more than their length: nesting, keys of one
// object. Throws ApiError saying where it is not JSON.
Json parse_request_json(std::string_view text);

}  // namespace thinkvg::serve
