#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <string>

namespace thinkvg {
namespace {

namespace fs = std::filesystem;
using Arrows = std::map<std::string, std::set<std::string>>;

// Who may include whom, as the areas are layered (CMakeLists.txt links them in the same way). Besides, everything may
// include core and grounding, and whatever an area may include, its users may include, too.
const Arrows& allowed_arrows() {
  static const Arrows kAllowed = {
      {"core", {}},
      {"grounding", {"core"}},
      {"image", {"grounding"}},
      {"text", {"core"}},
      {"data", {"grounding", "image", "text"}},
      {"rewards", {"grounding", "data"}},
      {"nn", {"core"}},
      {"models", {"nn", "text", "image"}},
      {"generation", {"models", "data"}},
      {"dist", {"core"}},
      {"train", {"data", "models", "generation", "dist"}},
      {"rl", {"train", "generation", "rewards"}},
      {"eval", {"data", "generation", "rewards", "dist"}},
      {"serve", {"generation", "data"}},
  };
  return kAllowed;
}

std::set<std::string> reachable(const std::string& area) {
  std::set<std::string> reached = {area, "core"};
  if (area != "core") reached.insert("grounding");
  std::vector<std::string> open(reached.begin(), reached.end());
  while (!open.empty()) {
    const std::string next = open.back();
    open.pop_back();
    for (const std::string& to : allowed_arrows().at(next))
      if (reached.insert(to).second) open.push_back(to);
  }
  return reached;
}

// What is wrong with the includes of one file of `area`; empty where nothing is.
std::string wrong_includes(const std::string& area, std::istream& source) {
  static const std::regex kPublic(R"(^\s*#\s*include\s*["<]thinkvg/([a-z_]+)/([^">]+)[">])");
  static const std::regex kPrivate(R"(^\s*#\s*include\s*"([a-z_]+)/([^"]+)\")");
  const std::set<std::string> may = reachable(area);
  std::string wrong;
  std::smatch match;
  for (std::string line; std::getline(source, line);) {
    if (std::regex_search(line, match, kPublic)) {
      const std::string to = match[1];
      if (allowed_arrows().count(to) == 0)
        wrong += "  unknown area: " + line + "\n";
      else if (may.count(to) == 0)
        wrong += "  " + area + " may not include " + to + ": " + line + "\n";
    } else if (std::regex_search(line, match, kPrivate)) {
      const std::string to = match[1];
      if (to != area && (allowed_arrows().count(to) != 0 || to == "tools" || to == "tests"))
        wrong += "  " + area + " may not include private headers of " + to + ": " + line + "\n";
    }
  }
  return wrong;
}

TEST(IncludeArrows, LeadOnlyWhereTheDesignAllows) {
  int num_files = 0;
  for (const fs::path& root :
       {fs::path(THINKVG_SOURCE_DIR) / "include/thinkvg", fs::path(THINKVG_SOURCE_DIR) / "src"}) {
    for (const auto& folder : fs::directory_iterator(root)) {
      const std::string area = folder.path().filename().string();
      ASSERT_TRUE(folder.is_directory()) << folder.path() << " belongs to no area";
      ASSERT_EQ(allowed_arrows().count(area), 1u) << "unknown area " << folder.path();
      for (const auto& entry : fs::recursive_directory_iterator(folder)) {
        if (!entry.is_regular_file()) continue;
        std::ifstream source(entry.path());
        EXPECT_EQ(wrong_includes(area, source), "") << "in " << entry.path();
        ++num_files;
      }
    }
  }
  EXPECT_GT(num_files, 20);
}

TEST(IncludeArrows, HaveNoCycle) {
  for (const auto& [area, unused] : allowed_arrows())
    for (const std::string& to : reachable(area))
      if (to != area) EXPECT_EQ(reachable(to).count(area), 0u) << area << " and " << to;
}

TEST(IncludeArrows, AreCheckedLineByLine) {
  const auto check = [](const std::string& area, const std::string& text) {
    std::istringstream source(text);
    return wrong_includes(area, source);
  };
  EXPECT_EQ(check("eval", "#include \"thinkvg/nn/attention.h\"\n#include <vector>\n"), "");
  EXPECT_EQ(check("nn", "#include \"thinkvg/grounding/box.h\"\n#include \"nn/plan.h\"\n"), "");
  EXPECT_NE(check("grounding", "#include \"thinkvg/image/picture.h\"\n"), "");
  EXPECT_NE(check("nn", "  #  include <thinkvg/models/pack.h>\n"), "");
  EXPECT_NE(check("rl", "#include \"nn/plan.h\"\n"), "");
  EXPECT_NE(check("core", "#include \"thinkvg/grounding/box.h\"\n"), "");
  EXPECT_NE(check("serve", "#include \"tools/cli.h\"\n"), "");
}

}  // namespace
}  // namespace thinkvg
