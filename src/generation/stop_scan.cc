#include "generation/stop_scan.h"

#include <algorithm>
#include <string_view>

namespace thinkvg::generation {

StopScan::StopScan(std::unique_ptr<text::StreamingDecoder> decoder, std::vector<std::string> stops)
    : decoder_(std::move(decoder)), stops_(std::move(stops)) {}

// Cuts the text before the earliest stop text. All that was released before is known to begin none.
void StopScan::scan() {
  std::size_t cut = std::string::npos;
  for (const std::string& stop : stops_) {
    const std::size_t found = text_.find(stop, released_);
    if (found >= cut) continue;
    cut = found;
    stop_text_ = stop;
  }
  if (cut != std::string::npos) text_.resize(cut);
}

std::string StopScan::add(std::int64_t id) {
  text_ += decoder_->add(id);
  scan();
  std::size_t certain = text_.size();
  if (stop_text_.empty()) {
    const std::string_view rest = std::string_view(text_).substr(released_);
    for (const std::string& stop : stops_) {
      for (std::size_t length = std::min(stop.size() - 1, rest.size()); length > 0; --length) {
        if (!rest.ends_with(std::string_view(stop).substr(0, length))) continue;
        certain = std::min(certain, text_.size() - length);
        break;
      }
    }
  }
  std::string released = text_.substr(released_, certain - released_);
  released_ = certain;
  return released;
}

std::string StopScan::finish() {
  if (stop_text_.empty()) {
    text_ += decoder_->finish();
    scan();
  }
  return text_;
}

}  // namespace thinkvg::generation
