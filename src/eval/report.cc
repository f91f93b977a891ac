#include "thinkvg/eval/report.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <iterator>
#include <set>
#include <string_view>

#include "eval/chart.h"
#include "eval/published.h"
#include "eval/report_analysis.h"
#include "eval/report_cases.h"
#include "eval/report_data.h"
#include "eval/report_style.h"
#include "thinkvg/core/error.h"
#include "thinkvg/core/html.h"
#include "thinkvg/core/manifest.h"
#include "thinkvg/core/progress.h"
#include "thinkvg/eval/metrics.h"

namespace thinkvg::eval {
namespace {

using html::escape;
using html::kMissing;
using html::plural;

std::string swatch(std::size_t stage) { return fmt::format("<span class=\"swatch s{}\"></span>", stage); }

// Question types of all stages, in the first one's order.
std::vector<std::string> question_types(const ReportData& data) {
  std::vector<std::string> types;
  for (const ReportStage& stage : data.stages)
    for (const auto& [type, count] : stage.num_questions_by_type)
      if (std::find(types.begin(), types.end(), type) == types.end()) types.push_back(type);
  return types;
}

// ---- header

// "Intel Xeon, 2 cores, 24.0 GiB" out of a manifest's machine; keys it does not know are left to the manifest itself.
std::string machine_text(const Json& manifest) {
  if (!manifest.is_object() || !manifest.contains("machine") || !manifest["machine"].is_object()) return "";
  const Json& machine = manifest["machine"];
  std::string text;
  const auto add = [&](const std::string& part) { text += (text.empty() ? "" : ", ") + part; };
  for (const char* key : {"cpu", "gpu"})
    if (machine.contains(key) && machine[key].is_string()) add(machine[key].get<std::string>());
  if (machine.contains("cores") && machine["cores"].is_number_integer())
    add(plural(machine["cores"].get<std::int64_t>(), "core"));
  if (machine.contains("memory_bytes") && machine["memory_bytes"].is_number())
    add(fmt::format("{:.1f} GiB", machine["memory_bytes"].get<double>() / (1024.0 * 1024 * 1024)));
  return text;
}

std::string manifest_text(const Json& manifest, const char* key) {
  if (!manifest.is_object() || !manifest.contains(key) || manifest[key].is_null()) return "";
  return manifest[key].is_string() ? manifest[key].get<std::string>() : manifest[key].dump();
}

class Facts {
 public:
  void add(const std::string& name, const std::string& value) {
    if (value.empty()) return;
    for (auto& [known, values] : facts_) {
      if (known != name) continue;
      if (std::find(values.begin(), values.end(), value) == values.end()) values.push_back(value);
      return;
    }
    facts_.push_back({name, {value}});
  }
  std::string render() const {
    std::string out = "<dl class=\"facts\">";
    for (const auto& [name, values] : facts_) {
      std::string text;
      for (const std::string& value : values) text += (text.empty() ? "" : "; ") + value;
      out += fmt::format("<div><dt>{}</dt><dd>{}</dd></div>", escape(name), escape(text));
    }
    return out + "</dl>";
  }

