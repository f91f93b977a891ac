#include "thinkvg/data/inspect.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cctype>
#include <chrono>
#include <cmath>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <thread>
#include <type_traits>
#include <unordered_map>

#include "data/box_order.h"
#include "thinkvg/core/error.h"
#include "thinkvg/core/html.h"
#include "thinkvg/core/progress.h"
#include "thinkvg/core/random.h"
#include "thinkvg/data/image_size.h"
#include "thinkvg/data/images.h"
#include "thinkvg/grounding/answer.h"
#include "thinkvg/grounding/geometry.h"
#include "thinkvg/grounding/response.h"
#include "thinkvg/image/raster.h"
#include "thinkvg/text/tokenizer.h"

namespace thinkvg::data {
namespace {

using grounding::Box;
using grounding::BoxFrame;
using grounding::ImageGeometry;
using grounding::ImageSize;
using grounding::Region;

constexpr std::size_t kMaxFrameBoxes = 20'000;  // boxes that the frame's evidence is made of
constexpr std::size_t kMinFrameBoxes = 50;      // fewer say nothing
constexpr std::int64_t kMaxTokenized = 20'000;  // samples whose lengths are counted in tokens
constexpr double kTinyArea = 1e-3;              // share of the frame below which a box is tiny
constexpr double kFitting = 0.9;                // share of the boxes inside the pictures from which a frame fits
constexpr double kSameBox = 0.5;                // IoU from which a box of the reasoning is one of the answer's

double rounded(double value, double steps = 1e4) { return std::round(value * steps) / steps; }

// Single findings of one kind: all are counted, the first are listed.
class Listing {
 public:
  explicit Listing(std::int64_t max_listed) : max_listed_(max_listed) {}
  void add(const std::string& id, const std::string& text) {
    add(id, [&] { return text; });
  }
  // `text()` is asked for where it is listed only: a large set may have a finding in every row.
  template <class Text>
  requires std::is_invocable_v<Text>
  void add(const std::string& id, const Text& text) {
    if (++count_ <= max_listed_) items_.push_back({{"id", id}, {"reason", text()}});
  }
  // The first as a line of text; empty when there is none.
  std::string example() const {
    if (items_.empty()) return {};
    return items_[0]["id"].get<std::string>() + ": " + items_[0]["reason"].get<std::string>();
  }
  std::int64_t count() const { return count_; }
  Json to_json() const { return {{"count", count_}, {"listed", items_}}; }

