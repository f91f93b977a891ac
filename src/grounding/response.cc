#include "thinkvg/grounding/response.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <optional>
#include <utility>

#include "thinkvg/core/error.h"
#include "thinkvg/grounding/answer.h"

namespace thinkvg::grounding {
namespace {

constexpr std::string_view kSpaces = " \t\r\n\f\v";
constexpr std::size_t kMaxQuoted = 120;    // length of a bad box text that is kept
constexpr std::size_t kMaxBadBoxes = 256;  // that are kept of a response
constexpr std::size_t kMaxLookBack = 160;  // where the name of an inline region is looked for
constexpr std::size_t kMaxNameWords = 6;

std::string_view trim(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(kSpaces);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kSpaces) - begin + 1);
}

std::string quoted(std::string_view text) {
  text = trim(text);
  return text.size() <= kMaxQuoted ? std::string(text) : std::string(text.substr(0, kMaxQuoted)) + "...";
}

// The beginning of a text, for messages about one spot.
std::string quoted_short(std::string_view text) {
  text = text.substr(0, std::min<std::size_t>(text.size(), 20));
  return std::string(text.substr(0, text.find_first_of(" ,\t\r\n")));
}

enum class TagName { think, response, answer, location, ref, box };
constexpr std::array<std::string_view, 6> kTagNames = {"think", "response", "answer", "location", "ref", "box"};

std::string_view tag_text(TagName name) { return kTagNames[static_cast<std::size_t>(name)]; }

struct Tag {
  TagName name;
  bool closing;
  std::size_t begin, end;  // of "<name>" in the text
};

std::vector<Tag> find_tags(std::string_view text) {
  std::vector<Tag> tags;
  for (std::size_t begin = text.find('<'); begin != std::string_view::npos; begin = text.find('<', begin + 1)) {
    const bool closing = begin + 1 < text.size() && text[begin + 1] == '/';
    const std::string_view rest = text.substr(begin + (closing ? 2 : 1));
    for (std::size_t i = 0; i < kTagNames.size(); ++i) {
      const std::string_view name = kTagNames[i];
      if (rest.size() <= name.size() || rest[name.size()] != '>' || rest.substr(0, name.size()) != name) continue;
      tags.push_back({static_cast<TagName>(i), closing, begin, begin + (closing ? 3 : 2) + name.size()});
      break;
    }
  }
  return tags;
}

// A "[..]" without brackets inside; positions of the brackets.
struct Group {
  std::size_t open, close;
};

// One pass: a "[" starts over, so that nested and unclosed brackets cost nothing.
std::vector<Group> innermost_groups(std::string_view text) {
  std::vector<Group> groups;
  std::size_t open = std::string_view::npos;
  for (std::size_t i = text.find_first_of("[]"); i != std::string_view::npos; i = text.find_first_of("[]", i + 1)) {
    if (text[i] == '[') {
      open = i;
    } else if (open != std::string_view::npos) {
      groups.push_back({open, i});
      open = std::string_view::npos;
    }
  }
  return groups;
}

struct NumberList {
  std::array<double, 4> numbers{};
  std::size_t count = 0;  // of numbers that were read, more than 4 where there are more
  std::string problem;    // why it is no list of four finite numbers
};

// Numbers with commas (or only spaces) between; nothing else.
NumberList read_numbers(std::string_view text) {
  NumberList list;
  std::size_t position = 0;
  const auto skip_spaces = [&] { position = std::min(text.find_first_not_of(kSpaces, position), text.size()); };
  skip_spaces();
  while (position < text.size()) {
    if (list.count > 0) {
      const bool spaced = kSpaces.find(text[position - 1]) != std::string_view::npos;
      const bool comma = text[position] == ',';
      if (comma) {
        ++position;
        skip_spaces();
      } else if (!spaced) {
        list.problem = fmt::format("'{}' stands behind a number", quoted_short(text.substr(position)));
        return list;
      }
    }
    double number = 0;
    const auto [end, error] = std::from_chars(text.data() + position, text.data() + text.size(), number);
    if (error == std::errc::result_out_of_range || (error == std::errc() && !std::isfinite(number))) {
      list.problem = "a coordinate is not a finite number";
      return list;
    }
    if (error != std::errc()) {
      const bool missing = position == text.size() || text[position] == ',';
      list.problem = missing ? "a number is missing beside a comma"
                             : fmt::format("'{}' is not a number", quoted_short(text.substr(position)));
      return list;
    }
    if (list.count < 4) list.numbers[list.count] = number;
    ++list.count;
    position = static_cast<std::size_t>(end - text.data());
    skip_spaces();
  }
  // Short, and without formatting: a hostile text may hold tens of thousands of these.
  if (list.count < 4) list.problem = std::to_string(list.count) + " of 4 numbers";
  if (list.count > 4) list.problem = std::to_string(list.count) + " numbers, not 4";
  return list;
}

