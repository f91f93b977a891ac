#include "data/phantom_questions.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cmath>

#include "thinkvg/grounding/response.h"

namespace thinkvg::data::phantom {
namespace {

using grounding::Box;
using grounding::BoxFrame;
using grounding::Region;

constexpr std::string_view kNone = "no abnormality";
constexpr std::int64_t kFrame = 336;

constexpr const char* kIsThere = "Is there FINDING in PLACE?";
constexpr const char* kIsClear = "Is PLACE clear?";
constexpr const char* kIsEnlarged = "Is the cardiac silhouette enlarged?";
constexpr const char* kWhichRegion = "Which region shows FINDING?";
constexpr const char* kWhichFinding = "Which finding is seen in PLACE?";
constexpr const char* kWhichLung = "Which lung shows an abnormality?";
constexpr const char* kWhere = "Where is FINDING?";
constexpr const char* kWhatIsSeen = "What abnormality is seen in PLACE?";

const std::vector<Place>& lung_zones() { return kind_places(Kind::opacity); }

std::string with_article(Kind kind) {
  switch (kind) {
    case Kind::atelectasis:
    case Kind::cardiomegaly:
      return std::string(kind_name(kind));
    case Kind::opacity:
      return "an opacity";
    default:
      return fmt::format("a {}", kind_name(kind));
  }
}

std::string_view sign(Kind kind) {
  switch (kind) {
    case Kind::opacity:
      return "a dense patchy white area";
    case Kind::nodule:
      return "a small round white spot";
    case Kind::effusion:
      return "white fluid with a curved upper edge";
    case Kind::pneumothorax:
      return "a black area without lung markings behind a thin line";
    case Kind::atelectasis:
      return "a narrow white band";
    case Kind::cardiomegaly:
      return "a width of more than half of the chest";
    case Kind::device:
      return "a bright metal device with a wire";
  }
  return "";
}

std::string_view clear_sign(Place place) {
  switch (place) {
    case Place::heart:
      return "a width of less than half of the chest";
    case Place::right_angle:
    case Place::left_angle:
      return "a sharp dark corner";
    case Place::right_apex:
    case Place::left_apex:
      return "lung markings up to the chest wall";
    default:
      return "even dark lung with normal markings";
  }
}

// The zone that a finding is counted under when a question is about zones.
Place zone_of(const Finding& finding) {
  switch (finding.place) {
    case Place::right_angle:
      return Place::right_lower_zone;
    case Place::left_angle:
      return Place::left_lower_zone;
    case Place::right_apex:
      return Place::right_upper_zone;
    case Place::left_apex:
      return Place::left_upper_zone;
    default:
      return finding.place;
  }
}

std::vector<Kind> zone_kinds(Place zone) {
  switch (zone) {
    case Place::right_upper_zone:
    case Place::left_upper_zone:
      return {Kind::opacity, Kind::nodule, Kind::pneumothorax, Kind::device};
    case Place::right_mid_zone:
    case Place::left_mid_zone:
      return {Kind::opacity, Kind::nodule, Kind::atelectasis};
    case Place::heart:
      return {Kind::cardiomegaly};
    default:
      return {Kind::opacity, Kind::nodule, Kind::atelectasis, Kind::effusion};
  }
}

const Finding* in_zone(const Scene& scene, Place zone) {
  for (const Finding& finding : scene.findings) {
    if (zone_of(finding) == zone) return &finding;
  }
  return nullptr;
}

const Box& region_box(const Scene& scene, Place place) { return scene.regions[static_cast<std::size_t>(place)]; }

// Whether a finding that belongs elsewhere reaches into the place, so that "clear" could be disputed.
bool reached_into(const Scene& scene, Place place) {
  const Box& region = region_box(scene, place);
  for (const Finding& finding : scene.findings) {
    if (finding.kind == Kind::cardiomegaly || finding.place == place || zone_of(finding) == place) continue;
    const double w = std::min(region.x2, finding.box.x2) - std::max(region.x1, finding.box.x1);
    const double h = std::min(region.y2, finding.box.y2) - std::max(region.y1, finding.box.y1);
    if (w > 0 && h > 0 && w * h > 0.15 * finding.box.area()) return true;
  }
  return false;
}

bool in_lung(const Finding& finding) { return finding.kind != Kind::cardiomegaly && finding.kind != Kind::device; }

bool is_right(const Finding& finding) { return finding.box.is_valid() && finding.u < 0; }

// What share of the questions of its type a pattern is meant to have.
struct PatternShare {
  std::size_t group;
  double share;
};
PatternShare pattern_share(std::string_view pattern) {
  if (pattern == kIsThere) return {0, 0.6};
  if (pattern == kIsClear) return {0, 0.25};
  if (pattern == kIsEnlarged) return {0, 0.15};
  if (pattern == kWhichRegion) return {1, 0.35};
  if (pattern == kWhichFinding) return {1, 0.4};
  if (pattern == kWhichLung) return {1, 0.25};
  return {2, 0.5};
}

std::string letter(std::size_t i) { return std::string(1, static_cast<char>('A' + i)); }

std::string pick(RandomStream& random, std::initializer_list<std::string_view> texts) {
  return std::string(texts.begin()[random.below(texts.size())]);
}

bool contains(const std::vector<std::string>& list, const std::string& text) {
  return std::find(list.begin(), list.end(), text) != list.end();
}

std::string join(const std::vector<std::string>& parts, std::string_view between) {
  return fmt::format("{}", fmt::join(parts, between));
}

}  // namespace

std::string Question::full_text() const { return choices.empty() ? text : text + " " + join(choices, ", "); }

Box snapped(const Box& original, const grounding::ImageSize& size, std::int64_t grid) {
  const BoxFrame frame = BoxFrame::letterbox(kFrame);
  const grounding::ImageGeometry geometry(size);
  const Box box = geometry.convert(original, frame);
  const Box all = geometry.convert(
      {0, 0, static_cast<double>(size.width), static_cast<double>(size.height), BoxFrame::original()}, frame);
  const auto step = static_cast<double>(grid);
  const auto side = [step](double low, double high, double first, double last) {
    const double least = std::ceil(first / step - 1e-9) * step;
    const double most = std::floor(last / step + 1e-9) * step;
    double a = std::clamp(std::round(low / step) * step, least, most);
    double b = std::clamp(std::round(high / step) * step, least, most);
    if (b - a < step) (b + step <= most ? b : a) += b + step <= most ? step : -step;
    return std::pair(a, b);
  };
  const auto [x1, x2] = side(box.x1, box.x2, all.x1, all.x2);
  const auto [y1, y2] = side(box.y1, box.y2, all.y1, all.y2);
  return {x1, y1, x2, y2, frame};
}

std::string Questioner::balanced(const std::string& name, const std::vector<std::string>& keys, RandomStream& random) {
  std::map<std::string, std::int64_t>& counts = counts_[name];
  std::vector<std::string> least;
  for (const std::string& key : keys) {
    if (least.empty() || counts[key] < counts[least.front()]) least.clear();
    if (least.empty() || counts[key] == counts[least.front()]) least.push_back(key);
  }
  std::string chosen = least[random.below(least.size())];
  ++counts[chosen];
  return chosen;
}

const Questioner::Candidate* Questioner::choose(const std::vector<Candidate>& candidates, RandomStream& random,
                                                const std::vector<std::string>& asked) {
  const Candidate* best = nullptr;
  double best_gain = 0;
  const auto lack = [&](const std::string& pattern) {
    const PatternShare wanted = pattern_share(pattern);
    return wanted.share * static_cast<double>(num_chosen_[wanted.group]) -
           static_cast<double>(pattern_counts_[pattern]);
  };
  for (const Candidate& candidate : candidates) {
    if (contains(asked, candidate.text)) continue;
    double total = 0, same = 0;
    if (const auto counts = counts_.find(candidate.text); counts != counts_.end()) {
      for (const auto& [content, count] : counts->second) {
        total += static_cast<double>(count);
        if (content == candidate.content) same = static_cast<double>(count);
      }
    }
    // Balance comes first; the mix of patterns decides among questions that are about as good.
    const double gain = total / static_cast<double>(candidate.num_contents) - same +
                        0.6 * std::clamp(lack(candidate.pattern), -1.0, 1.0) + 0.2 * random.uniform();
    if (best == nullptr || gain > best_gain) {
      best = &candidate;
      best_gain = gain;
    }
  }
  if (best == nullptr) return nullptr;
  ++counts_[best->text][best->content];
  ++pattern_counts_[best->pattern];
  ++num_chosen_[pattern_share(best->pattern).group];
  return best;
}

std::vector<Questioner::Candidate> Questioner::closed_candidates(const Scene& scene) const {
  std::vector<Candidate> candidates;
  for (std::size_t k = 0; k < kNumKinds; ++k) {
    const auto kind = static_cast<Kind>(k);
    for (const Place place : kind_places(kind)) {
      const Finding* finding = scene.find(kind, place);
      if (finding == nullptr && place != Place::heart && reached_into(scene, place)) continue;
      Candidate candidate;
      candidate.pattern = kIsThere;
      candidate.kind = kind;
      candidate.place = place;
      candidate.finding = finding;
      candidate.content = finding != nullptr ? "yes" : "no";
      if (kind == Kind::cardiomegaly) {
        candidate.pattern = candidate.text = kIsEnlarged;
      } else {
        const std::string_view where = kind == Kind::effusion ? "at" : kind == Kind::device ? "over" : "in";
        candidate.text = fmt::format("Is there {} {} the {}?", with_article(kind), where, place_name(place));
      }
      if (finding == nullptr) {
        for (const Finding& other : scene.findings) {
          if (other.place == place || zone_of(other) == place) candidate.finding = &other;
        }
      }
      candidates.push_back(std::move(candidate));
    }
  }
  for (const Place zone : lung_zones()) {
    if (reached_into(scene, zone)) continue;
    Candidate candidate;
    candidate.pattern = kIsClear;
    candidate.text = fmt::format("Is the {} clear?", place_name(zone));
    candidate.place = zone;
    candidate.finding = in_zone(scene, zone);
    candidate.content = candidate.finding == nullptr ? "yes" : "no";
    candidates.push_back(std::move(candidate));
  }
  return candidates;
}

std::vector<Questioner::Candidate> Questioner::open_candidates(const Scene& scene) const {
  std::vector<Candidate> candidates;
  for (const Finding& finding : scene.findings) {
    if (finding.kind == Kind::cardiomegaly) continue;
    candidates.push_back({kWhere, fmt::format("Where is the {}?", kind_name(finding.kind)),
                          std::string(place_name(finding.place)), kind_places(finding.kind).size(), finding.kind,
                          finding.place, &finding});
  }
  std::vector<Place> places = lung_zones();
  places.push_back(Place::heart);
  for (const Place place : places) {
    const Finding* finding = in_zone(scene, place);
    if (finding == nullptr && place != Place::heart && reached_into(scene, place)) continue;
    candidates.push_back({kWhatIsSeen, fmt::format("What abnormality is seen in the {}?", place_name(place)),
                          std::string(finding == nullptr ? kNone : kind_name(finding->kind)),
                          zone_kinds(place).size() + 1, finding == nullptr ? Kind::opacity : finding->kind, place,
                          finding});
  }
  return candidates;
}

std::vector<Questioner::Candidate> Questioner::single_candidates(const Scene& scene) const {
  std::vector<Candidate> candidates;
  for (const Finding& finding : scene.findings) {
    const std::size_t num_places = kind_places(finding.kind).size();
    if (num_places < 4) continue;
    candidates.push_back({kWhichRegion, fmt::format("Which region shows the {}?", kind_name(finding.kind)),
                          std::string(place_name(finding.place)), num_places, finding.kind, finding.place, &finding});
  }
  for (const Place zone : lung_zones()) {
    const Finding* finding = in_zone(scene, zone);
    if (finding == nullptr && reached_into(scene, zone)) continue;
    candidates.push_back({kWhichFinding, fmt::format("Which finding is seen in the {}?", place_name(zone)),
                          std::string(finding == nullptr ? kNone : kind_name(finding->kind)),
                          zone_kinds(zone).size() + 1, Kind::opacity, zone, finding});
  }
  if (scene.find(Kind::device) == nullptr) {
    bool right = false, left = false;
    for (const Finding& finding : scene.findings) {
      if (in_lung(finding)) (is_right(finding) ? right : left) = true;
    }
    candidates.push_back({kWhichLung, kWhichLung,
                          right && left ? "both lungs"
                          : right       ? "right lung only"
                          : left        ? "left lung only"
                                        : "neither lung",
                          4, Kind::opacity, Place::both_lungs, nullptr});
  }
  return candidates;
}

namespace {

// Texts with inline regions, and the regions of the answer.
struct Writer {
  const Scene& scene;
  std::int64_t grid;