 private:
  std::int64_t max_listed_;
  std::int64_t count_ = 0;
  Json items_ = Json::array();
};

Json counts_json(const std::map<std::string, std::int64_t>& counts) {
  std::vector<std::pair<std::string, std::int64_t>> sorted(counts.begin(), counts.end());
  std::stable_sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
  Json json = Json::object();
  for (const auto& [name, count] : sorted) json[name] = count;
  return json;
}

// Mean, quantiles and a histogram of at most 24 columns of equal whole width.
Json distribution(std::vector<std::int64_t> values) {
  Json json = {{"count", values.size()}};
  if (values.empty()) return json;
  std::sort(values.begin(), values.end());
  double sum = 0;
  for (const std::int64_t value : values) sum += static_cast<double>(value);
  const auto quantile = [&](double share) {
    return values[static_cast<std::size_t>(std::floor(share * static_cast<double>(values.size() - 1)))];
  };
  json["mean"] = rounded(sum / static_cast<double>(values.size()), 100);
  json["min"] = values.front();
  json["median"] = quantile(0.5);
  json["p95"] = quantile(0.95);
  json["p99"] = quantile(0.99);
  json["max"] = values.back();
  // The longest hundredth goes into the last column: one very long row must not hide the others.
  const std::int64_t low = values.front(), high = std::max(quantile(0.99), low);
  const std::int64_t width = (high - low) / 24 + 1;
  std::vector<std::int64_t> columns(static_cast<std::size_t>((high - low) / width + 1), 0);
  for (const std::int64_t value : values) ++columns[static_cast<std::size_t>((std::min(value, high) - low) / width)];
  json["histogram"] = {{"first", low}, {"width", width}, {"counts", columns}};
  return json;
}

std::int64_t count_words(std::string_view text) {
  std::int64_t words = 0;
  bool inside = false;
  for (const char c : text) {
    const bool space = c == ' ' || c == '\t' || c == '\n' || c == '\r';
    if (!space && !inside) ++words;
    inside = !space;
  }
  return words;
}

// The same kind of problem in many rows differs in its numbers and quoted texts only.
std::string kind_of(std::string_view reason) {
  const auto in_word = [&](std::size_t i) {
    return i < reason.size() && (std::isalnum(static_cast<unsigned char>(reason[i])) != 0 || (reason[i] & 0x80) != 0);
  };
  std::string kind;
  bool number = false;
  for (std::size_t i = 0; i < reason.size(); ++i) {
    const char c = reason[i];
    // A quote opens before a word and closes behind one; an apostrophe stands between letters.
    if ((c == '\'' || c == '"') && (i == 0 || !in_word(i - 1))) {
      std::size_t end = i + 1;
      while (end < reason.size() && (reason[end] != c || in_word(end + 1))) ++end;
      if (end < reason.size()) {
        kind += "'..'";
        number = false;
        i = end;
        continue;
      }
    }
    const bool digit = c >= '0' && c <= '9';
    if (digit) {
      if (!number) kind += 'N';
    } else if (!(number && c == '.')) {
      kind += c;
    }
    number = digit || (number && c == '.');
  }
  constexpr std::size_t kLongest = 120;
  if (kind.size() <= kLongest) return kind;
  std::size_t end = kLongest;
  while (end > 0 && (static_cast<unsigned char>(kind[end]) & 0xC0) == 0x80) --end;  // not inside a character
  return kind.substr(0, end) + "..";
}

// ---- which frame the boxes live in ----

// A box as the row has it, with the size of its picture where that is known.
struct SeenBox {
  Box box;
  ImageSize size;
};

struct FrameEvidence {
  BoxFrame frame;
  double inside = 0;  // share of the boxes that lie in the picture, give or take a hundredth of its side
  std::array<double, 4>
      reach{};          // left, top, right, bottom: where the outermost half percent of the edges are, in 0..1
  double touching = 0;  // share of the boxes with an edge within half a percent of the picture's edge
  double badness = 0;
};

// Distances of the boxes' edges from the four edges of their pictures, as shares of the sides.
using EdgeDistances = std::array<std::vector<double>, 4>;

// Where the outermost half percent is.
std::array<double, 4> outermost(EdgeDistances& edges) {
  std::array<double, 4> distances{};
  for (std::size_t i = 0; i < 4; ++i) {
    const auto place = edges[i].begin() + static_cast<std::ptrdiff_t>(edges[i].size() / 200);
    std::nth_element(edges[i].begin(), place, edges[i].end());
    distances[i] = *place;
  }
  return distances;
}

FrameEvidence weigh(const BoxFrame& frame, const std::vector<SeenBox>& boxes) {
  FrameEvidence evidence{.frame = frame};
  // Wide, tall and square pictures by themselves: what pads one kind at the sides pads the other above and below.
  std::array<EdgeDistances, 3> kinds;
  double inside = 0, touching = 0;
  for (const SeenBox& seen : boxes) {
    const ImageSize size = seen.size.width > 0 ? seen.size : ImageSize{1, 1};
    Box box = seen.box;
    box.frame = frame;
    const Box unit = ImageGeometry(size).convert(box, BoxFrame::unit());
    const std::array<double, 4> sides = {unit.x1, unit.y1, 1 - unit.x2, 1 - unit.y2};
    inside += std::all_of(sides.begin(), sides.end(), [](double side) { return side >= -0.01; }) ? 1 : 0;
    touching += std::any_of(sides.begin(), sides.end(), [](double side) { return std::abs(side) <= 0.005; }) ? 1 : 0;
    EdgeDistances& edges = kinds[size.width > size.height ? 0 : size.width < size.height ? 1 : 2];
    for (std::size_t i = 0; i < 4; ++i) edges[i].push_back(sides[i]);
  }
  const auto count = static_cast<double>(boxes.size());
  evidence.inside = inside / count;
  evidence.touching = touching / count;
  // In the right frame the outermost boxes come near to all four edges of the picture, and none goes beyond.
  double gaps = 0;
  std::size_t most = 0;
  for (EdgeDistances& edges : kinds) {
    if (edges[0].empty()) continue;
    const std::array<double, 4> distances = outermost(edges);
    const double weight = static_cast<double>(edges[0].size()) / count;
    for (const double distance : distances) gaps += weight * std::min(std::abs(distance), 1.0);
    if (edges[0].size() <= most) continue;
    most = edges[0].size();
    evidence.reach = {distances[0], distances[1], 1 - distances[2], 1 - distances[3]};
  }
  evidence.badness = 4 * (1 - evidence.inside) + gaps / 4;
  return evidence;
}

Json frame_report(std::vector<SeenBox> boxes, const BoxFrame& declared) {
  // Pictures that are there speak for those that are missing.
  const auto size_is_known = [](const SeenBox& seen) { return seen.size.width > 0; };
  if (std::count_if(boxes.begin(), boxes.end(), size_is_known) >= static_cast<std::ptrdiff_t>(kMinFrameBoxes))
    std::erase_if(boxes, [&](const SeenBox& seen) { return !size_is_known(seen); });
  Json json = {{"declared", declared.name()}, {"boxes", boxes.size()}};
  if (boxes.size() < kMinFrameBoxes) {
    json["verdict"] = fmt::format("{} boxes are too few to tell their frame", boxes.size());
    json["agrees"] = nullptr;
    return json;
  }
  const bool sizes_known = std::all_of(boxes.begin(), boxes.end(), size_is_known);
  json["sizes_known"] = sizes_known;
  std::vector<BoxFrame> frames = {declared, BoxFrame::unit(), BoxFrame::hundred(), BoxFrame::thousand()};
  if (sizes_known) frames.push_back(BoxFrame::original());
  for (const std::int64_t side : {224, 336, 448, 512, 640, 896, 1024}) {
    frames.push_back(BoxFrame::letterbox(side));
    frames.push_back(BoxFrame::stretch(side, side));
    if (sizes_known && side <= 448) frames.push_back(BoxFrame::crop(side));
  }
  std::vector<FrameEvidence> evidence;
  for (const BoxFrame& frame : frames) {
    if (std::any_of(evidence.begin(), evidence.end(), [&](const FrameEvidence& e) { return e.frame == frame; }))
      continue;
    if (!sizes_known && (frame.kind() == BoxFrame::Kind::original || frame.kind() == BoxFrame::Kind::stored)) continue;
    evidence.push_back(weigh(frame, boxes));
  }
  if (evidence.empty()) {
    json["verdict"] = "without the pictures' sizes nothing can be said; name the image root with --images";
    json["agrees"] = nullptr;
    return json;
  }
  std::stable_sort(evidence.begin(), evidence.end(),
                   [](const FrameEvidence& a, const FrameEvidence& b) { return a.badness < b.badness; });
  const FrameEvidence& best = evidence.front();
  const auto own = std::find_if(evidence.begin(), evidence.end(), [&](const auto& e) { return e.frame == declared; });
  const bool agrees = own != evidence.end() && own->badness <= best.badness + 0.02;
  const bool any_fits = best.inside >= kFitting;
  json["agrees"] = own == evidence.end() ? Json(nullptr) : Json(agrees);
  if (agrees || any_fits) json["likely"] = agrees ? declared.name() : best.frame.name();
  if (!agrees && !any_fits) {
    json["verdict"] = own == evidence.end()
                          ? fmt::format(
                                "the declared frame {} cannot be judged without the pictures' sizes, and no other "
                                "frame fits; name the image root with --images",
                                declared.name())
                          : fmt::format(
                                "the boxes fit no known frame: in the best one, {}, {:.1f} % of them lie inside "
                                "the pictures, in the declared frame {} {:.1f} %",
                                best.frame.name(), 100 * best.inside, declared.name(), 100 * own->inside);
  } else if (agrees) {
    json["verdict"] = fmt::format(
        "the boxes fit the declared frame {}: {:.1f} % lie inside the pictures, and they reach the "
        "pictures' edges",
        declared.name(), 100 * own->inside);
  } else {
    json["verdict"] = fmt::format(
        "the boxes fit {} better than the declared frame {}: there {:.1f} % of them lie inside "
        "the pictures{}",
        best.frame.name(), declared.name(), 100 * best.inside,
        own == evidence.end() ? "" : fmt::format(", here {:.1f} %", 100 * own->inside));
  }
  if (!sizes_known && json.contains("likely"))
    json["verdict"] = json["verdict"].get<std::string>() +
                      " (without the pictures' sizes letterbox and stretch frames look the same)";
  json["candidates"] = Json::array();
  for (std::size_t i = 0; i < evidence.size(); ++i) {
    const FrameEvidence& e = evidence[i];
    if (i >= 6 && !(e.frame == declared)) continue;
    json["candidates"].push_back(
        {{"frame", e.frame.name()},
         {"inside", rounded(e.inside)},
         {"reach", {rounded(e.reach[0]), rounded(e.reach[1]), rounded(e.reach[2]), rounded(e.reach[3])}},
         {"touching_edge", rounded(e.touching)},
         {"badness", rounded(e.badness)}});
  }
  return json;
}

// ---- the inspector ----

struct PictureFacts {
  bool found = false;
  ImageSize size;       // 0 x 0: not readable
  std::string problem;  // why not
};

// Finds pictures and reads their sizes, each once.
class Pictures {
 public:
  explicit Pictures(const std::string& root) {
    if (!root.empty()) finder_.emplace(root);
  }
  bool active() const { return finder_.has_value(); }