 private:
  std::vector<std::pair<std::string, std::vector<std::string>>> facts_;
};

bool has_predictions(const ReportData& data) {
  return std::any_of(data.stages.begin(), data.stages.end(),
                     [](const ReportStage& stage) { return !stage.predictions.empty(); });
}

std::string render_header(const ReportData& data) {
  Facts facts;
  const auto add_manifest = [&](const Json& manifest) {
    facts.add("Machine", machine_text(manifest));
    facts.add("Seed", manifest_text(manifest, "seed"));
    const std::string version = manifest_text(manifest, "version");
    if (!version.empty()) facts.add("Version", "thinkvg " + version);
    facts.add("Date", manifest_text(manifest, "started").substr(0, 10));
  };
  for (const ReportTraining& training : data.trainings) add_manifest(training.manifest);
  for (const ReportStage& stage : data.stages) add_manifest(stage.manifest);
  facts.add("Version", "thinkvg " + version());
  std::string out = fmt::format("<header><h1>{}</h1>\n", escape(data.title));
  if (!data.description.empty()) out += fmt::format("<p class=\"lead\">{}</p>\n", escape(data.description));
  std::string holds;
  if (!data.stages.empty()) holds = plural(static_cast<std::int64_t>(data.stages.size()), "evaluated stage");
  if (!data.trainings.empty())
    holds += (holds.empty() ? "" : ", ") + plural(static_cast<std::int64_t>(data.trainings.size()), "training run");
  if (!data.cases.empty())
    holds += fmt::format(", {} shown", plural(static_cast<std::int64_t>(data.cases.size()), "case"));
  facts.add("Holds", holds);
  out += facts.render() + "\n<nav>";
  if (!data.stages.empty())
    out += "<a href=\"#scores\">Scores</a><a href=\"#types\">By question type</a><a href=\"#metrics\">All metrics</a>";
  if (has_predictions(data)) out += "<a href=\"#boxes\">Boxes</a>";
  if (!data.trainings.empty()) out += "<a href=\"#training\">Training</a>";
  if (!data.cases.empty()) out += "<a href=\"#cases\">Cases</a>";
  return out + "<a href=\"#runs\">Runs</a></nav></header>\n";
}

// ---- scores

std::string cell(const ReportValue* value, int decimals = 3) {
  if (!value) return fmt::format("<td>{}</td>", kMissing);
  std::string interval;
  if (value->low && value->high)
    interval = fmt::format("<span class=\"ci\">{:.{}f}{}{:.{}f}</span>", *value->low, decimals,
                           *value->low < 0 ? " to " : "\u2013", *value->high, decimals);
  return fmt::format("<td>{:.{}f}{}</td>", value->mean, decimals, interval);
}

std::string cell(const std::optional<ReportValue>& value) { return cell(value ? &*value : nullptr); }

using NamedTexts = std::vector<std::pair<std::string, std::string>>;

// How predictions were written, and how the intervals were drawn, is no rule that a figure depends on: it is said of
// each run.
bool is_of_run(const std::string& rule) { return rule == "format" || rule == "frame" || rule == "interval"; }

NamedTexts scoring_rules(const ReportStage& stage) {
  NamedTexts rules = stage.rules;
  std::erase_if(rules, [](const auto& rule) { return is_of_run(rule.first); });
  return rules;
}

std::string render_rules(const ReportData& data) {
  // Stages scored by the same rules share one list.
  std::vector<std::pair<std::string, NamedTexts>> groups;
  for (const ReportStage& stage : data.stages) {
    const NamedTexts rules = scoring_rules(stage);
    if (rules.empty()) continue;
    const auto same =
        std::find_if(groups.begin(), groups.end(), [&](const auto& group) { return group.second == rules; });
    if (same == groups.end())
      groups.emplace_back(stage.label, rules);
    else
      same->first += ", " + stage.label;
  }
  std::string out;
  for (const auto& [labels, rules] : groups) {
    out += fmt::format("<details class=\"rules\"><summary>Scoring rules{}</summary><dl class=\"kv\">",
                       groups.size() > 1 ? ": " + escape(labels) : "");
    for (const auto& [name, value] : rules)
      out += fmt::format("<dt>{}</dt><dd>{}</dd>", escape(html::spaced(name)), escape(value));
    out += "</dl></details>\n";
  }
  if (groups.size() > 1)
    out += "<p class=\"note\">The stages were scored by different rules: their figures are not comparable.</p>\n";
  return out;
}

// Rows for what guessing gives, of the first run that says it.
std::string render_baselines(const ReportData& data, bool with_ar, bool with_f1) {
  const auto stage = std::find_if(data.stages.begin(), data.stages.end(),
                                  [](const ReportStage& candidate) { return !candidate.baselines.empty(); });
  if (stage == data.stages.end()) return "";
  std::string out;
  for (const ReportBaseline& baseline : stage->baselines) {
    out += fmt::format(
        "<tr class=\"baseline\"><th class=\"wide\" scope=\"row\">{}<span class=\"stage-note\">baseline, no "
        "picture seen</span></th>",
        escape(baseline.title));
    out += cell(baseline.a_score.overall) + cell(baseline.v_score.overall);
    if (with_ar) out += cell(nullptr);
    out += cell(nullptr);
    if (with_f1) out += cell(baseline.token_f1.overall);
    out += cell(nullptr) + cell(nullptr) + "</tr>\n";
  }
  return out;
}

std::string render_scores(const ReportData& data) {
  const bool with_ar = score_columns(data).size() > 2;
  const bool with_f1 = std::any_of(data.stages.begin(), data.stages.end(),
                                   [](const ReportStage& stage) { return stage.token_f1.overall.has_value(); });
  std::string out = fmt::format(
      "<section id=\"scores\"><h2>Scores</h2>\n<p class=\"note\">A-score: share of right answers. V-score: overlap "
      "(IoU) of predicted and reference boxes. Both from 0 to 1, a response that cannot be parsed counts 0; below "
      "each figure its 95\u00a0% interval.</p>\n<div class=\"scroll\"><table><thead><tr><th class=\"wide\">Stage</th>"
      "<th>A-score</th><th>V-score</th>{}<th>Mean of A and V</th>{}<th>Parse "
      "rate</th><th>Questions</th></tr></thead><tbody>\n",
      with_ar ? "<th>AR-score,<br>by a judge</th>" : "", with_f1 ? "<th>Open answers,<br>token F1</th>" : "");
  bool same_count = true;
  for (std::size_t i = 0; i < data.stages.size(); ++i) {
    const ReportStage& stage = data.stages[i];
    same_count = same_count && stage.num_questions == data.stages[0].num_questions;
    out +=
        fmt::format("<tr><th class=\"wide\" scope=\"row\">{}{}{}</th>", swatch(i), escape(stage.label),
                    stage.note.empty() ? "" : fmt::format("<span class=\"stage-note\">{}</span>", escape(stage.note)));
    out += cell(stage.a_score.overall) + cell(stage.v_score.overall);
    if (with_ar) out += cell(stage.ar_score.overall);
    out += cell(stage.mean_score.overall);
    if (with_f1) out += cell(stage.token_f1.overall);
    const auto& parsed = stage.parse_rate.overall;
    out += parsed ? fmt::format("<td>{:.3f}</td>", parsed->mean) : fmt::format("<td>{}</td>", kMissing);
    out += fmt::format(
        "<td>{}{}</td></tr>\n", format_count(stage.num_questions),
        stage.num_images > 0 ? fmt::format("<span class=\"ci\">{}</span>", plural(stage.num_images, "picture")) : "");
  }
  out += render_baselines(data, with_ar, with_f1) + "</tbody></table></div>\n";
  if (!same_count)
    out += "<p class=\"note\">The stages were asked different numbers of questions: compare them with care.</p>\n";
  return out;
}

std::string p_text(double p) { return p < 0.001 ? "&lt; 0.001" : fmt::format("{:.3f}", p); }

std::string difference_cell(const std::optional<ReportValue>& value, double extent) {
  if (!value) return fmt::format("<td>{}</td>", kMissing);
  std::string interval, reading;
  if (value->low && value->high) {
    interval = fmt::format("<span class=\"ci\">{:+.3f} to {:+.3f}</span>", *value->low, *value->high);
    reading = *value->low > 0 ? "above 0" : *value->high < 0 ? "below 0" : "includes 0";
  }
  std::string test;
  if (value->p_value)
    test = fmt::format("<span class=\"ci\">p {}{}</span>", p_text(*value->p_value),
                       value->p_holm ? ", Holm " + p_text(*value->p_holm) : "");
  if (value->detectable) test += fmt::format("<span class=\"ci\">detectable {:.3f}</span>", *value->detectable);
  return fmt::format("<td>{:+.3f}{}<span class=\"ci\">{} {}</span>{}</td>", value->mean, interval, reading,
                     chart::difference({value->mean, value->low, value->high}, extent), test);
}

// Of one row, so that a small difference is not flattened by a large one in another row.
double difference_extent(const ReportComparison& comparison) {
  double extent = 0.01;
  for (const ComparedScore& score : compared_scores())
    if (const auto& value = comparison.*score.value)
      extent = std::max(
          {extent, std::abs(value->mean), std::abs(value->low.value_or(0)), std::abs(value->high.value_or(0))});
  return extent;
}

std::string render_comparisons(const ReportData& data) {
  if (data.comparisons.empty() && data.stages.size() > 1)
    return "<p class=\"note\">No paired differences: no earlier stage was asked the questions of the last one.</p>\n";
  if (data.comparisons.empty()) return "";
  std::vector<ComparedScore> shown;
  std::string heads;
  for (const ComparedScore& score : compared_scores()) {
    if (std::none_of(data.comparisons.begin(), data.comparisons.end(),
                     [&](const ReportComparison& comparison) { return (comparison.*score.value).has_value(); }))
      continue;
    shown.push_back(score);
    heads += fmt::format("<th>{}</th>", score.title);
  }
  std::string out = fmt::format(
      "<h3>Paired differences</h3>\n<p class=\"note\">Both stages on the same questions; the interval is of the "
      "difference itself, and may exclude 0 where the intervals above overlap. p: two-sided bootstrap test over "
      "pictures ({} resamples), and the same adjusted by Holm's method for all scores of this table; McNemar: exact "
      "test of "
      "the right answers, question by question. Detectable: the smallest difference that a set of this size would show "
      "4 times out of 5. Each row has its own scale.</p>\n<div class=\"scroll\"><table class=\"differences\">"
      "<thead><tr><th class=\"wide\">Comparison</th>{}<th>McNemar</th></tr></thead><tbody>\n",
      format_count(MetricOptions().resamples), heads);
  for (const ReportComparison& comparison : data.comparisons) {
    out += fmt::format(
        "<tr><th class=\"wide\" scope=\"row\">{}{}</th>", escape(comparison.label),
        comparison.note.empty() ? "" : fmt::format("<span class=\"stage-note\">{}</span>", escape(comparison.note)));
    const double extent = difference_extent(comparison);
    for (const ComparedScore& score : shown) out += difference_cell(comparison.*score.value, extent);
    out += fmt::format("<td>{}</td></tr>\n",
                       comparison.mcnemar_p ? "p " + p_text(*comparison.mcnemar_p) : std::string(kMissing));
  }
  return out + "</tbody></table></div>\n";
}

std::string render_bars(const ReportData& data, const ScoreColumn& column, const std::vector<std::string>& types) {
  const auto bar_of = [&](std::size_t i, const ReportValue& value) {
    return chart::Bar{data.stages[i].label, static_cast<int>(i), value.mean, value.low, value.high};
  };
  std::vector<chart::BarGroup> groups;
  for (const std::string& type : types) {
    chart::BarGroup group{html::spaced(type), {}};
    for (std::size_t i = 0; i < data.stages.size(); ++i)
      if (const ReportValue* value = (data.stages[i].*column.score).find(type)) group.bars.push_back(bar_of(i, *value));
    groups.push_back(std::move(group));
  }
  chart::BarGroup all{"all", {}};
  for (std::size_t i = 0; i < data.stages.size(); ++i)
    if (const auto& value = (data.stages[i].*column.score).overall) all.bars.push_back(bar_of(i, *value));
  groups.push_back(std::move(all));
  return fmt::format("<figure><figcaption><b>{}</b></figcaption>{}</figure>\n", column.title,
                     chart::bars(groups, fmt::format("{} by question type and stage", column.title)));
}

std::string render_type_table(const ReportData& data, const ScoreColumn& column,
                              const std::vector<std::string>& types) {
  std::string out = fmt::format("<div class=\"scroll\"><table class=\"compact\"><thead><tr><th>{}</th>", column.title);
  for (std::size_t i = 0; i < data.stages.size(); ++i)
    out += fmt::format("<th>{}{}</th>", swatch(i), escape(data.stages[i].label));
  out += "<th>n</th></tr></thead><tbody>\n";
  const auto row = [&](const auto& value_of) {
    std::string cells;
    std::vector<std::int64_t> counts;
    for (const ReportStage& stage : data.stages) {
      const ReportValue* value = value_of(stage.*column.score);
      if (value && value->n > 0) counts.push_back(value->n);
      cells += cell(value);
    }
    if (counts.empty()) return cells + fmt::format("<td>{}</td></tr>\n", kMissing);
    const auto [least, most] = std::minmax_element(counts.begin(), counts.end());
    return cells + fmt::format("<td>{}{}</td></tr>\n", format_count(*least),
                               *least == *most ? "" : "\u2013" + format_count(*most));
  };
  for (const std::string& type : types)
    out += fmt::format("<tr><th scope=\"row\">{}</th>", escape(html::spaced(type))) +
           row([&](const ReportScore& score) { return score.find(type); });
  out += "<tr class=\"total\"><th scope=\"row\">all</th>" +
         row([](const ReportScore& score) { return score.overall ? &*score.overall : nullptr; });
  return out + "</tbody></table></div>\n";
}

std::string render_types(const ReportData& data) {
  const std::vector<std::string> types = question_types(data);
  std::string out = "<section id=\"types\"><h2>By question type</h2>\n<div class=\"legend\">";
  for (std::size_t i = 0; i < data.stages.size(); ++i)
    out += fmt::format("<span>{}{}</span>", swatch(i), escape(data.stages[i].label));
  out += "</div>\n<div class=\"pair charts\">";
  for (const ScoreColumn& column : score_columns(data)) out += render_bars(data, column, types);
  out += "</div>\n<p class=\"note\">Whiskers are 95\u00a0% intervals.</p>\n<div class=\"pair\">";
  for (const ScoreColumn& column : score_columns(data)) out += render_type_table(data, column, types);
  return out + "</div></section>\n";
}

// ---- all metrics

struct MetricGroup {
  const char* title;
  std::vector<const char*> names;
};

const std::vector<MetricGroup>& metric_groups() {
  static const std::vector<MetricGroup> kGroups = {
      {"Boxes, by the rule for several", {"v_score_hungarian", "v_score_paired", "v_score_union", "v_score_best"}},
      {"Boxes", {"acc_0.3", "acc_0.5", "acc_0.7", "hallucinated_boxes"}},
      {"Open answers", {"token_f1", "token_recall", "exact_match", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l"}},
      {"Judge", {"ar_score", "ar_score_ratio_of_means"}},
      {"Reasoning and length", {"consistency", "box_consistency", "answer_words", "think_words"}},
      {"Strict and lenient reading",
       {"a_score_strict", "a_score_lenient", "v_score_strict", "v_score_lenient", "token_f1_strict", "token_f1_lenient",
        "parse_rate_strict", "parse_rate_lenient"}},
  };
  return kGroups;
}

const ReportScore* find_score(const ReportStage& stage, const std::string& name) {
  for (const auto& [known, score] : stage.metrics)
    if (known == name) return &score;
  return nullptr;
}

std::string stage_heads(const ReportData& data) {
  std::string out;
  for (std::size_t i = 0; i < data.stages.size(); ++i)
    out += fmt::format("<th>{}{}</th>", swatch(i), escape(data.stages[i].label));
  return out;
}

using ValueOf = std::function<const ReportValue*(const ReportScore&)>;

// Every metric of the values that `value_of` takes out of a score; empty where there are none.
std::string metric_table(const ReportData& data, const ValueOf& value_of) {
  std::string rows;
  for (const MetricGroup& group : metric_groups()) {
    std::string lines;
    for (const char* name : group.names) {
      const int decimals = std::string_view(name).ends_with("_words") ? 1 : 3;
      std::string cells;
      bool any = false;
      for (const ReportStage& stage : data.stages) {
        const ReportScore* score = find_score(stage, name);
        const ReportValue* value = score ? value_of(*score) : nullptr;
        any = any || value;
        cells += cell(value, decimals);
      }
      if (!any) continue;
      const auto info = std::find_if(metric_list().begin(), metric_list().end(),
                                     [&](const MetricInfo& known) { return known.name == name; });
      lines += fmt::format("<tr><th class=\"wide\" scope=\"row\">{}<span class=\"stage-note\">{}</span></th>{}</tr>\n",
                           escape(info->title), escape(info->meaning), cells);
    }
    if (!lines.empty())
      rows += fmt::format("<tr class=\"group\"><th scope=\"rowgroup\" colspan=\"{}\">{}</th></tr>\n{}",
                          data.stages.size() + 1, group.title, lines);
  }
  if (rows.empty()) return "";
  return fmt::format(
      "<div class=\"scroll\"><table class=\"compact\"><thead><tr><th class=\"wide\">Metric</th>{}</tr></thead><tbody>\n"
      "{}</tbody></table></div>\n",
      stage_heads(data), rows);
}

std::string render_metrics(const ReportData& data) {
  const std::string all =
      metric_table(data, [](const ReportScore& score) { return score.overall ? &*score.overall : nullptr; });
  return "<section id=\"metrics\"><h2>All metrics</h2>\n" +
         (all.empty() ? "<p class=\"note\">These runs hold no further metrics.</p>\n" : all);
}

using Groups = std::vector<std::pair<std::string, ReportValue>>;
using GroupsOf = Groups ReportScore::*;

const ReportValue* find_value(const Groups& groups, const std::string& name) {
  const auto found = std::find_if(groups.begin(), groups.end(), [&](const auto& entry) { return entry.first == name; });
  return found == groups.end() ? nullptr : &found->second;
}

// The same metrics of each question type, or of each subject of the questions.
std::string render_metrics_by(const ReportData& data, const std::vector<std::string>& names, GroupsOf groups_of) {
  std::string out;
  for (const std::string& name : names) {
    const std::string table =
        metric_table(data, [&](const ReportScore& score) { return find_value(score.*groups_of, name); });
    if (!table.empty())
      out += fmt::format("<details><summary>All metrics, {} questions</summary>{}</details>\n",
                         escape(html::spaced(name)), table);
  }
  return out;
}

std::vector<std::string> content_names(const ReportData& data) {
  std::vector<std::string> names;
  for (const ReportStage& stage : data.stages)
    if (const ReportScore* score = find_score(stage, "parse_rate"))
      for (const auto& [name, value] : score->by_content)
        if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  return names;
}

// Average precision, where a run was asked for it.
std::string render_detection(const ReportData& data) {
  using Place = Json::json_pointer;
  const auto row = [&](const std::string& title, const Place& place) {
    std::string cells;
    bool any = false;
    for (const ReportStage& stage : data.stages) {
      const Json& detection = stage.detection;
      const bool is_there = detection.is_object() && detection.contains(place) && detection.at(place).is_number();
      any = any || is_there;
      cells += is_there ? fmt::format("<td>{:.3f}</td>", detection.at(place).get<double>())
                        : fmt::format("<td>{}</td>", kMissing);
    }
    return any ? fmt::format("<tr><th scope=\"row\">{}</th>{}</tr>\n", escape(title), cells) : "";
  };
  std::string rows = row("mean over IoU 0.50 to 0.95", Place() / "ap");
  for (const char* threshold : {"0.40", "0.50", "0.75"})
    rows += row(fmt::format("at IoU {}", threshold), Place() / "at" / threshold);
  rows += row("recall", Place() / "recall");
  std::set<std::string> labels;
  for (const ReportStage& stage : data.stages)
    if (stage.detection.is_object() && stage.detection.contains("by_label"))
      for (const auto& [label, value] : stage.detection["by_label"].items()) labels.insert(label);
  for (const std::string& label : labels) rows += row(label, Place() / "by_label" / label);
  if (rows.empty()) return "";
  return fmt::format(
      "<h3>Average precision of the boxes</h3>\n<p class=\"note\">As COCO computes it, over the names of the regions; "
      "below it each name.</p><div class=\"scroll\"><table class=\"compact\"><thead><tr><th>AP</th>{}</tr></thead>"
      "<tbody>\n{}</tbody></table></div>\n",
      stage_heads(data), rows);
}

// A score by content or region, the most frequent first; empty where no run has it.
std::string render_group_table(const ReportData& data, const ScoreColumn& column, GroupsOf groups_of) {
  Groups all;
  for (const ReportStage& stage : data.stages)
    for (const auto& entry : (stage.*column.score).*groups_of)
      if (!find_value(all, entry.first)) all.push_back(entry);
  if (all.empty()) return "";
  std::stable_sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.second.n > b.second.n; });
  std::string out = fmt::format(
      "<div class=\"scroll\"><table class=\"compact\"><thead><tr><th>{}</th>{}<th>n</th></tr>"
      "</thead><tbody>\n",
      column.title, stage_heads(data));
  for (const auto& [name, first] : all) {
    out += fmt::format("<tr><th scope=\"row\">{}</th>", escape(name));
    for (const ReportStage& stage : data.stages) out += cell(find_value((stage.*column.score).*groups_of, name));
    out += fmt::format("<td>{}</td></tr>\n", format_count(first.n));
  }
  return out + "</tbody></table></div>\n";
}

std::string render_groups(const ReportData& data, const char* title, GroupsOf groups_of) {
  std::string tables;
  for (const ScoreColumn& column : score_columns(data)) tables += render_group_table(data, column, groups_of);
  if (tables.empty()) return "";
  return fmt::format("<details><summary>{}</summary><div class=\"pair\">{}</div></details>\n", title, tables);
}

std::string render_published() {
  const auto number = [](double value) { return value > 0 ? fmt::format("<td>{:.2f}</td>", value) : cell(nullptr); };
  std::string out =
      "<details><summary>Published GEMeX figures (not measured here)</summary><p class=\"note\">From the GEMeX paper, "
      "on "
      "its test set of 300 pictures and 3,960 questions, in percent. AR-score: answer and reasoning graded by a "
      "language "
      "model; the paper leaves the rules for several boxes and for averaging open, so that small differences to the "
      "figures above mean nothing.</p><div class=\"scroll\"><table class=\"compact\"><thead><tr><th>System</th><th>AR "
      "open</th><th>AR closed</th><th>AR single</th><th>AR multi</th><th>AR mean</th><th>V open</th><th>V closed</th>"
      "<th>V single</th><th>V multi</th></tr></thead><tbody>\n";
  for (const PublishedFigures& figures : published_gemex()) {
    out += fmt::format("<tr class=\"baseline\"><th scope=\"row\">{}</th>", figures.system);
    for (const double value : figures.ar_score) out += number(value);
    for (const double value : figures.v_score) out += number(value);
    out += "</tr>\n";
  }
  return out + "</tbody></table></div></details>\n";
}

std::string render_copies(const ReportData& data) {
  return fmt::format(
      "<details><summary>LaTeX tables</summary><pre class=\"copy\">{}</pre></details>\n<details><summary>CSV: "
      "scores</summary><pre class=\"copy\">{}</pre></details>\n<details><summary>CSV: paired differences</summary><pre "
      "class=\"copy\">{}</pre></details>\n<details><summary>CSV: what the scores depend on</summary><pre "
      "class=\"copy\">{}</pre></details>\n",
      escape(scores_latex(data)), escape(scores_csv(data)), escape(differences_csv(data)), escape(runs_csv(data)));
}

// ---- boxes and confidence

std::string render_histograms(const ReportData& data) {
  std::vector<IouHistogram> histograms;
  double top = 0.05;
  for (const ReportStage& stage : data.stages) {
    histograms.push_back(iou_histogram(stage.predictions));
    const auto count = static_cast<double>(std::max<std::int64_t>(1, histograms.back().count));
    for (const std::int64_t bin : histograms.back().bins) top = std::max(top, static_cast<double>(bin) / count);
  }
  // Nearly all answers of a weak run overlap nothing: that column may leave the chart, the others must be seen.
  std::string out;
  for (std::size_t i = 0; i < histograms.size(); ++i) {
    const IouHistogram& histogram = histograms[i];
    if (histogram.count == 0) continue;
    const auto count = static_cast<double>(histogram.count);
    chart::Columns columns{static_cast<double>(histogram.zero) / count, {}, static_cast<int>(i)};
    for (const std::int64_t bin : histogram.bins) columns.shares.push_back(static_cast<double>(bin) / count);
    out += fmt::format("<figure><figcaption><b>{}</b><span>{:.0f}\u00a0% at 0</span></figcaption>{}</figure>\n",
                       escape(data.stages[i].label), 100 * columns.zero,
                       chart::columns(columns, std::ceil(top * 20) / 20, "V-scores of " + data.stages[i].label));
  }
  if (out.empty()) return "";
  return "<h3>V-scores of single questions</h3>\n<p class=\"note\">Share of the questions by their V-score; the column "
         "apart stands for exactly 0 and may be cut off.</p><div class=\"small\">\n" +
         out + "</div>\n";
}

std::string render_reliability(const ReportData& data) {
  std::string out;
  for (std::size_t i = 0; i < data.stages.size(); ++i) {
    const auto found = reliability(data.stages[i].predictions);
    if (!found) continue;
    std::vector<chart::Spot> spots;
    for (const Reliability::Bin& bin : found->bins) {
      if (bin.count == 0) continue;
      spots.push_back({bin.confidence, bin.accuracy, static_cast<double>(bin.count) / static_cast<double>(found->count),
                       fmt::format("{}: confidence {:.2f}, {:.2f} right", plural(bin.count, "answer"), bin.confidence,
                                   bin.accuracy)});
    }
    out += fmt::format(
        "<figure><figcaption><b>{}</b><span>calibration error {:.3f}</span></figcaption>{}<p class=\"note\">{}: mean "
        "confidence {:.2f}, right {:.2f}</p></figure>\n",
        escape(data.stages[i].label), found->calibration_error,
        chart::spots(spots, static_cast<int>(i), "confidence and accuracy of " + data.stages[i].label),
        plural(found->count, "answer"), found->confidence, found->accuracy);
  }
  if (out.empty()) return "";
  return "<h3>Reliability of the answers</h3>\n<p class=\"note\">Share of right answers among those of about the same "
         "confidence (the probability that the model gave the words of its answer). Below the line: too sure.</p><div "
         "class=\"small\">\n" +
         out + "</div>\n";
}

std::string render_matrix(const Confusion& confusion) {
  std::string out = fmt::format("<div class=\"scroll\"><table class=\"matrix{}\"><thead><tr><th></th>",
                                confusion.columns.size() > 7 ? " many" : "");
  for (const std::string& column : confusion.columns) out += fmt::format("<th>{}</th>", escape(column));
  out += "<th>n</th></tr></thead><tbody>\n";
  for (std::size_t r = 0; r < confusion.rows.size(); ++r) {
    std::int64_t sum = 0;
    for (const std::int64_t count : confusion.counts[r]) sum += count;
    out += fmt::format("<tr><th scope=\"row\">{}</th>", escape(confusion.rows[r]));
    for (std::size_t c = 0; c < confusion.columns.size(); ++c) {
      const double share = sum > 0 ? static_cast<double>(confusion.counts[r][c]) / static_cast<double>(sum) : 0;
      const bool same = confusion.rows[r] == confusion.columns[c];
      out += fmt::format("<td class=\"{}\" style=\"--v:{:.3f}\" title=\"{}\">{}</td>",
                         confusion.counts[r][c] == 0 ? "none"
                         : same                      ? "same"
                                                     : "other",
                         share,
                         escape(fmt::format("{} named as {}: {} of {}", confusion.rows[r], confusion.columns[c],
                                            confusion.counts[r][c], sum)),
                         confusion.counts[r][c] == 0 ? std::string("\u00b7") : fmt::format("{:.0f}", 100 * share));
    }
    out += fmt::format("<td class=\"none\">{}</td></tr>\n", format_count(sum));
  }
  return out + "</tbody></table></div>\n";
}

std::string render_confusions(const ReportData& data) {
  constexpr std::size_t kMaxNames = 14;
  std::string sides, regions;
  std::size_t last = data.stages.size();
  for (std::size_t i = 0; i < data.stages.size(); ++i)
    if (!data.stages[i].predictions.empty()) last = i;
  for (std::size_t i = 0; i < data.stages.size(); ++i) {
    const Confusion side = side_confusion(data.stages[i].predictions);
    if (side.empty()) continue;
    sides += fmt::format("<figure><figcaption><b>{}{}</b></figcaption>{}</figure>\n", swatch(i),
                         escape(data.stages[i].label), render_matrix(side));
    regions += fmt::format("<details{}><summary>{}</summary>{}</details>\n", i == last ? " open" : "",
                           escape(data.stages[i].label),
                           render_matrix(region_confusion(data.stages[i].predictions, kMaxNames)));
  }
  if (sides.empty()) return "";
  return "<h3>Sides</h3>\n<p class=\"note\">Rows: what the reference points at; columns: what the model named instead, "
         "in "
         "percent of the row. Boxes are paired by their overlap. Left and right are the patient's.</p><div "
         "class=\"pair\">\n" +
         sides + "</div>\n<h3>Regions</h3>\n" + regions;
}

std::string render_boxes(const ReportData& data) {
  return "<section id=\"boxes\"><h2>Boxes and confidence</h2>\n" + render_histograms(data) + render_reliability(data) +
         render_confusions(data) + "</section>\n";
}

// ---- training

struct CurveTitle {
  std::string metric;
  std::string title;
};

// The curves that tell how a run went, in reading order; "*" stands for any name.
const std::vector<CurveTitle>& main_curves() {
  static const std::vector<CurveTitle> kCurves = {
      {"loss", "Loss"},
      {"reward", "Reward"},
      {"rewards/*/mean", "Reward: *"},
      {"kl", "KL to the reference model"},
      {"entropy", "Entropy"},
      {"completions/mean_length", "Completion length, tokens"},
      {"completions/clipped_ratio", "Completions cut, share"},
      {"frac_reward_zero_std", "Groups without signal, share"},
      {"grad_norm", "Gradient norm"},
      {"lr", "Learning rate"},
      {"tokens_per_second", "Tokens per second"},
  };
  return kCurves;
}

// What "*" of the pattern stands for in the name; nothing if they do not match.
std::optional<std::string> match_pattern(const std::string& pattern, const std::string& name) {
  const std::size_t star = pattern.find('*');
  if (star == std::string::npos) return pattern == name ? std::optional<std::string>("") : std::nullopt;
  const std::string head = pattern.substr(0, star), tail = pattern.substr(star + 1);
  if (name.size() <= head.size() + tail.size() || !name.starts_with(head) || !name.ends_with(tail)) return std::nullopt;
  return name.substr(head.size(), name.size() - head.size() - tail.size());
}

std::string render_curve(const std::string& metric, const std::string& title, const chart::Points& points) {
  const bool noisy = chart::is_noisy(points);
  const chart::Points shown = noisy ? chart::moving_average(points, chart::smoothing_half_width(points)) : points;
  return fmt::format("<figure><figcaption><b title=\"{}\">{}</b><span>{} at the end</span></figcaption>{}</figure>\n",
                     escape(metric), escape(title), html::number(shown.back().second),
                     chart::line(points, title + " over training steps"));
}

std::string render_warnings(const ReportTraining& training) {
  if (!training.curves.contains("reward")) return "";
  if (training.warnings.empty()) return "<p class=\"note\">Nothing in its metrics looks wrong.</p>\n";
  std::string out = "<ul class=\"warnings\">";
  for (const rewards::RunWarning& warning : training.warnings)
    out += fmt::format("<li data-warning=\"{}\"><b>step {}</b>{}</li>", escape(warning.name),
                       format_count(warning.step), escape(warning.text));
  return out + "</ul>\n";
}

std::string render_training(const ReportTraining& training, std::size_t index) {
  std::string out = fmt::format("<h3>{}</h3>\n", escape(training.label));
  if (!training.note.empty()) out += fmt::format("<p class=\"note\">{}</p>\n", escape(training.note));
  out += render_warnings(training);
  std::set<std::string> drawn;
  std::string curves;
  for (const CurveTitle& entry : main_curves()) {
    for (const auto& [metric, points] : training.curves) {
      const auto name = match_pattern(entry.metric, metric);
      if (!name || points.empty()) continue;
      drawn.insert(metric);
      std::string title = entry.title;
      if (const std::size_t star = title.find('*'); star != std::string::npos)
        title.replace(star, 1, html::spaced(*name));
      curves += render_curve(metric, title, points);
    }
  }
  if (!curves.empty()) out += "<div class=\"curves\">\n" + curves + "</div>\n";
  std::string others;
  int num_others = 0;
  for (const auto& [metric, points] : training.curves) {
    if (drawn.count(metric) || points.size() < 2) continue;
    others += render_curve(metric, metric, points);
    ++num_others;
  }
  if (num_others > 0)
    out += fmt::format("<details><summary>{}</summary><div class=\"curves\">\n{}</div></details>\n",
                       plural(num_others, "further logged metric"), others);
  if (training.curves.empty()) out += "<p class=\"note\">metrics.jsonl holds no steps yet.</p>\n";
  if (!training.watched.empty()) out += render_watched(training, index);
  return out;
}

std::string render_trainings(const ReportData& data) {
  std::string out =
      "<section id=\"training\"><h2>Training</h2>\n<p class=\"note\">Noisy curves: faint, each logged step; strong, "
      "the moving average over a twentieth of the run, whose end is the figure beside the title.</p>\n";
  for (std::size_t i = 0; i < data.trainings.size(); ++i) out += render_training(data.trainings[i], i);
  return out + "</section>\n";
}

// ---- runs

struct RunEntry {
  std::string label;
  std::string folder;
  const Json& manifest;
  std::string config;
  NamedTexts provenance = {};
};

std::string render_run(const RunEntry& run) {
  std::string out = fmt::format("<h3>{}</h3><dl class=\"kv\"><dt>folder</dt><dd><code>{}</code></dd>",
                                escape(run.label), escape(run.folder));
  for (const char* key : {"command", "version", "seed", "started"})
    if (const std::string text = manifest_text(run.manifest, key); !text.empty())
      out += fmt::format("<dt>{}</dt><dd>{}</dd>", key, escape(text));
  for (const auto& [name, value] : run.provenance) {
    if (name == "seed" || name == "version") continue;  // said above
    out += fmt::format("<dt>{}</dt><dd>{}</dd>", escape(html::spaced(name)), escape(value));
  }
  if (const std::string machine = machine_text(run.manifest); !machine.empty())
    out += fmt::format("<dt>machine</dt><dd>{}</dd>", escape(machine));
  if (run.manifest.is_object() && run.manifest.contains("inputs") && run.manifest["inputs"].is_object()) {
    for (const auto& [name, input] : run.manifest["inputs"].items()) {
      const std::string hash = manifest_text(input, "sha256");
      out += fmt::format("<dt>{}</dt><dd><code>{}{}</code></dd>", escape(name), escape(manifest_text(input, "path")),
                         hash.empty() ? "" : escape(" sha256 " + hash.substr(0, 16)));
    }
  }
  out += "</dl>\n";
  if (!run.config.empty())
    out += fmt::format("<details><summary>config.yaml</summary><pre>{}</pre></details>\n", escape(run.config));
  return out;
}

std::string render_runs(const ReportData& data) {
  std::string out = "<section id=\"runs\"><h2>Runs</h2>\n";
  for (const ReportTraining& training : data.trainings)
    out += render_run({training.label + " (training)", training.folder.string(), training.manifest, training.config});
  for (const ReportStage& stage : data.stages) {
    NamedTexts facts = stage.provenance;
    std::copy_if(stage.rules.begin(), stage.rules.end(), std::back_inserter(facts),
                 [](const auto& rule) { return is_of_run(rule.first); });
    out += render_run({stage.label + " (evaluation)", stage.folder.string(), stage.manifest, stage.config, facts});
  }
  return out + "</section>\n";
}

}  // namespace

std::string render_report(const ReportData& data) {
  std::string out = fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n<meta name=\"viewport\" "
      "content=\"width=device-width, initial-scale=1\">\n<meta name=\"generator\" content=\"thinkvg {}\">\n"
      "<title>{}</title>\n<style>{}</style></head>\n<body>\n",
      version(), escape(data.title), report_style(static_cast<int>(data.stages.size())));
  out += render_header(data) + "<main>\n";
  if (!data.stages.empty())
    out += render_scores(data) + render_comparisons(data) + render_rules(data) + "</section>\n" + render_types(data) +
           render_metrics(data) + render_detection(data) +
           render_metrics_by(data, question_types(data), &ReportScore::by_type) +
           render_metrics_by(data, content_names(data), &ReportScore::by_content) +
           render_groups(data, "By what the question is about", &ReportScore::by_content) +
           render_groups(data, "By region", &ReportScore::by_region) + (data.show_published ? render_published() : "") +
           render_copies(data) + "</section>\n";
  if (has_predictions(data)) out += render_boxes(data);
  if (!data.trainings.empty()) out += render_trainings(data);
  if (!data.cases.empty()) out += render_cases(data);
  out += render_runs(data);
  out += fmt::format("</main>\n<footer>Written by thinkvg {}.</footer>\n<script>{}</script>\n</body></html>\n",
                     version(), report_script());
  return out;
}

}  // namespace thinkvg::eval