struct BoxText {
  std::optional<Box> box;
  std::string problem;  // empty when there is a box
};

BoxText read_box(std::string_view text, const BoxFrame& frame) {
  NumberList list = read_numbers(text);
  if (!list.problem.empty()) return {std::nullopt, std::move(list.problem)};
  const Box box = make_box(list.numbers, BoxOrder::xyxy, frame);
  if (std::string problem = box.problem(); !problem.empty()) return {std::nullopt, std::move(problem)};
  return {box, {}};
}

bool is_word_end(std::string_view text, std::size_t position) {
  return position >= text.size() || kSpaces.find(text[position]) != std::string_view::npos;
}

// The region's name in the words before "(region [..": a known region that they end with, else what follows the
// clause's last "the", else its last words.
std::string inline_region_name(std::string_view before) {
  if (before.size() > kMaxLookBack) {
    before.remove_prefix(before.size() - kMaxLookBack);
    before.remove_prefix(std::min(before.find_first_of(kSpaces), before.size()));
  }
  before = trim(before);
  if (before.ends_with(':')) before = trim(before.substr(0, before.size() - 1));
  for (std::string_view word : {"region", "Region", "regions", "Regions"}) {
    if (!before.ends_with(word)) continue;
    const std::string_view rest = trim(before.substr(0, before.size() - word.size()));
    if (rest.ends_with('(')) before = rest;
    break;
  }
  while (!before.empty() && (before.back() == '(' || before.back() == ':' || before.back() == ',')) {
    before = trim(before.substr(0, before.size() - 1));
  }
  const std::size_t clause = before.find_last_of(".;:,()[]<>\n");
  if (clause != std::string_view::npos) before = trim(before.substr(clause + 1));

  std::vector<std::size_t> word_starts;
  for (std::size_t i = 0; i < before.size(); ++i) {
    if (!is_word_end(before, i) && (i == 0 || is_word_end(before, i - 1))) word_starts.push_back(i);
  }
  if (word_starts.empty()) return {};
  const std::size_t first = word_starts.size() > kMaxNameWords ? word_starts.size() - kMaxNameWords : 0;
  for (std::size_t i = first; i < word_starts.size(); ++i) {
    const std::string_view tail = before.substr(word_starts[i]);
    if (tail.starts_with("the ") || tail.starts_with("The ")) continue;
    if (is_region_name(normalize_region_name(tail))) return std::string(tail);
  }
  for (std::size_t i = word_starts.size(); i-- > 0;) {
    const std::string_view tail = before.substr(word_starts[i]);
    if (i + 1 < word_starts.size() && (tail.starts_with("the ") || tail.starts_with("The "))) {
      return std::string(before.substr(word_starts[i + 1]));
    }
  }
  return std::string(before.substr(word_starts[first]));
}

// Brackets in prose are a box only where they begin like numbers.
bool looks_like_numbers(std::string_view inside) {
  inside = trim(inside);
  if (inside.empty()) return false;
  const char c = inside.front();
  return (c >= '0' && c <= '9') || c == '-' || c == '+' || c == '.' || inside.starts_with("nan") ||
         inside.starts_with("NaN") || inside.starts_with("inf");
}

// What may stand between two boxes of one list.
bool joins_list(std::string_view between) {
  const std::size_t begin = between.find_first_not_of(" \t\r\n,[]");
  if (begin == std::string_view::npos) return true;
  const std::size_t end = between.find_last_not_of(" \t\r\n,[]") + 1;
  const std::string_view word = between.substr(begin, end - begin);
  return word == "and" || word == "&";
}

class ResponseParser {
 public:
  ResponseParser(std::string_view text, const BoxFrame& frame, bool expect_think)
      : text_(text), frame_(frame), expect_think_(expect_think), tags_(find_tags(text)) {}