  const PictureFacts& facts(const std::string& image) {
    const auto [entry, is_new] = known_.try_emplace(image);
    PictureFacts& facts = entry->second;
    if (!is_new || !finder_) return facts;
    const std::filesystem::path file = finder_->find(image);
    facts.found = !file.empty();
    if (!facts.found) return facts;
    try {
      const std::string& before = first_name_.try_emplace(file.string(), image).first->second;
      if (!may_share_a_file(before, image))
        throw_failure("'{}' and '{}' would both be the file {}, which cannot hold two pictures", image, before,
                      file.string());
      const ImageSize size = read_image_size(file);
      const image::ReadOptions limits;
      if (size.width > limits.max_pixels / size.height) {
        throw_failure("{}: {} x {} pixels are more than a run decodes (max_pixels = {} unless set)", file.string(),
                      size.width, size.height, limits.max_pixels);
      }
      facts.size = size;
    } catch (const std::exception& error) {
      facts.problem = error.what();
    }
    return facts;
  }
  std::filesystem::path file(const std::string& image) const {
    return finder_ ? finder_->find(image) : std::filesystem::path();
  }

 private:
  std::optional<ImageFinder> finder_;
  std::unordered_map<std::string, PictureFacts> known_;
  std::unordered_map<std::string, std::string> first_name_;  // of a file
};

class Inspector {
 public:
  Inspector(const Dataset& dataset, const InspectOptions& options)
      : dataset_(dataset), options_(options), pictures_(options.images) {
    if (!options.tokenizer.empty()) tokenizer_ = text::load_tokenizer(options.tokenizer);
  }

  Inspection run(const InspectProgress& on_progress) {
    constexpr std::int64_t kRowsAReport = 4096;
    const std::int64_t size = dataset_.size();
    for (std::int64_t i = 0; i < size; ++i) {
      look_at(i, dataset_.get(i));
      if (on_progress && (i + 1) % kRowsAReport == 0) on_progress("rows", i + 1, size);
    }
    reversed_ = find_reversed_boxes(dataset_);
    if (options_.decode_pictures) decode_pictures(on_progress);
    for (const std::string& other : options_.others) compare_with(other);
    return {report(), choose_examples()};
  }

 private:
  Listing make_listing() const { return Listing(options_.max_listed); }

  void flag(std::int64_t index, double weight) { worst_[index] += weight; }

  void look_at(std::int64_t index, const Sample& sample) {
    ++types_[question_type_name(sample.type)];
    if (!sample.content_type.empty()) ++content_types_[sample.content_type];
    if (!sample.split.empty()) {
      ++splits_[sample.split];
      patient_splits_[sample.patient.empty() ? "picture " + sample.image : sample.patient].insert(sample.split);
    }
    if (!sample.patient.empty()) patients_.insert(sample.patient);
    num_with_think_ += sample.think.empty() ? 0 : 1;
    ++frames_[sample.frame.name()];
    look_at_pictures(index, sample);
    look_at_boxes(index, sample);
    look_at_think(index, sample);
    look_at_answer(index, sample);
    look_for_repetition(index, sample);
    measure(index, sample);
  }

