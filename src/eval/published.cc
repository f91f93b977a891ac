#include "eval/published.h"

namespace thinkvg::eval {

const std::vector<PublishedFigures>& published_gemex() {
  static const std::vector<PublishedFigures> kFigures = {
      {"GPT-4o-mini", {97.68, 71.14, 77.47, 82.91, 82.30}, {}},
      {"LLaVA-Med-v1.5", {94.43, 76.54, 66.04, 67.28, 76.07}, {}},
      {"LLaVA-Med-GEMeX", {97.05, 80.72, 81.42, 84.98, 86.04}, {51.47, 53.20, 54.57, 47.99}},
  };
  return kFigures;
}

}  // namespace thinkvg::eval
