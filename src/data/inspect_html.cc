#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <map>
#include <optional>

#include "thinkvg/core/html.h"
#include "thinkvg/core/progress.h"
#include "thinkvg/data/images.h"
#include "thinkvg/data/inspect.h"
#include "thinkvg/grounding/geometry.h"
#include "thinkvg/grounding/response.h"
#include "thinkvg/image/picture.h"

namespace thinkvg::data {
namespace {

using grounding::Box;
using grounding::BoxFrame;
using grounding::ImageGeometry;
using grounding::ImageSize;
using grounding::Region;
using html::base64;
using html::escape;
using html::spaced;

constexpr std::int64_t kThumbnailSide = 560;
constexpr std::array<const char*, 8> kColors = {"#ffb000", "#4cc9f0", "#ff5d8f", "#80ed99",
                                                "#c77dff", "#f9f871", "#ff7b54", "#9bb1ff"};

constexpr const char* kStyle = R"css(
:root{color-scheme:light dark;--ink:#1b2430;--soft:#5b6878;--line:#dfe4ea;--page:#f5f7f9;--card:#fff;--bar:#3b6fb6;--bad:#b3261e;--warn:#9a6700;--note:#63707f;--good:#1a7f4b;--wrong:#b3261e}
@media screen and (prefers-color-scheme:dark){:root{--ink:#e3e8ee;--soft:#9aa6b4;--line:#2b333d;--page:#11151a;--card:#191f26;--bar:#6f9fe0;--good:#4fc48a;--wrong:#ff8a80}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1180px;margin:0 auto;padding:28px 24px 80px}
h1{font-size:26px;margin:0 0 2px}h2{font-size:19px;margin:38px 0 12px;padding-top:10px;border-top:1px solid var(--line)}h3{font-size:15px;margin:0 0 8px}
.sub{color:var(--soft);margin:0 0 18px;overflow-wrap:anywhere}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(165px,1fr));gap:12px}
.tile,.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:14px 16px}
.tile b{display:block;font-size:23px;line-height:1.25;font-variant-numeric:tabular-nums}.tile span{color:var(--soft);font-size:13px}
.tile.good{border-left:4px solid var(--good)}.tile.bad{border-left:4px solid var(--bad)}
table{border-collapse:collapse;width:100%;background:var(--card);border:1px solid var(--line);border-radius:8px;overflow:hidden}
th,td{text-align:left;padding:6px 12px;border-bottom:1px solid var(--line);vertical-align:middle;overflow-wrap:anywhere}
th{font-size:12.5px;color:var(--soft);font-weight:600}tr:last-child td{border-bottom:0}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.wide{overflow-x:auto}.frames td,.frames th{overflow-wrap:normal}.frames b{white-space:nowrap}.frames th.n{white-space:normal}
.level{display:inline-block;min-width:64px;white-space:nowrap;text-align:center;border-radius:10px;padding:1px 9px;font-size:12px;font-weight:600;color:#fff}
.error{background:var(--bad)}.warning{background:var(--warn)}.note{background:var(--note)}
.findings td:first-child{width:1%}.findings td.n{width:1%}.findings small{display:block;color:var(--soft);margin-top:2px}
.grid{columns:330px;column-gap:14px}.grid>.card{break-inside:avoid;margin:0 0 14px}
.bars td{padding:4px 12px}.bars i{display:block;height:12px;background:var(--bar);border-radius:2px;min-width:1px}
.bars td.w{width:45%}
details{background:var(--card);border:1px solid var(--line);border-radius:8px;margin:8px 0}
summary{cursor:pointer;padding:9px 14px;font-weight:600}summary em{font-style:normal;color:var(--soft);font-weight:400}
details table{border:0;border-top:1px solid var(--line);border-radius:0}
.examples{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(360px,100%),1fr));gap:16px}
.example{background:var(--card);border:1px solid var(--line);border-radius:8px;overflow:hidden}
.example figure{margin:0;background:#0c1117}.example figure+figure{border-top:1px solid #2b333d}.example svg{display:block;width:100%;height:auto;max-height:480px}
.example div{padding:10px 14px 14px}.example .id{color:var(--soft);font-size:12.5px;overflow-wrap:anywhere}
.example p{margin:6px 0 0}.example ul{margin:6px 0 0;padding-left:0;list-style:none}.example li.chosen{font-weight:600;color:var(--good)}
.legend{display:flex;flex-wrap:wrap;gap:4px 12px;font-size:12.5px;margin-top:8px}.legend span::before{content:"";display:inline-block;width:11px;height:11px;border-radius:2px;margin-right:5px;background:var(--c);vertical-align:-1px;border:1px solid #0003}
.think{font-size:13px;color:var(--soft);max-height:9.2em;overflow:auto}.wrong{color:var(--wrong);font-size:13px;overflow-wrap:anywhere}
.hist{width:100%;height:96px;display:block}.hist rect{fill:var(--bar)}.axis{display:flex;justify-content:space-between;color:var(--soft);font-size:12px}
.facts{color:var(--soft);font-size:13px;margin:6px 0 0}
@media(max-width:600px){main{padding:18px 12px 60px}.tiles{grid-template-columns:repeat(auto-fit,minmax(130px,1fr))}th,td{padding:6px 8px}}
)css";

std::string count_text(const Json& value) { return format_count(value.get<std::int64_t>()); }

std::string tile(const std::string& value, const std::string& label, const char* kind = "") {
  return fmt::format("<div class=\"tile {}\"><b>{}</b><span>{}</span></div>", kind, escape(value), escape(label));
}

// Names with counts, the largest first, at most `rows` of them.
std::string bars(const std::string& title, const Json& counts, std::size_t rows) {
  double largest = 1, total = 0;
  for (const auto& item : counts.items()) {
    largest = std::max(largest, item.value().get<double>());
    total += item.value().get<double>();
  }
  std::string out =
      fmt::format("<div class=\"card\"><h3>{}</h3><table class=\"bars\" style=\"border:0\">", escape(title));
  std::size_t shown = 0;
  for (const auto& item : counts.items()) {
    if (shown++ == rows) break;
    out +=
        fmt::format("<tr><td>{}</td><td class=\"n\">{}</td><td class=\"w\"><i style=\"width:{:.1f}%\"></i></td></tr>",
                    escape(spaced(item.key())), count_text(item.value()), 100 * item.value().get<double>() / largest);
  }
  out += "</table>";
  if (counts.size() > rows) out += fmt::format("<p class=\"facts\">and {} more</p>", counts.size() - rows);
  return out + "</div>";
}

std::string histogram(const std::string& title, const Json& distribution) {
  std::string out = fmt::format("<div class=\"card\"><h3>{}</h3>", escape(title));
  if (!distribution.contains("histogram")) return out + "<p class=\"facts\">none</p></div>";
  const Json& h = distribution["histogram"];
  const std::size_t columns = h["counts"].size();
  double largest = 1;
  for (const Json& count : h["counts"]) largest = std::max(largest, count.get<double>());
  out += fmt::format("<svg class=\"hist\" viewBox=\"0 0 {} 100\" preserveAspectRatio=\"none\" role=\"img\">",
                     columns * 10);
  for (std::size_t i = 0; i < columns; ++i) {
    const double value = h["counts"][i].get<double>(), height = value > 0 ? std::max(1.0, 100 * value / largest) : 0;
    const std::int64_t low =
        h["first"].get<std::int64_t>() + static_cast<std::int64_t>(i) * h["width"].get<std::int64_t>();
    out += fmt::format("<rect x=\"{}\" y=\"{:.2f}\" width=\"9\" height=\"{:.2f}\"><title>{} to {}: {}</title></rect>",
                       i * 10, 100 - height, height, low, low + h["width"].get<std::int64_t>() - 1, value);
  }
  const std::int64_t last =
      h["first"].get<std::int64_t>() + static_cast<std::int64_t>(columns) * h["width"].get<std::int64_t>() - 1;
  out += fmt::format("</svg><div class=\"axis\"><span>{}</span><span>{}{}</span></div>", format_count(h["first"]),
                     format_count(last), distribution["max"].get<std::int64_t>() > last ? " and more" : "");
  out += fmt::format("<p class=\"facts\">mean {}, median {}, 95 % up to {}, 99 % up to {}, longest {}</p></div>",
                     distribution["mean"].dump(), distribution["median"].dump(), distribution["p95"].dump(),
                     distribution["p99"].dump(), distribution["max"].dump());
  return out;
}

std::string listing(const std::string& title, const Json& list, const char* key = "id") {
  if (list["count"].get<std::int64_t>() == 0) return {};
  std::string out =
      fmt::format("<details><summary>{} <em>{}</em></summary><table>", escape(title), count_text(list["count"]));
  for (const Json& item : list["listed"]) {
    const std::string id = item[key].is_string() ? item[key].get<std::string>() : item[key].dump();
    out += fmt::format("<tr><td style=\"width:30%\">{}</td><td>{}</td></tr>", escape(id),
                       escape(item["reason"].get<std::string>()));
  }
  const std::int64_t hidden = list["count"].get<std::int64_t>() - static_cast<std::int64_t>(list["listed"].size());
  if (hidden > 0) out += fmt::format("<tr><td></td><td>and {} more (--max_listed)</td></tr>", format_count(hidden));
  return out + "</table></details>";
}

std::string share(double value) { return fmt::format("{:.1f} %", 100 * value); }

// How far the outermost boxes reach in a picture that is the dotted square.
std::string reach_picture(const Json& reach) {
  std::array<double, 4> r{};
  for (std::size_t i = 0; i < 4; ++i) r[i] = std::clamp(reach[i].get<double>(), -0.5, 1.5);
  const auto place = [](double value) { return 20 + 30 * value; };
  return fmt::format(
      "<svg width=\"56\" height=\"56\" viewBox=\"7 7 56 56\"><rect x=\"20\" y=\"20\" width=\"30\" height=\"30\" "
      "fill=\"none\" "
      "stroke=\"#5b6878\" stroke-dasharray=\"2 2\"/><rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" "
      "fill=\"var(--bar)\" fill-opacity=\"0.2\" stroke=\"var(--bar)\"/></svg>",
      place(r[0]), place(r[1]), std::max(0.0, 30 * (r[2] - r[0])), std::max(0.0, 30 * (r[3] - r[1])));
}

// With a capital at its beginning.
std::string sentence(std::string text) {
  if (!text.empty()) text[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(text[0])));
  return text;
}

std::string frame_section(const Json& frame) {
  std::string out = fmt::format("<h2 id=\"frame\">Where the boxes live</h2><p>{}.</p>",
                                escape(sentence(frame["verdict"].get<std::string>())));
  if (!frame.contains("candidates")) return out;
  out +=
      "<div class=\"wide\"><table class=\"frames\"><tr><th>frame</th><th class=\"n\">boxes in the picture</th><th "
      "class=\"n\">touch the picture's edge</th>"
      "<th>reach (dotted: the picture)</th><th class=\"n\">misfit</th></tr>";
  for (const Json& c : frame["candidates"]) {
    const std::string name = c["frame"].get<std::string>();
    out += fmt::format(
        "<tr><td><b>{}</b>{}{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td>{}</td><td "
        "class=\"n\">{:.3f}</td></tr>",
        escape(name), name == frame["declared"] ? " (declared)" : "",
        frame.contains("likely") && name == frame["likely"] ? " &larr; likely" : "", share(c["inside"].get<double>()),
        share(c["touching_edge"].get<double>()), reach_picture(c["reach"]), c["badness"].get<double>());
  }
  return out +
         "</table></div><p class=\"facts\">Every box is read as if it stood in each frame. In the right one no box "
         "leaves the picture and the outermost ones come near to all four edges; boxes that annotators' tools cut off "
         "lie on the edge itself. Misfit is 4 times the share outside plus the mean gap at the edges.</p>";
}

// Colours by region name, as the names come.
using NameColors = std::map<std::string, const char*>;

// A picture of a sample with what is drawn on it.
struct Shown {
  std::filesystem::path file;
  std::string encoded;  // in place of a file, where the set itself holds the picture
  ImageSize size;       // where the set says it
  const std::vector<Region>& answer;
  const std::vector<Region>& think;
};
struct Figure {
  std::string html;
  std::string problem;  // with the picture or its boxes
};

std::string box_outline(const Box& box, double scale, const char* color, bool dashed) {
  return fmt::format(
      "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" fill=\"none\" stroke=\"{}\" "
      "stroke-width=\"{}\"{}/>",
      box.x1 * scale, box.y1 * scale, std::max(0.0, (box.x2 - box.x1) * scale),
      std::max(0.0, (box.y2 - box.y1) * scale), color, dashed ? 2 : 3, dashed ? " stroke-dasharray=\"7 6\"" : "");
}

Figure figure_of(const Shown& shown, const BoxFrame& frame, const NameColors& colors, const char* no_file) {
  Figure figure;
  std::optional<image::Picture> picture;
  const bool inside = shown.file.empty() && !shown.encoded.empty();
  if (!shown.file.empty() || inside) {
    try {
      picture =
          inside ? image::decode_picture(shown.encoded, "the picture in the set") : image::read_picture(shown.file);
    } catch (const std::exception& error) {
      figure.problem = error.what();
    }
  }
  ImageSize size = picture ? ImageSize{picture->width, picture->height} : shown.size;
  bool boxes_can_be_drawn = true;
  if (size.width < 1) {
    boxes_can_be_drawn =
        !grounding::conversion_needs_picture(frame, BoxFrame::unit()) || frame.kind() == BoxFrame::Kind::letterbox;
    size = {1000, 1000};  // of a letterbox frame the padded square itself is shown
  }
  const ImageGeometry geometry(size);
  const double scale = static_cast<double>(kThumbnailSide) / static_cast<double>(std::max(size.width, size.height));
  const double width = static_cast<double>(size.width) * scale, height = static_cast<double>(size.height) * scale;

  figure.html = fmt::format("<figure><svg viewBox=\"0 0 {:.1f} {:.1f}\">", width, height);
  if (picture) {
    figure.html += fmt::format("<image width=\"{:.1f}\" height=\"{:.1f}\" href=\"data:image/jpeg;base64,{}\"/>", width,
                               height, base64(image::encode_jpeg(image::thumbnail(*picture, kThumbnailSide), 82)));
  } else {
    figure.html += fmt::format(
        "<text x=\"{:.1f}\" y=\"{:.1f}\" fill=\"#8b97a5\" font-size=\"20\" text-anchor=\"middle\">{}</text>", width / 2,
        height / 2, shown.file.empty() && !inside ? no_file : "picture cannot be read");
  }
  if (boxes_can_be_drawn) {
    for (const Region& region : shown.answer)
      figure.html +=
          box_outline(geometry.convert(region.box, BoxFrame::original()), scale, colors.at(region.name), false);
    for (const Region& region : shown.think) {
      Box box = geometry.convert(region.box, BoxFrame::original());
      // Drawn a little smaller, so that it shows inside the answer's box in the same place.
      const double inset = 5 / scale;
      box = {box.x1 + inset, box.y1 + inset, box.x2 - inset, box.y2 - inset, box.frame};
      figure.html += box_outline(box, scale, colors.at(region.name), true);
    }
  } else if (figure.problem.empty() && !(shown.answer.empty() && shown.think.empty())) {
    figure.problem = "boxes cannot be drawn without the picture's size";
  }
  figure.html += "</svg></figure>";
  return figure;
}

// `embedded`: the picture where the set itself holds it. `finder`: null where no folder of pictures was named.
std::string example_card(const Sample& sample, const std::string& embedded, const ImageFinder* finder) {
  const std::vector<Region> in_think =
      grounding::parse_response("<think>" + sample.think + "</think>", sample.frame).think_regions;
  NameColors colors;
  const auto give_colors = [&](const std::vector<Region>& regions) {
    for (const Region& region : regions) colors.emplace(region.name, kColors[colors.size() % kColors.size()]);
  };
  give_colors(sample.regions);
  for (const auto& regions : sample.more_regions) give_colors(regions);
  give_colors(in_think);

  const char* no_file = finder != nullptr ? "picture not found" : "no folder of pictures was named";
  const auto file_of = [&](const std::string& image) {
    return finder != nullptr ? finder->find(image) : std::filesystem::path();
  };
  const std::vector<Region> none;
  std::vector<Figure> figures = {figure_of({file_of(sample.image), embedded, sample.size, sample.regions, in_think},
                                           sample.frame, colors, no_file)};
  for (std::size_t i = 0; i < sample.more_images.size(); ++i) {
    const std::vector<Region>& regions = sample.more_regions.empty() ? none : sample.more_regions[i];
    figures.push_back(
        figure_of({file_of(sample.more_images[i]), {}, {}, regions, none}, sample.frame, colors, no_file));
  }
  std::string out = "<article class=\"example\">";
  for (const Figure& figure : figures) out += figure.html;
  out += "<div>";
  out += fmt::format("<span class=\"id\">{} &middot; {} &middot; {}</span><p><b>{}</b></p>", escape(sample.id),
                     escape(spaced(question_type_name(sample.type))), escape(sample.image), escape(sample.question));
  if (sample.choices.empty()) {
    out += fmt::format("<p>{}</p>", escape(sample.answer));
  } else {
    out += "<ul>";
    for (const std::string& choice : sample.choices) {
      const bool chosen = !choice.empty() && sample.answer.find(choice.front()) != std::string::npos;
      out += fmt::format("<li{}>{}</li>", chosen ? " class=\"chosen\"" : "", escape(choice));
    }
    out += fmt::format("</ul><p>answer: <b>{}</b></p>", escape(sample.answer));
  }
  if (!sample.think.empty()) out += fmt::format("<p class=\"think\">{}</p>", escape(sample.think));
  if (!colors.empty()) {
    out += "<div class=\"legend\" style=\"padding:0\">";
    for (const auto& [name, color] : colors)
      out += fmt::format("<span style=\"--c:{}\">{}</span>", color, escape(name.empty() ? "(no name)" : name));
    out += "</div>";
  }
  for (const Figure& figure : figures) {
    if (!figure.problem.empty()) out += fmt::format("<p class=\"wrong\">{}</p>", escape(figure.problem));
  }
  return out + "</div></article>";
}

}  // namespace

