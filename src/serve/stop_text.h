#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace thinkvg::serve {

// A text as it comes, up to the first of some stop texts, which is left out. What may be the beginning of one is held
// back until it is known.
class StopText {
 public:
  explicit StopText(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  // What became certain.
  std::string add(std::string_view text);
  // What was held back; the text is over.
  std::string finish();
  bool stopped() const { return stopped_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace thinkvg::serve