  void look_at_pictures(std::int64_t index, const Sample& sample) {
    std::vector<std::string> images = sample.more_images;
    images.insert(images.begin(), sample.image);
    for (const std::string& image : images) {
      const bool is_new = questions_of_.find(image) == questions_of_.end();
      if (is_new) first_sample_[image] = sample.id;
      ++questions_of_[image];
      if (!pictures_.active()) continue;
      const PictureFacts& facts = pictures_.facts(image);
      num_samples_found_ += facts.found && &image == &images.front() ? 1 : 0;
      if (!is_new) continue;
      if (!facts.found) {
        missing_pictures_.add(sample.id, image);
      } else if (!facts.problem.empty()) {
        unreadable_pictures_.add(sample.id, facts.problem);
        flag(index, 1);
      } else {
        ++sizes_[fmt::format("{} x {}", facts.size.width, facts.size.height)];
        if (sample.size.width > 0 && image == sample.image && !(sample.size == facts.size)) {
          wrong_sizes_.add(sample.id, fmt::format("{} is {} x {} pixels, the row says {} x {}", image, facts.size.width,
                                                  facts.size.height, sample.size.width, sample.size.height));
          flag(index, 1);
        }
      }
    }
  }

  ImageSize size_of(const Sample& sample) {
    if (sample.size.width > 0) return sample.size;
    return pictures_.active() ? pictures_.facts(sample.image).size : ImageSize{};
  }

  void look_at_boxes(std::int64_t index, const Sample& sample) {
    std::int64_t num_boxes = static_cast<std::int64_t>(sample.regions.size());
    look_at_boxes_of(index, {sample, sample.regions, size_of(sample)});
    for (std::size_t i = 0; i < sample.more_regions.size(); ++i) {
      num_boxes += static_cast<std::int64_t>(sample.more_regions[i].size());
      const ImageSize size = pictures_.active() ? pictures_.facts(sample.more_images[i]).size : ImageSize{};
      look_at_boxes_of(index, {sample, sample.more_regions[i], size});
    }
    boxes_per_question_.push_back(num_boxes);
  }

  // The regions on one picture of a sample, and the picture's size where that is known.
  struct PictureRegions {
    const Sample& sample;
    const std::vector<Region>& regions;
    ImageSize size;
  };

  void look_at_boxes_of(std::int64_t index, const PictureRegions& on) {
    const Sample& sample = on.sample;
    const ImageSize size = on.size;
    const bool needs_size = grounding::conversion_needs_picture(sample.frame, BoxFrame::unit());
    for (std::size_t r = 0; r < on.regions.size(); ++r) {
      const Region& region = on.regions[r];
      const Box& box = region.box;
      ++num_boxes_;
      const std::string name = grounding::normalize_region_name(region.name);
      ++region_names_[name.empty() ? "(no name)" : name];
      if (!name.empty() && !grounding::is_region_name(name)) ++num_unknown_names_;
      if (++box_count_ % box_step_ == 0) {
        frame_boxes_.push_back({box, size});
        if (frame_boxes_.size() >= 2 * kMaxFrameBoxes) thin_out();
      }
      for (std::size_t other = 0; other < r; ++other) {
        if (on.regions[other] == region) {
          repeated_boxes_.add(sample.id,
                              fmt::format("{} of '{}' stands twice", grounding::format_box(box), region.name));
          flag(index, 0.5);
        }
      }
      if (needs_size && size.width == 0) continue;
      const ImageGeometry geometry(size.width > 0 ? size : ImageSize{1, 1});
      const grounding::FittedBox fitted = geometry.fit(box);
      // Whole numbers in the text reach half a pixel too far.
      const double frame_side =
          static_cast<double>(std::max(geometry.extent(sample.frame).width, geometry.extent(sample.frame).height));
      const bool padding = sample.frame.kind() == BoxFrame::Kind::letterbox;
      if (!fitted.problem.empty()) {
        boxes_outside_.add(sample.id, [&] {
          return fmt::format("{} of '{}': {}", grounding::format_box(box), region.name, fitted.problem);
        });
        flag(index, 2);
      } else if (fitted.clipped && overhang(box, fitted.box) > std::max(1.0, 0.005 * frame_side)) {
        (padding ? boxes_in_padding_ : boxes_outside_).add(sample.id, [&] {
          return fmt::format("{} of '{}': {:.0f} % of it lies {}", grounding::format_box(box), region.name,
                             100 * (1 - fitted.kept), padding ? "on the padding" : "outside the picture");
        });
        flag(index, 2 * (1 - fitted.kept));
      }
      const Box unit = geometry.convert(box, BoxFrame::unit());
      if (unit.area() < kTinyArea) {
        tiny_boxes_.add(sample.id, [&] {
          return fmt::format("{} of '{}' covers {:.4f} % of the picture", grounding::format_box(box), region.name,
                             100 * unit.area());
        });
        flag(index, 0.5);
      }
    }
  }

  static double overhang(const Box& box, const Box& cut) {
    return std::max({cut.x1 - box.x1, cut.y1 - box.y1, box.x2 - cut.x2, box.y2 - cut.y2});
  }

  // Keeps every second box when there are more than needed, so that the evidence is spread over the whole set.
  void thin_out() {
    for (std::size_t i = 0; 2 * i < frame_boxes_.size(); ++i) frame_boxes_[i] = frame_boxes_[2 * i];
    frame_boxes_.resize((frame_boxes_.size() + 1) / 2);
    box_step_ *= 2;
  }

