#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "thinkvg/text/tokenizer.h"

namespace thinkvg::generation {

// The text of a completion while it is written, and where one of several stop texts ends it.
class StopScan {
 public:
  StopScan(std::unique_ptr<text::StreamingDecoder> decoder, std::vector<std::string> stops);

  // Adds a token; returns what is now certain to belong to the text. Nothing is to be added once stop_text() is set.
  std::string add(std::int64_t id);
  // The stop text that has come, the earliest one; empty where none has.
  const std::string& stop_text() const { return stop_text_; }
  // The whole text, cut before the stop text, which bytes that have made no character until now may yet complete.
  std::string finish();

 private:
  void scan();

  std::unique_ptr<text::StreamingDecoder> decoder_;
  std::vector<std::string> stops_;
  std::string text_;
  std::size_t released_ = 0;
  std::string stop_text_;
};

}  // namespace thinkvg::generation
