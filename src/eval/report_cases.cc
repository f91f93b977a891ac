#include "eval/report_cases.h"

#include <algorithm>
#include <cctype>
#include <set>
#include <string_view>

#include "eval/inline_boxes.h"
#include "thinkvg/core/error.h"
#include "thinkvg/core/html.h"
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
using html::kMissing;

constexpr std::size_t kMaxShownText = 4000;  // a model that runs wild must not fill the page
constexpr std::size_t kMaxShownAnswer = 600;

struct DrawnBox {
  std::size_t begin = 0, end = 0;  // of "[1, 2, 3, 4]" in the text
  Box box;
};

// The well-formed "[a, b, c, d]" of a text that are valid boxes.
std::vector<DrawnBox> find_drawn_boxes(std::string_view text, const BoxFrame& frame) {
  std::vector<DrawnBox> found;
  for (const InlineBox& inline_box : find_inline_boxes(text)) {
    const auto& [x1, y1, x2, y2] = inline_box.numbers;
    const Box box{x1, y1, x2, y2, frame};
    if (box.is_valid()) found.push_back({inline_box.begin, inline_box.end, box});
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
  for (const DrawnBox& inline_box : find_drawn_boxes(text, frame)) {
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

// "Reward 1.8: answer 1, grounding 0.8", each part with its reason; nothing where none was logged.
std::string render_rewards(const ReportPrediction& answer) {
  if (answer.rewards.empty()) return "";
  std::string out = "<p class=\"rewards\"><span class=\"label\">Reward</span>";
  if (answer.reward) out += fmt::format("<b>{}</b>", html::number(*answer.reward));
  for (const ReportReward& reward : answer.rewards)
    out += fmt::format("<span title=\"{}\">{} {}</span>", escape(reward.reason), escape(html::spaced(reward.name)),
                       reward.value ? html::number(*reward.value) : kMissing);
  return out + "</p>";
}

struct PanelPlace {
  std::string picture_id;  // of the case, unique on the page
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
      item.jpeg.empty()
          ? fmt::format("<rect class=\"canvas\" width=\"{}\" height=\"{}\"/>", shown.size.width, shown.size.height)
      : place.stage_index == 0 ? fmt::format(
                                     "<image id=\"{}\" width=\"{}\" height=\"{}\" preserveAspectRatio=\"none\" "
                                     "href=\"data:image/jpeg;base64,{}\"/>",
                                     place.picture_id, shown.size.width, shown.size.height, html::base64(item.jpeg))
                               : fmt::format("<use href=\"#{}\"/>", place.picture_id);
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

  if (!answer) return out + "<p class=\"note\">Not asked this question.</p></div></div></div>\n";
  out += render_rewards(*answer);
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

// What the filters look at: for each run, right (1), wrong (0) or not asked (-), and the V-score.
std::string filter_attributes(const ReportCase& item) {
  std::string verdicts, overlaps;
  for (const auto& answer : item.answers) {
    verdicts += !answer ? '-' : answer->is_right() ? '1' : '0';
    overlaps += overlaps.empty() ? "" : ",";
    if (answer && answer->v_score) overlaps += fmt::format("{:.3f}", *answer->v_score);
  }
  return fmt::format("data-type=\"{}\" data-content=\"{}\" data-right=\"{}\" data-iou=\"{}\"",
                     escape(item.reference.type), escape(item.reference.content_type), verdicts, overlaps);
}

std::string render_case(const ReportCase& item, const std::vector<std::string>& labels, const std::string& picture_id) {
  const ReportPrediction& question = item.reference;
  std::string out = fmt::format(
      "<article class=\"case\" {}>\n<div class=\"ask\"><div class=\"tags\"><span class=\"type\">{}</span>{}"
      "<span>question {}</span><span>{}</span></div>\n<p class=\"question\">{}</p>{}",
      filter_attributes(item), escape(html::spaced(question.type)),
      question.content_type.empty() ? "" : "<span>" + escape(question.content_type) + "</span>", escape(question.id),
      escape(question.image), escape(question.question), render_choices(question));
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
    out += render_panel(item, labels[i], {picture_id, i}, reference_steps);
  return out + "</div></article>\n";
}

std::string option(const std::string& value, const std::string& text) {
  return fmt::format("<option value=\"{}\">{}</option>", escape(value), escape(text));
}

std::string render_filters(const ReportData& data) {
  std::string types, contents, runs, others;
  std::set<std::string> seen;
  for (const ReportCase& item : data.cases) {
    if (seen.insert("type " + item.reference.type).second)
      types += option(item.reference.type, html::spaced(item.reference.type));
    const std::string& content = item.reference.content_type;
    if (!content.empty() && seen.insert("content " + content).second) contents += option(content, content);
  }
  const std::size_t num_runs = data.case_labels.size();
  for (std::size_t i = num_runs; i-- > 0;) runs += option(std::to_string(i), data.case_labels[i]);
  for (std::size_t i = 0; i < num_runs; ++i) others += option(std::to_string(i), data.case_labels[i]);
  std::string out = "<div class=\"filters\" hidden><label>Type <select name=\"type\"><option value=\"\">all</option>" +
                    types + "</select></label>";
  if (!contents.empty())
    out += "<label>About <select name=\"content\"><option value=\"\">all</option>" + contents + "</select></label>";
  out += "<label>Run <select name=\"run\">" + runs +
         "</select></label><label>is <select name=\"verdict\"><option value=\"\">right or wrong</option>"
         "<option value=\"1\">right</option><option value=\"0\">wrong</option></select></label>"
         "<label>IoU <input name=\"low\" type=\"number\" min=\"0\" max=\"1\" step=\"0.05\" value=\"0\" "
         "aria-label=\"IoU from\">to<input name=\"high\" type=\"number\" min=\"0\" max=\"1\" step=\"0.05\" "
         "value=\"1\" aria-label=\"IoU to\"></label>";
  if (num_runs > 1)
    out += "<label>unlike <select name=\"other\"><option value=\"\">any</option>" + others + "</select></label>";
  return out + "<output></output></div>\n";
}

}  // namespace

std::string render_cases(const ReportData& data) {
  const std::string judge = escape(data.case_labels.back());
  const bool has_other = data.case_labels.size() > 1;
  std::string out = fmt::format(
      "<section id=\"cases\"><h2>Cases</h2>\n<p class=\"note\">{} of {}, drawn by a fixed seed, balanced by question "
      "type{} by whether {} is right{}; their shares therefore say nothing about the scores. Where answers are not "
      "graded (open questions), right means a V-score of at least 0.5; unlike another run means another verdict or a "
      "V-score that differs by 0.25. Point at a marked region to see its box; regions of the reasoning are hidden "
      "until then.</p>\n"
      "<div class=\"legend\"><span><i class=\"key ref\"></i>reference box</span><span><i class=\"key\"></i>predicted "
      "box</span></div>\n",
      html::plural(static_cast<std::int64_t>(data.cases.size()), "question"), format_count(data.num_case_candidates),
      has_other ? "," : " and", judge, has_other ? ", and by whether the run before it is, too" : "");
  if (std::all_of(data.cases.begin(), data.cases.end(), [](const ReportCase& item) { return item.jpeg.empty(); }))
    out +=
        "<p class=\"note\">These runs do not know their pictures: boxes are drawn on an empty canvas. thinkvg report "
        "--images ROOT shows them.</p>\n";
  out += render_filters(data);
  for (std::size_t i = 0; i < data.cases.size(); ++i)
    out += render_case(data.cases[i], data.case_labels, fmt::format("picture-{}", i));
  return out + "</section>\n";
}

std::string render_watched(const ReportTraining& training, std::size_t index) {
  std::string out =
      "<h4 class=\"part\">The same questions over time</h4>\n<p class=\"note\">Answered with the likeliest tokens; "
      "each part of the "
      "reward shows its reason when pointed at.</p>\n<div class=\"legend\"><span><i class=\"key ref\"></i>reference "
      "box</span><span><i class=\"key\"></i>predicted box</span></div>\n";
  for (std::size_t i = 0; i < training.watched.size(); ++i)
    out += render_case(training.watched[i], training.watched_labels, fmt::format("watched-{}-{}", index, i));
  return out;
}

}  // namespace thinkvg::eval