  void look_at_think(std::int64_t index, const Sample& sample) {
    if (sample.think.empty()) return;
    const grounding::ParsedResponse parsed =
        grounding::parse_response("<think>" + sample.think + "</think>", sample.frame);
    num_think_boxes_ += static_cast<std::int64_t>(parsed.think_regions.size());
    for (std::size_t i = 0; i < parsed.bad_think_boxes.size(); ++i) {
      bad_think_boxes_.add(sample.id,
                           fmt::format("{}: {}", parsed.bad_think_boxes[i], parsed.bad_think_box_problems[i]));
      flag(index, 1);
    }
    // The answer's boxes on all pictures of the question: the reasoning does not say which one it looks at.
    std::vector<Region> in_answer = sample.regions;
    for (const auto& regions : sample.more_regions) in_answer.insert(in_answer.end(), regions.begin(), regions.end());
    const std::vector<std::string> think_names = names_of(parsed.think_regions), answer_names = names_of(in_answer);
    std::vector<bool> answer_seen(in_answer.size(), false);
    for (std::size_t i = 0; i < parsed.think_regions.size(); ++i) {
      const Region& region = parsed.think_regions[i];
      bool seen = false;
      for (std::size_t a = 0; a < in_answer.size(); ++a) {
        const bool same = grounding::iou(region.box, in_answer[a].box) >= kSameBox ||
                          (!think_names[i].empty() && think_names[i] == answer_names[a]);
        if (!same) continue;
        seen = true;
        answer_seen[a] = true;
      }
      if (seen) continue;
      think_only_.add(sample.id, [&] {
        return fmt::format("the reasoning looks at '{}' {}, the answer has no such box", region.name,
                           grounding::format_box(region.box));
      });
      flag(index, 0.2);
    }
    for (std::size_t a = 0; a < in_answer.size(); ++a) {
      if (answer_seen[a]) continue;
      answer_only_.add(sample.id, [&] {
        return fmt::format("the answer points at '{}' {}, which the reasoning does not name", in_answer[a].name,
                           grounding::format_box(in_answer[a].box));
      });
      flag(index, 0.2);
    }
  }

  static std::vector<std::string> names_of(const std::vector<Region>& regions) {
    std::vector<std::string> names;
    for (const Region& region : regions) names.push_back(grounding::normalize_region_name(region.name));
    return names;
  }

  void look_at_answer(std::int64_t index, const Sample& sample) {
    const bool choice = sample.type == QuestionType::single_choice || sample.type == QuestionType::multi_choice;
    if (sample.type == QuestionType::closed &&
        !grounding::read_yes_no(sample.answer, grounding::AnswerReading::strict)) {
      closed_not_yes_no_.add(sample.id, fmt::format("'{:.60}'", sample.answer));
    }
    if (!choice) return;
    if (sample.choices.empty()) {
      no_choices_.add(sample.id, fmt::format("no choices could be told apart in '{:.80}'", sample.question));
      flag(index, 1);
      return;
    }
    const auto letters = grounding::read_option_letters(sample.answer, grounding::AnswerReading::strict);
    if (!letters) {
      not_a_choice_.add(sample.id, fmt::format("the answer '{:.60}' names no option", sample.answer));
      flag(index, 2);
      return;
    }
    std::string offered;
    for (const std::string& option : sample.choices) offered += option.empty() ? ' ' : option.front();
    for (const char letter : *letters) {
      if (offered.find(letter) != std::string::npos) continue;
      not_a_choice_.add(sample.id, fmt::format("the answer is {}, the choices are {}", sample.answer, offered));
      flag(index, 2);
    }
    if (sample.type == QuestionType::single_choice && letters->size() > 1) {
      not_a_choice_.add(sample.id, fmt::format("a single-choice question with the answer {}", sample.answer));
      flag(index, 2);
    }
  }

  void look_for_repetition(std::int64_t index, const Sample& sample) {
    const std::string key = sample.image + "\n" + grounding::normalize_text(sample.prompt());
    const std::string answer = grounding::normalize_text(sample.answer);
    const auto reader = sample.fields.find("reader");
    const std::string by = reader == sample.fields.end() ? std::string() : reader->second;
    const auto placed = asked_.try_emplace(key, Asked{sample.id, answer, by});
    if (placed.second) return;
    const Asked& before = placed.first->second;
    if (before.reader != by) {
      // Several readers of one picture are no repetition; where they see other things, that is worth knowing.
      if (before.answer != answer) {
        disagreements_.add(sample.id, [&] {
          return fmt::format("'{:.60}', the reader of '{}' says '{:.60}'", sample.answer, before.id, before.answer);
        });
      }
    } else if (before.answer == answer) {
      duplicates_.add(sample.id,
                      [&] { return fmt::format("the question of '{}' again, with the same answer", before.id); });
    } else {
      contradictions_.add(sample.id, [&] {
        return fmt::format("the question of '{}' again, with another answer: '{:.60}'", before.id, sample.answer);
      });
      flag(index, 1);
    }
  }

  void measure(std::int64_t index, const Sample& sample) {
    const std::int64_t step = tokenizer_ ? std::max<std::int64_t>(1, dataset_.size() / kMaxTokenized) : 1;
    if (index % step != 0) return;
    const auto length = [&](const std::string& text) {
      return tokenizer_ ? static_cast<std::int64_t>(tokenizer_->encode(text).size()) : count_words(text);
    };
    question_lengths_.push_back(length(sample.prompt()));
    const std::string response = grounding::format_response(sample.answer, sample.regions);
    const std::int64_t think = sample.think.empty() ? 0 : length("<think>" + sample.think + "</think>");
    if (!sample.think.empty()) think_lengths_.push_back(think);
    response_lengths_.push_back(length(response));
    target_lengths_.push_back(think + response_lengths_.back());
  }