  Region region(const Finding& finding) const {
    return {std::string(place_name(finding.place)), snapped(finding.box, scene.size, grid)};
  }
  Region region(Place place) const {
    return {std::string(place_name(place)), snapped(region_box(scene, place), scene.size, grid)};
  }
  static std::string inline_region(const Region& region) {
    return fmt::format("{} (region {})", region.name, grounding::format_box(region.box));
  }
  std::string shows(const Finding& finding, RandomStream& random) const {
    const std::string where = inline_region(region(finding));
    return random.chance(0.5) ? fmt::format("The {} shows {}.", where, sign(finding.kind))
                              : fmt::format("In the {} I see {}.", where, sign(finding.kind));
  }
  std::string clear(Place place) const {
    return fmt::format("The {} shows {}.", inline_region(region(place)),
                       place == Place::both_lungs ? "no white or black patch" : clear_sign(place));
  }
};

}  // namespace

Question Questioner::closed_question(const Scene& scene, const Candidate& candidate, RandomStream& random) {
  const Writer writer{scene, grid_};
  Question question;
  question.content_type = "finding";
  question.answer = candidate.content;
  const bool about_clear = candidate.pattern == kIsClear;
  const bool present = about_clear ? candidate.finding != nullptr : candidate.content == "yes";
  if (present) {
    const Finding& finding = *candidate.finding;
    question.think =
        writer.shows(finding, random) + " " +
        (about_clear
             ? fmt::format("This is {}, so the zone is not clear and the answer is no.", with_article(finding.kind))
             : fmt::format("{} {}, so the answer is yes.", pick(random, {"This is the look of", "This fits"}),
                           with_article(finding.kind)));
    question.regions = {writer.region(finding)};
    return question;
  }
  if (candidate.finding != nullptr) {
    const Region region = writer.region(candidate.place);
    question.think =
        fmt::format("The {} shows {}. This is {} and not {}, so the answer is no.", Writer::inline_region(region),
                    sign(candidate.finding->kind), with_article(candidate.finding->kind), with_article(candidate.kind));
  } else {
    question.think = writer.clear(candidate.place) + " " +
                     (about_clear ? std::string("Nothing abnormal is seen here, so the answer is yes.")
                      : random.chance(0.5)
                          ? fmt::format("There is no sign of {}, so the answer is no.", with_article(candidate.kind))
                          : fmt::format("Here I do not see {}, so the answer is no.", with_article(candidate.kind)));
  }
  question.regions = {writer.region(candidate.place)};
  return question;
}

Question Questioner::open_question(const Scene& scene, const Candidate& candidate, RandomStream& random) {
  const Writer writer{scene, grid_};
  Question question;
  question.answer = candidate.content;
  const bool where = candidate.pattern == kWhere;
  question.content_type = where ? "location" : "abnormality";
  if (candidate.finding == nullptr) {
    question.think = writer.clear(candidate.place) + " Nothing abnormal is seen here, so there is no abnormality.";
    question.regions = {writer.region(candidate.place)};
    return question;
  }
  const Finding& finding = *candidate.finding;
  question.think = writer.shows(finding, random) + " " +
                   (where ? fmt::format("{} the {}, so it lies in the {}.", pick(random, {"This is", "This must be"}),
                                        kind_name(finding.kind), place_name(finding.place))
                          : fmt::format("{} {}.", pick(random, {"This is the look of", "So the abnormality is"}),
                                        with_article(finding.kind)));
  question.regions = {writer.region(finding)};
  return question;
}

Question Questioner::single_question(const Scene& scene, const Candidate& candidate, RandomStream& random) {
  const Writer writer{scene, grid_};
  Question question;
  std::vector<std::string> others;
  if (candidate.pattern == kWhichLung) {
    others = {"right lung only", "left lung only", "both lungs", "neither lung"};
    question.content_type = "location";
    for (const Finding& finding : scene.findings) {
      if (!in_lung(finding)) continue;
      question.think += writer.shows(finding, random) + " ";
      question.regions.push_back(writer.region(finding));
    }
    if (question.regions.empty()) {
      question.think = writer.clear(Place::both_lungs) + " ";
      question.regions = {writer.region(Place::both_lungs)};
    }
  } else {
    if (candidate.pattern == kWhichRegion) {
      question.content_type = "location";
      for (const Place place : kind_places(candidate.kind)) others.emplace_back(place_name(place));
    } else {
      question.content_type = "finding";
      for (const Kind kind : zone_kinds(candidate.place)) others.emplace_back(kind_name(kind));
      others.emplace_back(kNone);
    }
    if (candidate.finding != nullptr) {
      question.think = writer.shows(*candidate.finding, random) + " ";
      question.regions = {writer.region(*candidate.finding)};
    } else {
      question.think = writer.clear(candidate.place) + " ";
      question.regions = {writer.region(candidate.place)};
    }
  }
  others.erase(std::remove(others.begin(), others.end(), candidate.content), others.end());
  random.shuffle(others);
  others.resize(3);
  question.answer = balanced("letter of " + candidate.text, {"A", "B", "C", "D"}, random);
  others.insert(others.begin() + (question.answer[0] - 'A'), candidate.content);
  for (std::size_t i = 0; i < 4; ++i) question.choices.push_back(letter(i) + ": " + others[i]);
  for (std::size_t i = 0; i < 4; ++i)
    question.think += fmt::format("{}, {}. ", question.choices[i], letter(i) == question.answer ? "yes" : "no");
  question.think += fmt::format("{} {}.", pick(random, {"So the answer is", "The answer is"}), question.answer);
  return question;
}

Question Questioner::multi_question(const Scene& scene, RandomStream& random, const std::vector<std::string>& asked) {
  const Writer writer{scene, grid_};
  const std::string all_kinds = "Which of these findings are present?";
  const std::string with_none = "Which of these describe the picture?";
  Question question;
  question.type = QuestionType::multi_choice;
  question.content_type = "abnormality";

  // A third of the second question's answers is "no abnormality", which normal pictures give.
  std::map<std::string, std::int64_t>& none_counts = counts_[with_none];
  bool offer_none = scene.findings.empty() || 2 * none_counts["none"] > none_counts["some"];
  if (contains(asked, offer_none ? with_none : all_kinds)) {
    if (scene.findings.empty() || contains(asked, offer_none ? all_kinds : with_none)) return {};
    offer_none = !offer_none;
  }
  question.text = question.pattern = offer_none ? with_none : all_kinds;
  if (offer_none) ++none_counts[scene.findings.empty() ? "none" : "some"];

  // Kinds in an order that evens out how often each was right and wrong when offered.
  std::vector<Kind> present, absent;
  for (std::size_t k = 0; k < kNumKinds; ++k) {
    const auto kind = static_cast<Kind>(k);
    (scene.find(kind) != nullptr ? present : absent).push_back(kind);
  }
  std::map<std::string, std::int64_t>& offered = counts_["offered in " + question.text];
  const auto surplus = [&](Kind kind) {
    const std::string name(kind_name(kind));
    return offered[name + " right"] - offered[name + " wrong"];
  };
  random.shuffle(present);
  random.shuffle(absent);
  std::stable_sort(present.begin(), present.end(), [&](Kind a, Kind b) { return surplus(a) < surplus(b); });
  std::stable_sort(absent.begin(), absent.end(), [&](Kind a, Kind b) { return surplus(a) > surplus(b); });
  std::size_t num_right = std::min<std::size_t>(present.size(), 3);
  if (num_right > 1 && random.chance(0.4)) num_right = 1 + random.below(num_right);
  const std::size_t num_kinds = offer_none ? 3 : 4;
  present.resize(num_right);
  absent.resize(num_kinds - num_right);
  for (const Kind kind : present) ++offered[std::string(kind_name(kind)) + " right"];
  for (const Kind kind : absent) ++offered[std::string(kind_name(kind)) + " wrong"];

  std::vector<std::string> sets;
  const std::size_t size = std::max<std::size_t>(num_right, 1);
  for (unsigned mask = 1; mask < 16; ++mask) {
    std::vector<std::string> letters;
    for (std::size_t i = 0; i < 4; ++i) {
      if (mask >> i & 1) letters.push_back(letter(i));
    }
    if (letters.size() == size) sets.push_back(join(letters, ", "));
  }
  question.answer = balanced(fmt::format("letters {} of {}", num_right, question.text), sets, random);
  std::vector<std::string> right, wrong;
  for (const Kind kind : present) right.emplace_back(kind_name(kind));
  for (const Kind kind : absent) wrong.emplace_back(kind_name(kind));
  if (offer_none) (right.empty() ? right : wrong).emplace_back(kNone);
  random.shuffle(right);
  random.shuffle(wrong);
  std::vector<std::string> steps;
  for (std::size_t i = 0, r = 0, w = 0; i < 4; ++i) {
    const bool is_right_one = question.answer.find(letter(i)) != std::string::npos;
    const std::string& option = is_right_one ? right[r++] : wrong[w++];
    question.choices.push_back(letter(i) + ": " + option);
    steps.push_back(fmt::format("{}, {}.", question.choices.back(), is_right_one ? "yes" : "no"));
  }
  // What is seen comes first, kind by kind; the options are then held against it.
  std::sort(present.begin(), present.end());
  for (const Kind kind : present) {
    const Finding& finding = *scene.find(kind);
    const Region region = writer.region(finding);
    question.think += fmt::format("The {} shows {}. ", Writer::inline_region(region), with_article(finding.kind));
    question.regions.push_back(region);
  }
  if (question.regions.empty()) {
    question.think = writer.clear(Place::both_lungs) + " ";
    question.regions = {writer.region(Place::both_lungs)};
  }
  question.think +=
      fmt::format("{} {} {}.", join(steps, " "), pick(random, {"So the answer is", "The answer is"}), question.answer);
  question.content = question.answer;
  return question;
}

Question Questioner::ask(const Scene& scene, QuestionType type, RandomStream& random,
                         const std::vector<std::string>& asked) {
  if (type == QuestionType::multi_choice) return multi_question(scene, random, asked);
  const std::vector<Candidate> candidates = type == QuestionType::closed ? closed_candidates(scene)
                                            : type == QuestionType::open ? open_candidates(scene)
                                                                         : single_candidates(scene);
  const Candidate* candidate = choose(candidates, random, asked);
  if (candidate == nullptr) return {};
  Question question = type == QuestionType::closed ? closed_question(scene, *candidate, random)
                      : type == QuestionType::open ? open_question(scene, *candidate, random)
                                                   : single_question(scene, *candidate, random);
  question.type = type;
  question.pattern = candidate->pattern;
  question.text = candidate->text;
  question.content = candidate->content;
  return question;
}

std::string report_text(const Scene& scene) {
  std::string text = "Frontal chest radiograph.";
  for (const Finding& finding : scene.findings) {
    text += finding.kind == Kind::cardiomegaly ? " The cardiac silhouette is enlarged."
                                               : fmt::format(" There is {}: {} at the {}.", with_article(finding.kind),
                                                             sign(finding.kind), place_name(finding.place));
  }
  if (scene.find(Kind::cardiomegaly) == nullptr) text += " Heart size is normal.";
  if (std::none_of(scene.findings.begin(), scene.findings.end(), in_lung)) text += " The lungs are clear.";
  if (scene.find(Kind::pneumothorax) == nullptr) text += " There is no pneumothorax.";
  return text;
}

}  // namespace thinkvg::data::phantom