  ParsedResponse parse() {
    parse_think();
    const bool in_response = open(TagName::response);
    parse_answer();
    parse_location();
    if (in_response) {
      if (close(TagName::response)) {
        if (!trim(text_.substr(position_)).empty()) note("text after </response>");
      } else {
        note("<response> is not closed");
      }
    }
    result_.complete = result_.problem.empty();
    return std::move(result_);
  }

 private:
  // The first problem is the one to tell.
  void note(std::string problem) {
    if (result_.problem.empty()) result_.problem = std::move(problem);
  }

  bool at(TagName name, bool closing) const {
    return next_ < tags_.size() && tags_[next_].name == name && tags_[next_].closing == closing;
  }

  // The text from here to the next tag (or the end).
  std::string_view until_tag() const {
    const std::size_t end = next_ < tags_.size() ? tags_[next_].begin : text_.size();
    return text_.substr(position_, end - position_);
  }

  void go_behind(std::size_t tag) {
    position_ = tags_[tag].end;
    next_ = tag + 1;
  }

  void take_tag() {
    const std::string_view stray = trim(until_tag());
    if (!stray.empty()) {
      note(fmt::format("text outside the tags before <{}{}>", tags_[next_].closing ? "/" : "",
                       tag_text(tags_[next_].name)));
    }
    go_behind(next_);
  }

  // Goes behind the next opening tag of this name, if there is one; what it jumps over is a problem.
  bool open(TagName name) {
    std::size_t found = next_;
    while (found < tags_.size() && (tags_[found].name != name || tags_[found].closing)) ++found;
    if (found == tags_.size()) {
      note(fmt::format("no <{}>", tag_text(name)));
      return false;
    }
    if (found != next_) note(fmt::format("<{}> comes too late", tag_text(name)));
    if (!trim(text_.substr(position_, tags_[found].begin - position_)).empty()) {
      note(fmt::format("text outside the tags before <{}>", tag_text(name)));
    }
    go_behind(found);
    return true;
  }

  bool close(TagName name) {
    if (!at(name, true)) return false;
    take_tag();
    return true;
  }

  std::size_t find_tag(TagName name, bool closing) const {
    for (std::size_t i = next_; i < tags_.size(); ++i) {
      if (tags_[i].name == name && tags_[i].closing == closing) return i;
    }
    return tags_.size();
  }

  void parse_think() {
    const std::size_t opening = find_tag(TagName::think, false), closing = find_tag(TagName::think, true);
    const std::size_t response = std::min(find_tag(TagName::response, false), find_tag(TagName::answer, false));
    if (opening < tags_.size() && opening < response) {
      if (!trim(text_.substr(0, tags_[opening].begin)).empty() || opening != 0) note("text before <think>");
      result_.has_think = true;
      go_behind(opening);
      const std::size_t end = find_tag(TagName::think, true);
      if (end < tags_.size()) {
        take_think(tags_[end].begin);
        go_behind(end);
      } else {
        note("<think> is not closed");
        const std::size_t next = std::min(find_tag(TagName::response, false), find_tag(TagName::answer, false));
        const std::size_t stop = next < tags_.size() ? tags_[next].begin : text_.size();
        take_think(stop);
        position_ = stop;
        next_ = next;
      }
    } else if (closing < tags_.size() && closing < response) {
      note("</think> without <think>");
      result_.has_think = true;
      take_think(tags_[closing].begin);
      go_behind(closing);
    } else if (expect_think_) {
      note("no <think>");
    }
  }

  void take_think(std::size_t end) {
    const std::string_view think = text_.substr(position_, end - position_);
    result_.think = trim(think);
    std::size_t name_from = 0;  // behind the last box
    std::string name;
    for (const Group& group : innermost_groups(think)) {
      const std::string_view inside = think.substr(group.open + 1, group.close - group.open - 1);
      if (!looks_like_numbers(inside)) continue;
      const std::string_view before = think.substr(name_from, group.open - name_from);
      if (name_from == 0 || !joins_list(before)) {
        std::string_view words = before;
        while (!words.empty() && (words.back() == '[' || kSpaces.find(words.back()) != std::string_view::npos)) {
          words.remove_suffix(1);
        }
        name = inline_region_name(words);
      }
      BoxText read = read_box(inside, frame_);
      if (read.box) {
        result_.think_regions.push_back({name, *read.box});
      } else if (result_.bad_think_boxes.size() < kMaxBadBoxes) {
        result_.bad_think_boxes.push_back(quoted(think.substr(group.open, group.close - group.open + 1)));
        result_.bad_think_box_problems.push_back(std::move(read.problem));
      }
      name_from = group.close + 1;
    }
  }