  // What the headers do not show: files that are cut off or damaged, and pictures that show nothing.
  void decode_pictures(const InspectProgress& on_progress) {
    std::vector<std::string> names;
    for (const auto& [image, count] : questions_of_) {
      if (pictures_.facts(image).found && pictures_.facts(image).problem.empty()) names.push_back(image);
    }
    std::sort(names.begin(), names.end());
    std::vector<std::filesystem::path> files;
    for (const std::string& name : names) files.push_back(pictures_.file(name));
    std::vector<std::string> problems(names.size());
    std::vector<char> flat(names.size(), 0);
    std::atomic<std::size_t> next{0}, done{0};
    const auto work = [&] {
      for (std::size_t i = next++; i < files.size(); i = next++) {
        try {
          const image::Raster raster = image::read_raster(files[i]);
          flat[i] = std::adjacent_find(raster.pixels.begin(), raster.pixels.end(), std::not_equal_to<>()) ==
                    raster.pixels.end();
        } catch (const std::exception& error) {
          problems[i] = error.what();
        }
        ++done;
      }
    };
    {
      std::vector<std::jthread> threads;
      const std::size_t num_threads =
          std::min<std::size_t>(files.size(), std::max(1U, std::thread::hardware_concurrency()));
      for (std::size_t t = 0; t < num_threads; ++t) threads.emplace_back(work);
      while (on_progress && done < files.size()) {
        on_progress("pictures", static_cast<std::int64_t>(done), static_cast<std::int64_t>(files.size()));
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
      }
    }
    for (std::size_t i = 0; i < names.size(); ++i) {
      if (!problems[i].empty()) {
        unreadable_pictures_.add(first_sample_.at(names[i]), problems[i]);
      } else if (flat[i] != 0) {
        flat_pictures_.add(first_sample_.at(names[i]), names[i] + ": every pixel has the same value");
      }
    }
  }

  void compare_with(const std::string& path) {
    const auto other = open_dataset(path, {.format = {}, .frame = {}});
    std::set<std::string> patients, pictures;
    for (std::int64_t i = 0; i < other->size(); ++i) {
      const Sample sample = other->get(i);
      if (!sample.patient.empty() && patients_.contains(sample.patient)) patients.insert(sample.patient);
      if (questions_of_.contains(sample.image)) pictures.insert(sample.image);
    }
    Json entry = {{"path", path}, {"patients", patients.size()}, {"pictures", pictures.size()}};
    entry["listed"] = Json::array();
    for (const std::string& patient : patients) {
      if (static_cast<std::int64_t>(entry["listed"].size()) < options_.max_listed) entry["listed"].push_back(patient);
    }
    num_shared_ += static_cast<std::int64_t>(patients.size() + pictures.size());
    others_.push_back(std::move(entry));
  }

  std::vector<std::int64_t> choose_examples() const {
    const auto wanted = static_cast<std::size_t>(std::max<std::int64_t>(0, options_.num_pictures));
    std::vector<std::pair<double, std::int64_t>> worst;
    for (const auto& [index, weight] : worst_) worst.emplace_back(-weight, index);
    std::sort(worst.begin(), worst.end());
    std::vector<std::int64_t> chosen;
    std::set<std::string> pictures;
    for (const auto& [weight, index] : worst) {
      if (2 * chosen.size() >= wanted) break;
      if (pictures.insert(dataset_.get(index).image).second) chosen.push_back(index);
    }
    RandomStream random({static_cast<std::uint64_t>(options_.seed), hash_key("inspect examples")});
    for (std::size_t tries = 0; chosen.size() < wanted && dataset_.size() > 0 && tries < 20 * wanted; ++tries) {
      const auto index = static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(dataset_.size())));
      if (pictures.insert(dataset_.get(index).image).second) chosen.push_back(index);
    }
    return chosen;
  }

  Json bad_rows_report() const {
    std::map<std::string, std::int64_t> kinds;
    Json listed = Json::array(), first = Json::array();
    for (const BadRow& bad : dataset_.bad_rows()) {
      if (++kinds[kind_of(bad.reason)] == 1 && static_cast<std::int64_t>(first.size()) < options_.max_listed)
        first.push_back({{"row", bad.row}, {"reason", bad.reason}});
      if (static_cast<std::int64_t>(listed.size()) < options_.max_listed)
        listed.push_back({{"row", bad.row}, {"reason", bad.reason}});
    }
    return {{"count", dataset_.bad_rows().size()},
            {"by_reason", counts_json(kinds)},
            {"first_of_each_reason", std::move(first)},
            {"listed", std::move(listed)}};
  }

  Json split_report() {
    Json json = {{"counts", counts_json(splits_)}};
    Listing shared = make_listing();
    for (const auto& [patient, splits] : patient_splits_) {
      if (splits.size() > 1) shared.add(patient, fmt::format("in {}", fmt::join(splits, ", ")));
    }
    num_in_two_splits_ = shared.count();
    json["patients_in_two"] = shared.to_json();
    json["others"] = others_;
    return json;
  }

