#include "thinkvg/eval/report.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <set>
#include <string_view>

#include "eval/chart.h"
#include "eval/html.h"
#include "eval/report_style.h"
#include "thinkvg/core/error.h"
#include "thinkvg/core/manifest.h"
#include "thinkvg/core/progress.h"
#include "thinkvg/grounding/geometry.h"
#include "thinkvg/grounding/response.h"

namespace thinkvg::eval {
namespace {

using grounding::Box;
using grounding::BoxFrame;
using grounding::ImageGeometry;
using grounding::Region;
using html::escape;

constexpr std::size_t kMaxShownText = 4000;  // a model that runs wild must not fill the page
constexpr std::size_t kMaxShownAnswer = 600;

constexpr const char* kMissing = "<span class=\"muted\">\u2013</span>";

std::string swatch(std::size_t stage) { return fmt::format("<span class=\"swatch s{}\"></span>", stage); }

std::string plural(std::int64_t count, const std::string& noun) {
  return fmt::format("{} {}{}", format_count(count), noun, count == 1 ? "" : "s");
}

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
  if (!data.stages.empty()) out += "<a href=\"#scores\">Scores</a><a href=\"#types\">By question type</a>";
  if (!data.trainings.empty()) out += "<a href=\"#training\">Training</a>";
  if (!data.cases.empty()) out += "<a href=\"#cases\">Cases</a>";
  return out + "<a href=\"#runs\">Runs</a></nav></header>\n";
}

// ---- scores

std::string cell(const ReportValue* value) {
  if (!value) return fmt::format("<td>{}</td>", kMissing);
  std::string interval;
  if (value->low && value->high)
    interval = fmt::format("<span class=\"ci\">{:.3f}\u2013{:.3f}</span>", *value->low, *value->high);
  return fmt::format("<td>{:.3f}{}</td>", value->mean, interval);
}

std::string cell(const std::optional<ReportValue>& value) { return cell(value ? &*value : nullptr); }

std::string render_rules(const ReportData& data) {
  // Stages scored by the same rules share one list.
  std::vector<std::pair<std::string, const ReportStage*>> groups;
  for (const ReportStage& stage : data.stages) {
    if (stage.rules.empty()) continue;
    const auto same = std::find_if(groups.begin(), groups.end(),
                                   [&](const auto& group) { return group.second->rules == stage.rules; });
    if (same == groups.end())
      groups.emplace_back(stage.label, &stage);
    else
      same->first += ", " + stage.label;
  }
  std::string out;
  for (const auto& [labels, stage] : groups) {
    out += fmt::format("<details><summary>Scoring rules{}</summary><dl class=\"kv\">",
                       groups.size() > 1 ? ": " + escape(labels) : "");
    for (const auto& [name, value] : stage->rules)
      out += fmt::format("<dt>{}</dt><dd>{}</dd>", escape(html::spaced(name)), escape(value));
    out += "</dl></details>\n";
  }
  if (groups.size() > 1)
    out += "<p class=\"note\">The stages were scored by different rules: their figures are not comparable.</p>\n";
  return out;
}

std::string render_scores(const ReportData& data) {
  const bool with_f1 = std::any_of(data.stages.begin(), data.stages.end(),
                                   [](const ReportStage& stage) { return stage.token_f1.overall.has_value(); });
  std::string out = fmt::format(
      "<section id=\"scores\"><h2>Scores</h2>\n<p class=\"note\">A-score: share of right answers. V-score: overlap "
      "(IoU) of predicted and reference boxes. Both from 0 to 1, a response that cannot be parsed counts 0; below "
      "each figure its 95\u00a0% interval.</p>\n<div class=\"scroll\"><table><thead><tr><th class=\"wide\">Stage</th>"
      "<th>A-score</th><th>V-score</th><th>Mean of both</th>{}<th>Parse "
      "rate</th><th>Questions</th></tr></thead><tbody>\n",
      with_f1 ? "<th>Open answers,<br>token F1</th>" : "");
  bool same_count = true;
  for (std::size_t i = 0; i < data.stages.size(); ++i) {
    const ReportStage& stage = data.stages[i];
    same_count = same_count && stage.num_questions == data.stages[0].num_questions;
    out +=
        fmt::format("<tr><th class=\"wide\" scope=\"row\">{}{}{}</th>", swatch(i), escape(stage.label),
                    stage.note.empty() ? "" : fmt::format("<span class=\"stage-note\">{}</span>", escape(stage.note)));
    out += cell(stage.a_score.overall) + cell(stage.v_score.overall) + cell(stage.mean_score.overall);
    if (with_f1) out += cell(stage.token_f1.overall);
    const auto& parsed = stage.parse_rate.overall;
    out += parsed ? fmt::format("<td>{:.3f}</td>", parsed->mean) : fmt::format("<td>{}</td>", kMissing);
    out += fmt::format(
        "<td>{}{}</td></tr>\n", format_count(stage.num_questions),
        stage.num_images > 0 ? fmt::format("<span class=\"ci\">{}</span>", plural(stage.num_images, "picture")) : "");
  }
  out += "</tbody></table></div>\n";
  if (!same_count)
    out += "<p class=\"note\">The stages were asked different numbers of questions: compare them with care.</p>\n";
  return out;
}

std::string difference_cell(const std::optional<ReportValue>& value, double extent) {
  if (!value) return fmt::format("<td>{}</td>", kMissing);
  std::string interval, reading;
  if (value->low && value->high) {
    interval = fmt::format("<span class=\"ci\">{:+.3f} to {:+.3f}</span>", *value->low, *value->high);
    reading = *value->low > 0 ? "above 0" : *value->high < 0 ? "below 0" : "includes 0";
  }
  return fmt::format("<td>{:+.3f}{}<span class=\"ci\">{} {}</span></td>", value->mean, interval, reading,
                     chart::difference({value->mean, value->low, value->high}, extent));
}

// Of one row, so that a small difference is not flattened by a large one in another row.
double difference_extent(const ReportComparison& comparison) {
  double extent = 0.01;
  for (const auto& value : {comparison.a_score, comparison.v_score, comparison.mean})
    if (value)
      extent = std::max(
          {extent, std::abs(value->mean), std::abs(value->low.value_or(0)), std::abs(value->high.value_or(0))});
  return extent;
}

std::string render_comparisons(const ReportData& data) {
  if (data.comparisons.empty()) return "";
  std::string out =
      "<h3>Paired differences</h3>\n<p class=\"note\">Both stages on the same questions; the interval is of the "
      "difference itself, and may exclude 0 where the intervals above overlap. Each row has its own scale.</p>\n<div "
      "class=\"scroll\"><table>"
      "<thead><tr><th class=\"wide\">Comparison</th><th>A-score</th><th>V-score</th><th>Mean of both</th></tr></thead>"
      "<tbody>\n";
  for (const ReportComparison& comparison : data.comparisons) {
    out += fmt::format(
        "<tr><th class=\"wide\" scope=\"row\">{}{}</th>", escape(comparison.label),
        comparison.note.empty() ? "" : fmt::format("<span class=\"stage-note\">{}</span>", escape(comparison.note)));
    const double extent = difference_extent(comparison);
    out += difference_cell(comparison.a_score, extent) + difference_cell(comparison.v_score, extent) +
           difference_cell(comparison.mean, extent) + "</tr>\n";
  }
  return out + "</tbody></table></div>\n";
}

struct ScoreColumn {
  const char* title;
  ReportScore ReportStage::*score;
};
constexpr ScoreColumn kBothScores[] = {{"A-score", &ReportStage::a_score}, {"V-score", &ReportStage::v_score}};

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
  const auto count_cell = [](std::int64_t count) {
    return count > 0 ? fmt::format("<td>{}</td>", format_count(count)) : fmt::format("<td>{}</td>", kMissing);
  };
  for (const std::string& type : types) {
    out += fmt::format("<tr><th scope=\"row\">{}</th>", escape(html::spaced(type)));
    std::int64_t count = 0;
    for (const ReportStage& stage : data.stages) {
      const ReportValue* value = (stage.*column.score).find(type);
      if (value) count = value->n;
      out += cell(value);
    }
    out += count_cell(count) + "</tr>\n";
  }
  out += "<tr class=\"total\"><th scope=\"row\">all</th>";
  std::int64_t count = 0;
  for (const ReportStage& stage : data.stages) {
    const auto& value = (stage.*column.score).overall;
    if (value) count = value->n;
    out += cell(value);
  }
  return out + count_cell(count) + "</tr>\n</tbody></table></div>\n";
}