  void parse_answer() {
    if (!open(TagName::answer)) return;
    const std::size_t end = find_tag(TagName::answer, true);
    if (end == tags_.size()) {
      note("<answer> is not closed");
      return;
    }
    if (end != next_) note("a tag inside <answer>");
    result_.has_answer = true;
    result_.answer = trim(text_.substr(position_, tags_[end].begin - position_));
    if (result_.answer.empty()) note("<answer> is empty");
    go_behind(end);
  }

  void parse_location() {
    if (!at(TagName::location, false)) {
      const std::size_t later = find_tag(TagName::location, false);
      if (later == tags_.size()) return;
      note("<location> is not behind </answer>");
      go_behind(later);
    } else {
      take_tag();
    }
    std::vector<std::string> names;  // of the <ref> tags since the last box
    std::string last_name;
    while (next_ < tags_.size()) {
      if (at(TagName::ref, false)) {
        take_tag();
        const std::string name(trim(until_tag()));
        position_ += until_tag().size();
        if (!close(TagName::ref)) note("<ref> is not closed");
        names.push_back(name);
        last_name = name;
      } else if (at(TagName::box, false)) {
        take_tag();
        const std::string_view content = until_tag();
        position_ += content.size();
        const bool closed = close(TagName::box);
        if (!closed) note("<box> is not closed");
        add_boxes(parse_box_list(content, frame_), names, last_name);
        names.clear();
      } else {
        break;
      }
    }
    if (!names.empty()) note("<ref> without <box>");
    if (!close(TagName::location)) note("<location> is not closed");
  }

  // <ref>a</ref><ref>b</ref><box>[[..], [..]]</box> names its boxes one by one.
  void add_boxes(BoxList list, const std::vector<std::string>& names, const std::string& last_name) {
    for (std::size_t i = 0; i < list.boxes.size(); ++i) {
      result_.regions.push_back({names.size() == list.boxes.size() ? names[i] : last_name, list.boxes[i]});
    }
    for (std::size_t i = 0; i < list.bad.size() && result_.bad_boxes.size() < kMaxBadBoxes; ++i) {
      result_.bad_boxes.push_back(std::move(list.bad[i]));
      result_.bad_box_problems.push_back(std::move(list.problems[i]));
    }
  }

  std::string_view text_;
  BoxFrame frame_;
  bool expect_think_;
  std::vector<Tag> tags_;
  std::size_t position_ = 0;  // where unread text begins
  std::size_t next_ = 0;      // the first tag at or behind it
  ParsedResponse result_;
};

std::string format_number(double value, const BoxFrame& frame) {
  std::string text = fmt::format("{:.{}f}", value, frame == BoxFrame::unit() ? 4 : 0);
  return text == "-0" ? "0" : text;
}

}  // namespace

ParsedResponse parse_response(std::string_view text, const BoxFrame& frame, bool expect_think) {
  return ResponseParser(text, frame, expect_think).parse();
}

