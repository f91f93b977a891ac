#include "serve/grounded_reply.h"

#include <cmath>

#include "thinkvg/grounding/response.h"

namespace thinkvg::serve {
namespace {

Json numbers(const grounding::Box& box) {
  Json list = Json::array();
  for (const double value : {box.x1, box.y1, box.x2, box.y2}) list.push_back(std::round(value * 100) / 100);
  return list;
}

grounding::BoxFrame model_frame(const std::vector<SeenPicture>& pictures) {
  return pictures.empty() ? grounding::BoxFrame::original() : pictures.front().frame;
}

// Boxes that lie on the picture go to `good`, the others, with the reason, to `bad`.
struct BoxLists {
  Json good = Json::array();
  Json bad = Json::array();
};

BoxLists box_lists(const std::vector<grounding::Region>& regions, const std::vector<SeenPicture>& pictures) {
  BoxLists lists;
  if (pictures.empty()) return lists;
  const grounding::ImageGeometry geometry(pictures.front().original);
  for (const grounding::Region& region : regions) {
    const grounding::FittedBox fitted = geometry.fit(region.box);
    if (!fitted.problem.empty()) {
      lists.bad.push_back({{"text", grounding::format_box(region.box)}, {"problem", fitted.problem}});
      continue;
    }
    lists.good.push_back({{"ref", region.name},
                          {"box", numbers(geometry.convert(fitted.box, grounding::BoxFrame::original()))},
                          {"model_box", numbers(region.box)},
                          {"picture", 0}});
  }
  return lists;
}

// Characters before a byte.
class CharacterCount {
 public:
  explicit CharacterCount(std::string_view text) : text_(text) {}
  // For positions that do not fall.
  std::size_t before(std::size_t position) {
    for (; at_ < position; ++at_) count_ += (static_cast<unsigned char>(text_[at_]) & 0xC0) != 0x80 ? 1 : 0;
    return count_;
  }

 private:
  std::string_view text_;
  std::size_t at_ = 0, count_ = 0;
};

}  // namespace

Json pictures_reply(const std::vector<SeenPicture>& pictures) {
  Json list = Json::array();
  for (const SeenPicture& picture : pictures)
    list.push_back(
        {{"width", picture.original.width}, {"height", picture.original.height}, {"frame", picture.frame.name()}});
  return list;
}

Json sentences_so_far(std::string_view text, std::size_t first, const std::vector<SeenPicture>& pictures,
                      bool finished) {
  Json list = Json::array();
  CharacterCount count(text);
  std::size_t number = 0;
  for (const grounding::GroundedSentence& sentence :
       grounding::grounded_sentences(text, model_frame(pictures), finished)) {
    if (!sentence.complete) break;
    if (number++ < first) continue;
    const std::size_t start = count.before(sentence.begin);
    list.push_back({{"text", sentence.text},
                    {"start", start},
                    {"end", count.before(sentence.end)},
                    {"regions", box_lists(sentence.regions, pictures).good}});
  }
  return list;
}

Json grounded_reply(std::string_view text, const std::vector<SeenPicture>& pictures) {
  const grounding::ParsedResponse parsed = grounding::parse_response(text, model_frame(pictures));
  BoxLists boxes = box_lists(parsed.regions, pictures);
  const auto add_bad = [&](const std::vector<std::string>& texts, const std::vector<std::string>& problems) {
    for (std::size_t i = 0; i < texts.size(); ++i) boxes.bad.push_back({{"text", texts[i]}, {"problem", problems[i]}});
  };
  for (Json& bad : box_lists(parsed.think_regions, pictures).bad) boxes.bad.push_back(std::move(bad));
  add_bad(parsed.bad_boxes, parsed.bad_box_problems);
  add_bad(parsed.bad_think_boxes, parsed.bad_think_box_problems);
  return {{"pictures", pictures_reply(pictures)},
          {"think", parsed.has_think ? Json(parsed.think) : Json()},
          {"answer", parsed.has_answer ? Json(parsed.answer) : Json()},
          {"complete", parsed.complete},
          {"problem", parsed.problem},
          {"boxes", std::move(boxes.good)},
          {"sentences", sentences_so_far(text, 0, pictures, true)},
          {"bad_boxes", std::move(boxes.bad)}};
}

}  // namespace thinkvg::serve
