#pragma once

#include <string>
#include <vector>

#include "thinkvg/grounding/box.h"

namespace thinkvg::grounding {

// A box that one of several sources (readers, models) drew.
struct ScoredBox {
  Box box;
  std::string label;
  double score = 1;
};

struct FusionOptions {
  double iou_threshold = 0.55;  // boxes of one label overlap more than this to be one finding
  double skip_below = 0;        // boxes with a lower score are left out
};

// Weighted boxes fusion (Solovyev et al., 2021) as ensemble-boxes 1.0.9 does it with conf_type "avg" and equal weights:
// boxes of one label are clustered in order of falling score, a cluster's box is the mean of its boxes weighted by
// score, and its score is their mean times min(boxes in it, sources) / sources. With readers whose boxes all score 1,
// as in VinDr-CXR, the result's score is the share of readers that saw the finding.
// Boxes that are not valid are left out. Labels come in order of first appearance, then by falling score overall; of
// equal scores, the one that came later goes first. Throws std::invalid_argument when frames differ or a threshold lies
// outside [0, 1].
std::vector<ScoredBox> fuse_boxes(const std::vector<std::vector<ScoredBox>>& sources,
                                  const FusionOptions& options = {});

}  // namespace thinkvg::grounding
