#include <algorithm>
#include <set>

#include "rewards/builtin.h"
#include "thinkvg/core/error.h"
#include "thinkvg/grounding/answer.h"

namespace thinkvg::rewards {
namespace {

constexpr std::string_view kLeft = "left ", kRight = "right ", kBilateral = "bilateral ";

// Regions by their usual names, each side by itself.
std::set<std::string> named_regions(const std::vector<grounding::Region>& regions) {
  std::set<std::string> names;
  for (const grounding::Region& region : regions) {
    const std::string name = grounding::normalize_region_name(region.name);
    if (name.starts_with(kBilateral)) {
      const std::string part = name.substr(kBilateral.size());
      names.insert(std::string(kLeft) + part);
      names.insert(std::string(kRight) + part);
    } else if (!name.empty()) {
      names.insert(name);
    }
  }
  return names;
}

std::string other_side(const std::string& name) {
  if (name.starts_with(kLeft)) return std::string(kRight) + name.substr(kLeft.size());
  if (name.starts_with(kRight)) return std::string(kLeft) + name.substr(kRight.size());
  return "";
}

class RegionReward final : public Reward {
 public:
  std::string name() const override { return "region"; }

  RewardScore score(const RewardInput& input) override {
    const std::set<std::string> wanted = named_regions(input.sample.regions);
    if (wanted.empty()) return not_applicable("the reference names no region");
    if (!input.parsed.complete) return zero_incomplete(input);
    const std::set<std::string> said = named_regions(input.parsed.regions);
    std::size_t common = 0;
    std::string wrong_side, missing, extra;
    for (const std::string& region : said) {
      if (wanted.contains(region)) {
        ++common;
      } else if (const std::string other = other_side(region); wanted.contains(other) && !said.contains(other)) {
        wrong_side = region;
      } else {
        extra = region;
      }
    }
    for (const std::string& region : wanted)
      if (!said.contains(region)) missing = region;
    const double value = 2.0 * static_cast<double>(common) / static_cast<double>(said.size() + wanted.size());
    if (!wrong_side.empty()) return scored(value, fmt::format("the wrong side: '{:.60}'", wrong_side));
    if (!missing.empty()) return scored(value, fmt::format("does not name '{:.60}'", missing));
    if (!extra.empty()) return scored(value, fmt::format("names '{:.60}', too", extra));
    return scored(value, "names the reference's regions");
  }
};

}  // namespace

std::unique_ptr<Reward> make_region_reward(const RewardOptions&, const RewardResources&) {
  return std::make_unique<RegionReward>();
}

}  // namespace thinkvg::rewards
