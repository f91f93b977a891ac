#include "thinkvg/eval/baselines.h"

#include <algorithm>
#include <map>

#include "thinkvg/core/parallel.h"
#include "thinkvg/core/random.h"
#include "thinkvg/grounding/answer.h"

namespace thinkvg::eval {
namespace {

using data::QuestionType;
using data::Sample;
using grounding::AnswerReading;
using grounding::Box;
using grounding::Region;

// Answers that count as the same: letters and yes/no by their meaning, other text by its words.
std::string answer_key(const Sample& sample) {
  if (sample.type == QuestionType::single_choice || sample.type == QuestionType::multi_choice) {
    if (const auto letters = grounding::read_option_letters(sample.answer, AnswerReading::lenient, sample.choices)) {
      return *letters;
    }
  } else if (sample.type == QuestionType::closed) {
    if (const auto yes = grounding::read_yes_no(sample.answer, AnswerReading::lenient)) return *yes ? "yes" : "no";
  }
  return grounding::normalize_text(sample.answer);
}

std::map<QuestionType, std::string> majority_answers(const std::vector<Sample>& samples) {
  struct Votes {
    std::int64_t count = 0;
    std::string answer;  // as first written
  };
  std::map<QuestionType, std::map<std::string, Votes>> votes;
  for (const Sample& sample : samples) {
    Votes& entry = votes[sample.type][answer_key(sample)];
    if (entry.count++ == 0) entry.answer = sample.answer;
  }
  std::map<QuestionType, std::string> out;
  for (const auto& [type, answers] : votes) {
    const auto most = std::max_element(answers.begin(), answers.end(),
                                       [](const auto& a, const auto& b) { return a.second.count < b.second.count; });
    out[type] = most->second.answer;
  }
  return out;
}

struct Extent {
  double width = 0, height = 0;
};

// Sizes and numbers of the reference boxes of one frame.
struct BoxStatistics {
  std::vector<Extent> sizes;
  std::vector<std::size_t> counts;
  Extent extent;
};

std::map<std::string, BoxStatistics> box_statistics(const std::vector<Sample>& samples) {
  std::map<std::string, BoxStatistics> out;
  for (const Sample& sample : samples) {
    if (sample.regions.empty()) continue;
    BoxStatistics& stats = out[sample.frame.name()];
    std::size_t count = 0;
    for (const Region& region : sample.regions) {
      const Box& box = region.box;
      if (!box.is_valid() || !(box.frame == sample.frame)) continue;
      stats.sizes.push_back({box.x2 - box.x1, box.y2 - box.y1});
      stats.extent.width = std::max(stats.extent.width, box.x2);
      stats.extent.height = std::max(stats.extent.height, box.y2);
      ++count;
    }
    if (count > 0) stats.counts.push_back(count);
    if (sample.frame.width() > 0) {
      stats.extent = {static_cast<double>(sample.frame.width()), static_cast<double>(sample.frame.height())};
    }
  }
  return out;
}

std::vector<Region> random_regions(const Sample& sample, const BoxStatistics& stats, std::int64_t seed) {
  RandomStream random({hash_key("random boxes"), static_cast<std::uint64_t>(seed), hash_key(sample.id)});
  std::vector<Region> regions;
  const std::size_t count = stats.counts[random.below(stats.counts.size())];
  for (std::size_t i = 0; i < count; ++i) {
    const Extent& size = stats.sizes[random.below(stats.sizes.size())];
    const double x = random.uniform(0, std::max(0.0, stats.extent.width - size.width));
    const double y = random.uniform(0, std::max(0.0, stats.extent.height - size.height));
    regions.push_back({"", {x, y, x + size.width, y + size.height, sample.frame}});
  }
  return regions;
}

}  // namespace

std::string baseline_name(Baseline baseline) {
  return baseline == Baseline::majority_answer ? "majority_answer" : "random_boxes";
}

std::string baseline_title(Baseline baseline) {
  return baseline == Baseline::majority_answer ? "Most frequent answer" : "Random boxes";
}

std::vector<std::string> baseline_responses(const std::vector<Sample>& samples, Baseline baseline, std::int64_t seed) {
  const auto answers = majority_answers(samples);
  const auto stats = box_statistics(samples);
  std::vector<std::string> responses;
  responses.reserve(samples.size());
  for (const Sample& sample : samples) {
    std::vector<Region> regions;
    if (baseline == Baseline::random_boxes) {
      const auto found = stats.find(sample.frame.name());
      if (found != stats.end() && !found->second.counts.empty()) regions = random_regions(sample, found->second, seed);
    }
    responses.push_back(grounding::format_response(answers.at(sample.type), regions));
  }
  return responses;
}

Json baselines_to_json(const std::vector<Sample>& samples, const MetricOptions& options) {
  MetricOptions own = options;
  own.require_think = false;
  Json json = Json::object();
  for (const Baseline baseline : {Baseline::majority_answer, Baseline::random_boxes}) {
    const std::vector<std::string> responses = baseline_responses(samples, baseline, options.seed);
    std::vector<QuestionScore> questions(samples.size());
    // References and responses share the sample's frame: no picture's size is needed.
    const grounding::ImageGeometry geometry({1, 1});
    parallel_for(samples.size(), [&](std::size_t i) {
      questions[i] = score_question({samples[i], responses[i], samples[i].frame, geometry}, own);
    });
    const Json scores = scores_to_json(summarize(questions, own));
    Json& entry = json[baseline_name(baseline)];
    entry["title"] = baseline_title(baseline);
    const std::vector<std::string> names =
        baseline == Baseline::majority_answer
            ? std::vector<std::string>{"a_score", "token_f1", "token_recall"}
            : std::vector<std::string>{"v_score",       "v_score_hungarian", "v_score_paired",
                                       "v_score_union", "v_score_best",      "acc_0.5"};
    for (const std::string& name : names) {
      if (scores.contains(name) && !scores[name]["overall"].is_null()) entry[name] = scores[name];
    }
  }
  return json;
}

}  // namespace thinkvg::eval