  Json report() {
    const std::int64_t good = dataset_.size(), bad = static_cast<std::int64_t>(dataset_.bad_rows().size());
    Json json;
    json["data"] = options_.data;
    json["format"] = options_.format;
    json["rows"] = {{"all", good + bad}, {"usable", good}, {"bad", bad}};
    json["types"] = counts_json(types_);
    if (!content_types_.empty()) json["content_types"] = counts_json(content_types_);
    std::vector<std::int64_t> per_picture;
    for (const auto& [image, count] : questions_of_) per_picture.push_back(count);
    Json pictures = {{"named", questions_of_.size()},
                     {"patients", patients_.size()},
                     {"questions_per_picture", distribution(per_picture)}};
    if (pictures_.active()) {
      const double all = static_cast<double>(questions_of_.size());
      pictures["found"] = static_cast<std::int64_t>(questions_of_.size()) - missing_pictures_.count();
      pictures["hit_rate"] = all > 0 ? rounded(1 - static_cast<double>(missing_pictures_.count()) / all) : 0.0;
      pictures["questions_with_picture"] = num_samples_found_;
      pictures["missing"] = missing_pictures_.to_json();
      pictures["unreadable"] = unreadable_pictures_.to_json();
      pictures["decoded"] = options_.decode_pictures;
      pictures["flat"] = flat_pictures_.to_json();
      pictures["sizes"] = counts_json(sizes_);
      pictures["size_differs_from_row"] = wrong_sizes_.to_json();
    }
    json["pictures"] = std::move(pictures);
    std::map<std::string, std::int64_t> top_names;
    for (const auto& [name, count] : region_names_) top_names[name] = count;
    json["boxes"] = {{"count", num_boxes_},
                     {"per_question", distribution(boxes_per_question_)},
                     {"regions", counts_json(top_names)},
                     {"names_outside_the_region_list", num_unknown_names_},
                     {"outside", boxes_outside_.to_json()},
                     {"on_padding", boxes_in_padding_.to_json()},
                     {"tiny", tiny_boxes_.to_json()},
                     {"repeated", repeated_boxes_.to_json()},
                     {"reversed", reversed_.num_reversed}};
    const BoxFrame declared = frame_boxes_.empty() ? BoxFrame() : frame_boxes_.front().box.frame;
    json["frame"] = frame_report(frame_boxes_, declared);
    json["frame"]["declared_frames"] = counts_json(frames_);
    json["think"] = {{"with_think", num_with_think_},
                     {"boxes", num_think_boxes_},
                     {"bad_boxes", bad_think_boxes_.to_json()},
                     {"not_in_answer", think_only_.to_json()},
                     {"not_in_think", answer_only_.to_json()}};
    json["answers"] = {{"not_among_choices", not_a_choice_.to_json()},
                       {"without_choices", no_choices_.to_json()},
                       {"closed_not_yes_no", closed_not_yes_no_.to_json()}};
    json["duplicates"] = {{"same_answer", duplicates_.to_json()},
                          {"other_answer", contradictions_.to_json()},
                          {"other_reader", disagreements_.to_json()}};
    json["splits"] = split_report();
    json["lengths"] = {{"unit", tokenizer_ ? "tokens" : "words"}, {"tokenizer", options_.tokenizer},
                       {"samples", question_lengths_.size()},     {"question", distribution(question_lengths_)},
                       {"think", distribution(think_lengths_)},   {"response", distribution(response_lengths_)},
                       {"target", distribution(target_lengths_)}};
    json["bad_rows"] = bad_rows_report();
    json["problems"] = problems(json);
    return json;
  }

  // One line for each kind of finding, with examples. error: training on it is wrong or impossible; warning: look at
  // it.
  Json problems(const Json& json) const {
    Json lines = Json::array();
    const auto add = [&](const char* level, std::int64_t count, const std::string& text, const Json& examples) {
      if (count > 0) lines.push_back({{"level", level}, {"count", count}, {"text", text}, {"examples", examples}});
    };
    // `one` and `many`: what is said of one finding, and of several.
    const auto add_listed = [&](const char* level, const Listing& found, const char* one, const char* many) {
      Json examples = Json::array();
      if (found.count() > 0 && !found.example().empty()) examples.push_back(found.example());
      add(level, found.count(), found.count() == 1 ? one : many, examples);
    };
    Json bad_rows = Json::array();
    for (const Json& row : json["bad_rows"]["first_of_each_reason"])
      bad_rows.push_back(fmt::format("row {}: {}", row["row"].dump(), row["reason"].get<std::string>()));
    const auto num_bad = static_cast<std::int64_t>(dataset_.bad_rows().size());
    add("error", num_bad, num_bad == 1 ? "row cannot be used" : "rows cannot be used", bad_rows);
    if (is_another_order(reversed_, num_boxes_))
      add("error", reversed_.num_reversed,
          "boxes have reversed corners, too many for slips: their numbers are likely in another order (x, y, width, "
          "height, or y first). Convert them, or name their order in thinkvg's own JSON lines",
          Json::array({reversed_.example}));
    if (pictures_.active()) {
      add_listed("error", missing_pictures_, "picture is not under the image root",
                 "pictures are not under the image root");
      add_listed("error", unreadable_pictures_, "picture cannot be read", "pictures cannot be read");
      add_listed("error", wrong_sizes_, "picture has another size than the row says: boxes in original pixels miss",
                 "pictures have another size than the row says: boxes in original pixels miss");
    }
    if (json["frame"]["agrees"].is_boolean() && !json["frame"]["agrees"].get<bool>())
      add("error", static_cast<std::int64_t>(json["frame"]["boxes"].get<std::size_t>()),
          "boxes: " + json["frame"]["verdict"].get<std::string>(), Json::array());
    Json patients = Json::array();
    for (const Json& item : json["splits"]["patients_in_two"]["listed"]) {
      if (patients.empty()) patients.push_back(item["id"].get<std::string>() + " " + item["reason"].get<std::string>());
    }
    add("error", num_in_two_splits_,
        num_in_two_splits_ == 1 ? "patient is in two splits" : "patients are in two splits", patients);
    add("error", num_shared_,
        num_shared_ == 1 ? "patient or picture is also in the other sets"
                         : "patients and pictures are also in the other sets",
        Json::array());
    add_listed("error", not_a_choice_, "answer is not among its choices", "answers are not among their choices");
    add_listed("error", contradictions_, "question comes again with another answer",
               "questions come again with another answer");
    add_listed("warning", flat_pictures_, "picture shows nothing: all its pixels are equal",
               "pictures show nothing: all their pixels are equal");
    add_listed("warning", boxes_outside_, "box lies outside the picture, in part or wholly",
               "boxes lie outside the picture, in part or wholly");
    add_listed("warning", boxes_in_padding_, "box lies on the padding in part", "boxes lie on the padding in part");
    add_listed("warning", no_choices_, "choice question has no choices that could be told apart",
               "choice questions have no choices that could be told apart");
    add_listed("warning", bad_think_boxes_, "box text in the reasoning gives no box",
               "box texts in the reasoning give no box");
    add_listed("warning", think_only_, "box of the reasoning is not among the answer's",
               "boxes of the reasoning are not among the answer's");
    add_listed("warning", answer_only_, "box of the answer is not named in the reasoning",
               "boxes of the answer are not named in the reasoning");
    add_listed("warning", duplicates_, "question comes again with the same answer",
               "questions come again with the same answer");
    add_listed("warning", repeated_boxes_, "box stands twice in its row", "boxes stand twice in their row");
    add_listed("warning", tiny_boxes_, "box covers less than a thousandth of the picture",
               "boxes cover less than a thousandth of the picture");
    add_listed("note", closed_not_yes_no_, "closed question has an answer other than yes or no",
               "closed questions have an answer other than yes or no");
    add_listed("note", disagreements_, "question is answered otherwise by another reader",
               "questions are answered otherwise by another reader");
    add("note", num_unknown_names_,
        num_unknown_names_ == 1 ? "box has a name outside the list of anatomical regions"
                                : "boxes have a name outside the list of anatomical regions",
        Json::array());
    return lines;
  }