std::string render_types(const ReportData& data) {
  const std::vector<std::string> types = question_types(data);
  std::string out = "<section id=\"types\"><h2>By question type</h2>\n<div class=\"legend\">";
  for (std::size_t i = 0; i < data.stages.size(); ++i)
    out += fmt::format("<span>{}{}</span>", swatch(i), escape(data.stages[i].label));
  out += "</div>\n<div class=\"pair charts\">";
  for (const ScoreColumn& column : kBothScores) out += render_bars(data, column, types);
  out += "</div>\n<p class=\"note\">Whiskers are 95\u00a0% intervals.</p>\n<div class=\"pair\">";
  for (const ScoreColumn& column : kBothScores) out += render_type_table(data, column, types);
  return out + "</div></section>\n";
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

std::string render_training(const ReportTraining& training) {
  std::string out = fmt::format("<h3>{}</h3>\n", escape(training.label));
  if (!training.note.empty()) out += fmt::format("<p class=\"note\">{}</p>\n", escape(training.note));
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
  return out;
}

std::string render_trainings(const ReportData& data) {
  std::string out =
      "<section id=\"training\"><h2>Training</h2>\n<p class=\"note\">Noisy curves: faint, each logged step; strong, "
      "the moving average over a twentieth of the run, whose end is the figure beside the title.</p>\n";
  for (const ReportTraining& training : data.trainings) out += render_training(training);
  return out + "</section>\n";
}

// ---- cases

struct InlineBox {
  std::size_t begin = 0, end = 0;  // of "[1, 2, 3, 4]" in the text
  Box box;
};

// The well-formed "[a, b, c, d]" of a text that are valid boxes.
std::vector<InlineBox> find_inline_boxes(std::string_view text, const BoxFrame& frame) {
  std::vector<InlineBox> found;
  const auto skip_spaces = [&](std::size_t at) {
    while (at < text.size() && (text[at] == ' ' || text[at] == '\n' || text[at] == '\t')) ++at;
    return at;
  };
  for (std::size_t open = text.find('['); open != std::string_view::npos; open = text.find('[', open + 1)) {
    double numbers[4];
    std::size_t at = open + 1;
    int count = 0;
    for (; count < 4; ++count) {
      at = skip_spaces(at);
      const auto [stop, error] = std::from_chars(text.data() + at, text.data() + text.size(), numbers[count]);
      if (error != std::errc()) break;
      at = skip_spaces(static_cast<std::size_t>(stop - text.data()));
      if (at >= text.size() || text[at] != (count < 3 ? ',' : ']')) break;
      ++at;
    }
    if (count < 4) continue;
    const Box box{numbers[0], numbers[1], numbers[2], numbers[3], frame};
    if (box.is_valid()) found.push_back({open, at, box});
  }
  return found;
}

// How a group of boxes is named on the page (data-r) and looks.
struct BoxStyle {
  std::string prefix;  // data-r is prefix + index
  const char* rect_class;
  const char* mark_class;  // "" or "ref"
};

struct Reasoning {
  std::string html;
  std::vector<Region> regions;
};

// The reasoning with each inline region, its name included, as a mark that points at its box.
Reasoning render_reasoning(const std::string& think, const BoxFrame& frame, const BoxStyle& style) {
  const std::string text = html::shorten(think, kMaxShownText);
  // The parser knows where a region's name begins in the words before its box.
  const std::vector<Region> named = grounding::parse_response("<think>" + text + "</think>", frame).think_regions;
  Reasoning out;
  std::size_t done = 0, next_named = 0;
  for (const InlineBox& inline_box : find_inline_boxes(text, frame)) {
    std::string name;
    for (std::size_t k = next_named; k < named.size(); ++k) {
      if (!(named[k].box == inline_box.box)) continue;
      name = named[k].name;
      next_named = k + 1;
      break;
    }
    std::size_t begin = inline_box.begin, end = inline_box.end;
    if (const std::size_t bracket = text.rfind('(', begin); bracket != std::string::npos && bracket >= done &&
                                                            begin - bracket < 12 && end < text.size() &&
                                                            text[end] == ')') {
      begin = bracket;
      ++end;
    }
    const std::size_t at = name.empty() ? std::string::npos : text.rfind(name, begin);
    // Only words right before the box belong to it.
    const bool joined =
        at != std::string::npos && at >= done && at + name.size() <= begin && begin - at <= name.size() + 2;
    const std::size_t start = joined ? at : begin;
    out.html += escape(std::string_view(text).substr(done, start - done));
    out.html += fmt::format("<mark class=\"{}\" data-r=\"{}{}\" tabindex=\"0\">{}<span class=\"at\">{}</span></mark>",
                            style.mark_class, style.prefix, out.regions.size(),
                            escape(std::string_view(text).substr(start, begin - start)),
                            escape(std::string_view(text).substr(begin, end - begin)));
    out.regions.push_back({name, inline_box.box});
    done = end;
  }
  out.html += escape(std::string_view(text).substr(done));
  return out;
}

std::string render_rects(const std::vector<Region>& regions, const ImageGeometry& geometry, const BoxStyle& style,
                         bool with_halo) {
  std::string out;
  for (std::size_t k = 0; k < regions.size(); ++k) {
    const Box box = geometry.clip(geometry.convert(regions[k].box, BoxFrame::original()));
    if (!box.is_valid()) continue;
    const std::string place = fmt::format("x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\"", box.x1,
                                          box.y1, box.x2 - box.x1, box.y2 - box.y1);
    if (with_halo) out += fmt::format("<rect class=\"halo\" {}/>", place);
    out += fmt::format("<rect class=\"{}\" data-r=\"{}{}\" {}><title>{}</title></rect>", style.rect_class, style.prefix,
                       k, place, escape(regions[k].name));
  }
  return out;
}

const BoxStyle kReferenceBoxes = {"r", "ref", "ref"};
const BoxStyle kReferenceSteps = {"t", "gold-step", "ref"};

std::string render_choices(const ReportPrediction& question) {
  if (question.choices.empty()) return "";
  const auto is_letter = [](char c) { return c >= 'A' && c <= 'Z'; };
  // Letters that stand alone in the reference answer.
  std::set<char> letters;
  const std::string& answer = question.reference_answer;
  for (std::size_t i = 0; i < answer.size(); ++i)
    if (is_letter(answer[i]) && (i == 0 || !std::isalnum(static_cast<unsigned char>(answer[i - 1]))) &&
        (i + 1 == answer.size() || !std::isalnum(static_cast<unsigned char>(answer[i + 1]))))
      letters.insert(answer[i]);
  std::string out = "<ul class=\"choices\">";
  for (const std::string& choice : question.choices)
    out += fmt::format("<li{}>{}</li>",
                       choice.size() > 1 && choice[1] == ':' && letters.count(choice[0]) ? " class=\"is-answer\"" : "",
                       escape(choice));
  return out + "</ul>";
}

std::string verdict_text(const ReportPrediction& answer) {
  const bool right = answer.is_right();
  const char* what = answer.a_score ? (right ? "\u2713 right" : "\u2717 wrong")
                                    : (right ? "\u2713 boxes right" : "\u2717 boxes wrong");
  return fmt::format("<span class=\"verdict {}\">{}</span>", right ? "right" : "wrong", what);
}

std::string render_box_list(const ReportPrediction& answer, const BoxStyle& style) {
  if (answer.regions.empty()) return "<p class=\"note\">No boxes predicted.</p>";
  const ImageGeometry geometry(answer.size);
  std::string out = "<ul class=\"boxes\">";
  for (std::size_t k = 0; k < answer.regions.size(); ++k) {
    double best = 0;
    for (const Region& reference : answer.reference_regions)
      best = std::max(best, grounding::iou(answer.regions[k].box, geometry.convert(reference.box, answer.frame)));
    out += fmt::format("<li><mark data-r=\"{}{}\" tabindex=\"0\">{}</mark> <span class=\"iou\">{}</span></li>",
                       style.prefix, k, escape(answer.regions[k].name.empty() ? "box" : answer.regions[k].name),
                       answer.reference_regions.empty() ? "" : fmt::format("IoU {:.2f}", best));
  }
  return out + "</ul>";
}

struct PanelPlace {
  std::size_t case_index;
  std::size_t stage_index;
};

std::string render_panel(const ReportCase& item, const std::string& label, const PanelPlace& place,
                         const Reasoning& reference_steps) {
  const auto& answer = item.answers[place.stage_index];
  const ReportPrediction& shown = item.reference;
  const ImageGeometry geometry(shown.size);
  std::string out = fmt::format("<div class=\"panel\"><div class=\"panel-head\"><h4>{}</h4>", escape(label));
  if (answer) {
    out += verdict_text(*answer);
    if (answer->v_score) out += fmt::format("<span class=\"score\">V-score {:.2f}</span>", *answer->v_score);
  }
  out += "</div>\n<div class=\"panel-body\">";

  const BoxStyle boxes{fmt::format("p{}-", place.stage_index), "pred", ""};
  const BoxStyle steps{fmt::format("s{}-", place.stage_index), "step", ""};
  Reasoning reasoning;
  if (answer && !answer->think.empty()) reasoning = render_reasoning(answer->think, answer->frame, steps);

  // The picture's bytes stand once a case; the other panels use them.
  const std::string picture =
      place.stage_index == 0 ? fmt::format(
                                   "<image id=\"picture-{}\" width=\"{}\" height=\"{}\" preserveAspectRatio=\"none\" "
                                   "href=\"data:image/jpeg;base64,{}\"/>",
                                   place.case_index, shown.size.width, shown.size.height, html::base64(item.jpeg))
                             : fmt::format("<use href=\"#picture-{}\"/>", place.case_index);
  out += fmt::format(
      "<svg class=\"picture\" viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"picture with {} reference and {} "
      "predicted "
      "boxes\">{}",
      shown.size.width, shown.size.height, shown.reference_regions.size(), answer ? answer->regions.size() : 0,
      picture);
  out += render_rects(shown.reference_regions, geometry, kReferenceBoxes, true);
  if (answer) {
    const ImageGeometry own(answer->size);
    out += render_rects(answer->regions, own, boxes, true) + render_rects(reasoning.regions, own, steps, false);
  }
  out += render_rects(reference_steps.regions, geometry, kReferenceSteps, false) + "</svg>\n<div>";

  if (!answer) return out + "<p class=\"note\">This stage was not asked this question.</p></div></div></div>\n";
  if (!answer->complete)
    out += fmt::format("<p class=\"problem\">Incomplete response: {}</p>",
                       escape(answer->problem.empty() ? "no reason given" : answer->problem));
  out += fmt::format("<p class=\"said\"><span class=\"label\">Answer</span><b>{}</b></p>",
                     answer->answer.empty() ? kMissing : escape(html::shorten(answer->answer, kMaxShownAnswer)));
  out += render_box_list(*answer, boxes);
  if (!reasoning.html.empty()) out += fmt::format("<p class=\"think\">{}</p>", reasoning.html);
  if (!answer->complete || (answer->answer.empty() && answer->think.empty()))
    out += fmt::format("<details><summary>Whole response</summary><pre>{}</pre></details>",
                       escape(html::shorten(answer->response, kMaxShownText)));
  return out + "</div></div></div>\n";
}

std::string render_case(const ReportData& data, std::size_t index) {
  const ReportCase& item = data.cases[index];
  const ReportPrediction& question = item.reference;
  std::set<bool> verdicts;
  for (const auto& answer : item.answers)
    if (answer) verdicts.insert(answer->is_right());
  std::string out = fmt::format(
      "<article class=\"case\" data-type=\"{}\" data-verdict=\"{}\" data-changed=\"{}\">\n<div class=\"ask\"><div "
      "class=\"tags\"><span class=\"type\">{}</span><span>question {}</span><span>{}</span></div>\n<p "
      "class=\"question\">{}</p>{}",
      escape(question.type), question.is_right() ? "right" : "wrong", verdicts.size() > 1 ? 1 : 0,
      escape(html::spaced(question.type)), escape(question.id), escape(question.image), escape(question.question),
      render_choices(question));
  out += fmt::format("<p class=\"gold\"><span class=\"label\">Reference answer</span><b>{}</b>",
                     escape(html::shorten(question.reference_answer, kMaxShownAnswer)));
  for (std::size_t k = 0; k < question.reference_regions.size(); ++k)
    out += fmt::format(" &#8195;<mark class=\"ref\" data-r=\"r{}\" tabindex=\"0\">{}</mark>", k,
                       escape(question.reference_regions[k].name.empty() ? "box" : question.reference_regions[k].name));
  out += "</p>";
  Reasoning reference_steps;
  if (!question.reference_think.empty()) {
    reference_steps = render_reasoning(question.reference_think, question.frame, kReferenceSteps);
    out += fmt::format("<details><summary>Reference reasoning</summary><p class=\"think\">{}</p></details>",
                       reference_steps.html);
  }
  out += "</div>\n<div class=\"panels\">";
  for (std::size_t i = 0; i < item.answers.size(); ++i)
    out += render_panel(item, data.case_labels[i], {index, i}, reference_steps);
  return out + "</div></article>\n";
}

std::string render_cases(const ReportData& data) {
  std::string options;
  std::set<std::string> seen;
  for (const ReportCase& item : data.cases)
    if (seen.insert(item.reference.type).second)
      options += fmt::format("<option value=\"{}\">{}</option>", escape(item.reference.type),
                             escape(html::spaced(item.reference.type)));
  const std::string judge = escape(data.case_labels.back());
  std::string out = fmt::format(
      "<section id=\"cases\"><h2>Cases</h2>\n<p class=\"note\">{} of {}, drawn by a fixed seed, balanced by question "
      "type and by whether {} is right; their shares therefore say nothing about the scores. Where answers are not "
      "graded (open questions), right means a V-score of at least 0.5. Point at a marked region to see its box; "
      "regions of the reasoning are hidden until then.</p>\n"
      "<div class=\"legend\"><span><i class=\"key ref\"></i>reference box</span><span><i class=\"key\"></i>predicted "
      "box</span></div>\n",
      plural(static_cast<std::int64_t>(data.cases.size()), "question"), format_count(data.num_case_candidates), judge);
  out += fmt::format(
      "<div class=\"filters\" hidden><label>Type <select name=\"type\"><option value=\"\">all</option>{}</select>"
      "</label><label>{} is <select name=\"verdict\"><option value=\"\">right or wrong</option><option "
      "value=\"right\">right</option><option "
      "value=\"wrong\">wrong</option>{}</select></label><output></output></div>\n",
      options, judge, data.case_labels.size() > 1 ? "<option value=\"changed\">unlike another stage</option>" : "");
  for (std::size_t i = 0; i < data.cases.size(); ++i) out += render_case(data, i);
  return out + "</section>\n";
}

// ---- runs

struct RunEntry {
  std::string label;
  std::string folder;
  const Json& manifest;
  std::string config;
};

std::string render_run(const RunEntry& run) {
  std::string out = fmt::format("<h3>{}</h3><dl class=\"kv\"><dt>folder</dt><dd><code>{}</code></dd>",
                                escape(run.label), escape(run.folder));
  for (const char* key : {"command", "version", "seed", "started"})
    if (const std::string text = manifest_text(run.manifest, key); !text.empty())
      out += fmt::format("<dt>{}</dt><dd>{}</dd>", key, escape(text));
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
  for (const ReportStage& stage : data.stages)
    out += render_run({stage.label + " (evaluation)", stage.folder.string(), stage.manifest, stage.config});
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
    out += render_scores(data) + render_comparisons(data) + render_rules(data) + "</section>\n" + render_types(data);
  if (!data.trainings.empty()) out += render_trainings(data);
  if (!data.cases.empty()) out += render_cases(data);
  out += render_runs(data);
  out += fmt::format("</main>\n<footer>Written by thinkvg {}.</footer>\n<script>{}</script>\n</body></html>\n",
                     version(), report_script());
  return out;
}

}  // namespace thinkvg::eval