std::string inspection_html(const Inspection& inspection, const Dataset& dataset, const InspectOptions& options) {
  const Json& r = inspection.report;
  std::string out =
      "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
      "content=\"width=device-width,initial-scale=1\"><title>Data inspection</title><style>";
  out += kStyle;
  out += "</style></head><body><main>";
  out += fmt::format("<h1>Data inspection</h1><p class=\"sub\">{}, format {}</p>", escape(r["data"].get<std::string>()),
                     escape(r["format"].get<std::string>()));

  out += "<div class=\"tiles\">";
  out += tile(count_text(r["rows"]["usable"]), fmt::format("usable rows of {}", count_text(r["rows"]["all"])));
  const bool any_bad = r["rows"]["bad"].get<std::int64_t>() > 0;
  out += tile(count_text(r["rows"]["bad"]), "rows that cannot be used", any_bad ? "bad" : "good");
  out += tile(count_text(r["pictures"]["named"]),
              fmt::format("pictures of {} patients", count_text(r["pictures"]["patients"])));
  if (r["pictures"].contains("hit_rate")) {
    const double rate = r["pictures"]["hit_rate"].get<double>();
    out += tile(fmt::format("{:.2f} %", 100 * rate), "of the pictures found", rate < 1 ? "bad" : "good");
  }
  out += tile(count_text(r["boxes"]["count"]), "boxes");
  const Json& agrees = r["frame"]["agrees"];
  out += tile(r["frame"].contains("likely") ? r["frame"]["likely"].get<std::string>() : "unknown",
              "where the boxes live", agrees.is_boolean() ? (agrees.get<bool>() ? "good" : "bad") : "");
  out += "</div>";

  out += "<h2 id=\"findings\">Findings</h2>";
  if (r["problems"].empty()) {
    out += "<p>Nothing is wrong.</p>";
  } else {
    out += "<table class=\"findings\"><tr><th>level</th><th class=\"n\">count</th><th>what</th></tr>";
    for (const Json& line : r["problems"]) {
      const std::string level = line["level"].get<std::string>();
      const std::string example = line["examples"].empty() ? std::string() : line["examples"][0].get<std::string>();
      out += fmt::format("<tr><td><span class=\"level {}\">{}</span></td><td class=\"n\">{}</td><td>{}{}</td></tr>",
                         level, level, count_text(line["count"]), escape(line["text"].get<std::string>()),
                         example.empty() ? "" : "<small>" + escape(html::shorten(example, 240)) + "</small>");
    }
    out += "</table>";
  }
  if (any_bad) {
    out += bars("Bad rows by reason", r["bad_rows"]["by_reason"], 12);
    out += listing("Rows that cannot be used", r["bad_rows"], "row");
  }
  const std::vector<std::pair<const char*, const Json*>> lists = {
      {"Boxes outside the picture", &r["boxes"]["outside"]},
      {"Boxes on the padding", &r["boxes"]["on_padding"]},
      {"Tiny boxes", &r["boxes"]["tiny"]},
      {"Boxes that stand twice", &r["boxes"]["repeated"]},
      {"Answers not among the choices", &r["answers"]["not_among_choices"]},
      {"Choice questions without choices", &r["answers"]["without_choices"]},
      {"Closed questions without a yes or no", &r["answers"]["closed_not_yes_no"]},
      {"Boxes of the reasoning that the answer lacks", &r["think"]["not_in_answer"]},
      {"Boxes of the answer that the reasoning does not name", &r["think"]["not_in_think"]},
      {"Box texts in the reasoning that are no boxes", &r["think"]["bad_boxes"]},
      {"Questions again, same answer", &r["duplicates"]["same_answer"]},
      {"Questions again, other answer", &r["duplicates"]["other_answer"]},
      {"Questions again, another reader's answer", &r["duplicates"]["other_reader"]},
      {"Patients in two splits", &r["splits"]["patients_in_two"]}};
  for (const auto& [title, list] : lists) out += listing(title, *list);
  if (r["pictures"].contains("missing")) {
    out += listing("Pictures that were not found", r["pictures"]["missing"]);
    out += listing("Pictures that cannot be read", r["pictures"]["unreadable"]);
    out += listing("Pictures of another size than the row says", r["pictures"]["size_differs_from_row"]);
    out += listing("Pictures that show nothing", r["pictures"]["flat"]);
  }
  for (const Json& other : r["splits"]["others"]) {
    out += fmt::format("<p>Shared with {}: {} patients, {} pictures.</p>", escape(other["path"].get<std::string>()),
                       count_text(other["patients"]), count_text(other["pictures"]));
  }

  if (r["boxes"]["count"].get<std::int64_t>() > 0) out += frame_section(r["frame"]);

  out += "<h2 id=\"content\">What is in it</h2><div class=\"grid\">";
  out += bars("Questions by type", r["types"], 12);
  if (r.contains("content_types")) out += bars("By content", r["content_types"], 12);
  if (!r["splits"]["counts"].empty()) out += bars("By split", r["splits"]["counts"], 12);
  if (!r["boxes"]["regions"].empty()) out += bars("Boxes by region", r["boxes"]["regions"], 14);
  if (r["pictures"].contains("sizes")) out += bars("Pictures by size", r["pictures"]["sizes"], 12);
  out += histogram("Boxes a question", r["boxes"]["per_question"]);
  out += histogram("Questions a picture", r["pictures"]["questions_per_picture"]);
  const std::string unit = r["lengths"]["unit"].get<std::string>();
  for (const char* part : {"question", "think", "response", "target"})
    out += histogram(fmt::format("Length of the {} in {}", part, unit), r["lengths"][part]);
  out += "</div>";

  if (!inspection.examples.empty()) {
    out +=
        "<h2 id=\"examples\">Examples</h2><p class=\"facts\">First those with most that is wrong, then others by "
        "chance. "
        "Solid: boxes of the answer; dashed: boxes of the reasoning; on the original picture.</p><div "
        "class=\"examples\">";
    std::optional<ImageFinder> finder;
    if (!options.images.empty()) finder.emplace(options.images);
    for (const std::int64_t index : inspection.examples) {
      const Sample sample = dataset.get(index);
      out += example_card(sample, dataset.embedded_picture(index), finder ? &*finder : nullptr);
    }
    out += "</div>";
  }
  return out + "</main></body></html>\n";
}

}  // namespace thinkvg::data