ParsedResponse parse_sectioned_reply(std::string_view text, const BoxFrame& frame) {
  constexpr std::array<std::string_view, 3> kTags = {"<answer>", "<reason>", "<location>"};
  ParsedResponse result;
  const auto note = [&](std::string problem) {
    if (result.problem.empty()) result.problem = std::move(problem);
  };
  struct Section {
    std::size_t tag, begin, content;
  };
  std::vector<Section> sections;
  for (std::size_t tag = 0; tag < kTags.size(); ++tag) {
    const std::size_t at = text.find(kTags[tag]);
    if (at == std::string_view::npos) continue;
    sections.push_back({tag, at, at + kTags[tag].size()});
    if (text.find(kTags[tag], at + 1) != std::string_view::npos) note(fmt::format("{} stands twice", kTags[tag]));
  }
  for (std::size_t i = 1; i < sections.size(); ++i) {
    if (sections[i].begin < sections[i - 1].begin) note(fmt::format("{} comes too early", kTags[sections[i].tag]));
  }
  std::sort(sections.begin(), sections.end(), [](const Section& a, const Section& b) { return a.begin < b.begin; });
  if (!sections.empty() && !trim(text.substr(0, sections.front().begin)).empty()) note("text before the first tag");
  for (std::size_t i = 0; i < sections.size(); ++i) {
    const std::size_t end = i + 1 < sections.size() ? sections[i + 1].begin : text.size();
    std::string_view content = trim(text.substr(sections[i].content, end - sections[i].content));
    if (content.starts_with(':')) content = trim(content.substr(1));
    if (sections[i].tag == 0) {
      result.has_answer = true;
      result.answer = content;
      if (content.empty()) note("<answer> is empty");
    } else if (sections[i].tag == 1) {
      result.has_think = true;
      result.think = content;
    } else if (!content.empty() && content != "[]") {
      BoxList list = parse_box_list(content, frame);
      for (const Box& box : list.boxes) result.regions.push_back({"", box});
      result.bad_boxes = std::move(list.bad);
      result.bad_box_problems = std::move(list.problems);
    }
  }
  if (!result.has_answer) note("no <answer>");
  result.complete = result.problem.empty();
  return result;
}

BoxList parse_box_list(std::string_view text, const BoxFrame& frame) {
  BoxList list;
  std::size_t after_last = 0;
  const auto bad = [&](std::string_view part, std::string problem) {
    if (list.bad.size() == kMaxBadBoxes) return;
    list.bad.push_back(quoted(part));
    list.problems.push_back(std::move(problem));
  };
  // Between boxes only the list's own brackets and commas may stand.
  const auto check_between = [&](std::size_t end) {
    const std::string_view between = text.substr(after_last, end - after_last);
    if (between.find_first_not_of(" \t\r\n\f\v,[]") != std::string_view::npos) bad(between, "text between the boxes");
  };
  const std::vector<Group> groups = innermost_groups(text);
  for (const Group& group : groups) {
    check_between(group.open);
    BoxText read = read_box(text.substr(group.open + 1, group.close - group.open - 1), frame);
    if (read.box) {
      list.boxes.push_back(*read.box);
    } else {
      bad(text.substr(group.open, group.close - group.open + 1), std::move(read.problem));
    }
    after_last = group.close + 1;
  }
  if (groups.empty()) {
    bad(text, trim(text).empty() ? "no box" : "no [x1, y1, x2, y2] with both brackets");
  } else {
    check_between(text.size());
  }
  return list;
}

std::optional<std::array<double, 4>> read_four_numbers(std::string_view text) {
  text = trim(text);
  if (text.size() >= 2 && text.front() == '[' && text.back() == ']') text = text.substr(1, text.size() - 2);
  const NumberList list = read_numbers(text);
  if (!list.problem.empty()) return std::nullopt;
  return list.numbers;
}

std::string format_response(std::string_view answer, const std::vector<Region>& regions) {
  std::string out = fmt::format("<response><answer>{}</answer>", answer);
  if (!regions.empty()) {
    out += "<location>";
    for (const Region& region : regions) {
      if (!region.name.empty()) out += fmt::format("<ref>{}</ref>", region.name);
      out += fmt::format("<box>{}</box>", format_box(region.box));
    }
    out += "</location>";
  }
  return out + "</response>";
}

std::string format_box(const Box& box) {
  return fmt::format("[{}, {}, {}, {}]", format_number(box.x1, box.frame), format_number(box.y1, box.frame),
                     format_number(box.x2, box.frame), format_number(box.y2, box.frame));
}

std::string convert_inline_boxes(std::string_view text, const ImageGeometry& geometry, const BoxFrame& from,
                                 const BoxFrame& to) {
  std::string out;
  out.reserve(text.size());
  std::size_t copied = 0;
  for (const Group& group : innermost_groups(text)) {
    const BoxText read = read_box(text.substr(group.open + 1, group.close - group.open - 1), from);
    if (!read.box) continue;
    out += text.substr(copied, group.open - copied);
    out += format_box(geometry.rounded(geometry.convert(*read.box, to)));
    copied = group.close + 1;
  }
  out += text.substr(copied);
  return out;
}

}  // namespace thinkvg::grounding