  const Dataset& dataset_;
  const InspectOptions& options_;
  Pictures pictures_;
  std::unique_ptr<text::Tokenizer> tokenizer_;

  std::map<std::string, std::int64_t> types_, content_types_, splits_, frames_, region_names_, sizes_;
  std::set<std::string> patients_;
  std::map<std::string, std::set<std::string>> patient_splits_;
  std::unordered_map<std::string, std::int64_t> questions_of_;  // by picture
  std::unordered_map<std::string, std::string> first_sample_;   // with that picture
  std::int64_t num_with_think_ = 0, num_boxes_ = 0, num_unknown_names_ = 0, num_samples_found_ = 0;
  std::int64_t num_think_boxes_ = 0, num_shared_ = 0, num_in_two_splits_ = 0;
  std::int64_t box_count_ = 0, box_step_ = 1;
  std::vector<SeenBox> frame_boxes_;
  std::vector<std::int64_t> boxes_per_question_, question_lengths_, think_lengths_, response_lengths_, target_lengths_;
  struct Asked {
    std::string id, answer, reader;
  };
  std::unordered_map<std::string, Asked> asked_;
  Json others_ = Json::array();
  std::map<std::int64_t, double> worst_;

  ReversedBoxes reversed_;

  Listing missing_pictures_ = make_listing(), unreadable_pictures_ = make_listing(), wrong_sizes_ = make_listing();
  Listing flat_pictures_ = make_listing(), disagreements_ = make_listing();
  Listing boxes_outside_ = make_listing(), boxes_in_padding_ = make_listing(), tiny_boxes_ = make_listing();
  Listing repeated_boxes_ = make_listing(), bad_think_boxes_ = make_listing(), think_only_ = make_listing();
  Listing answer_only_ = make_listing(), not_a_choice_ = make_listing(), no_choices_ = make_listing();
  Listing closed_not_yes_no_ = make_listing(), duplicates_ = make_listing(), contradictions_ = make_listing();
};

}  // namespace

Inspection inspect(const Dataset& dataset, const InspectOptions& options, const InspectProgress& on_progress) {
  if (options.decode_pictures && options.images.empty())
    throw_invalid("decode_pictures reads the pictures: name their folder with --images");
  return Inspector(dataset, options).run(on_progress);
}

std::string inspection_summary(const Inspection& inspection) {
  const Json& r = inspection.report;
  std::string text = fmt::format("{} rows: {} usable, {} bad\n", r["rows"]["all"].dump(), r["rows"]["usable"].dump(),
                                 r["rows"]["bad"].dump());
  text += "types:";
  for (const auto& [name, count] : r["types"].items()) text += fmt::format(" {} {}", name, count.dump());
  text +=
      fmt::format("\npictures: {}, of {} patients", r["pictures"]["named"].dump(), r["pictures"]["patients"].dump());
  if (r["pictures"].contains("hit_rate"))
    text += fmt::format(", {:.2f} % found", 100 * r["pictures"]["hit_rate"].get<double>());
  text += fmt::format("\nboxes: {}; {}\n", r["boxes"]["count"].dump(), r["frame"]["verdict"].get<std::string>());
  if (r["problems"].empty()) text += "nothing is wrong\n";
  for (const Json& line : r["problems"]) {
    text += fmt::format("{:>8}: {} {}\n", line["level"].get<std::string>(),
                        format_count(line["count"].get<std::int64_t>()), line["text"].get<std::string>());
    constexpr std::size_t kMostExamples = 5, kLongestExample = 300;
    const Json& examples = line["examples"];
    for (std::size_t i = 0; i < std::min(kMostExamples, examples.size()); ++i)
      text += fmt::format("          {}\n", html::shorten(examples[i].get<std::string>(), kLongestExample));
    if (examples.size() > kMostExamples)
      text += fmt::format("          and {} other reasons\n", examples.size() - kMostExamples);
  }
  return text;
}

}  // namespace thinkvg::data
