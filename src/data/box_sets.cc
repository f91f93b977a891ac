#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <charconv>
#include <map>
#include <stdexcept>

#include "data/byte_source.h"
#include "data/formats.h"
#include "data/json_fields.h"
#include "data/rows.h"
#include "thinkvg/core/error.h"

// Sets of findings with boxes, in pixels of the original picture. They hold no questions; each reader asks what its set
// can answer:
//   MS-CXR    a phrase of a report is to be found: one sample a picture and phrase, with all its boxes
//   VinDr     which findings are there, and where: one sample a picture and reader (they disagree, and are not mixed)
//   RSNA      is there an opacity that suggests pneumonia, and where: one sample a picture
//   NIH       a finding that is there is to be found (others have no boxes): one sample a picture and finding
namespace thinkvg::data {
namespace {

[[noreturn]] void bad(const std::string& reason) { throw std::invalid_argument(reason); }

double number_of(std::string_view text, const char* column) {
  const std::string plain = trimmed(text);
  double value = 0;
  const auto [end, error] = std::from_chars(plain.data(), plain.data() + plain.size(), value);
  if (plain.empty() || error != std::errc() || end != plain.data() + plain.size())
    bad(fmt::format("'{}' should be a number, but is '{:.40}'", column, plain));
  return value;
}

// One line of a set: what it belongs to, and its box.
struct Finding {
  std::string key;  // of the sample
  Sample sample;    // without regions; of the first finding with this key
  std::optional<grounding::Region> region;
};

// Gathers findings into samples, in the order in which the samples begin.
class Gatherer {
 public:
  explicit Gatherer(std::string frame) : frame_(std::move(frame)) {}

  // Reads one row by `read`; what it throws makes the row bad.
  template <class Read>
  void add(const std::string& problem, const Read& read) {
    const std::int64_t row = num_rows_++;
    try {
      if (!problem.empty()) bad(problem);
      Finding finding = read();
      Sample sample = finding.sample;
      if (!frame_.empty()) sample.frame = grounding::BoxFrame::parse(frame_);
      if (finding.region) {
        finding.region->box.frame = sample.frame;
        sample.regions = {*finding.region};
      }
      if (std::string reason = problem_of(sample); !reason.empty()) bad(reason);
      const auto [place, is_new] = places_.emplace(finding.key, samples_.size());
      if (is_new) {
        samples_.push_back(std::move(sample));
      } else {
        Sample& known = samples_[place->second];
        if (known.regions.empty() || !finding.region)
          bad("there is a row that says 'none' and a row with a box for the same picture");
        known.regions.push_back(std::move(*finding.region));
      }
    } catch (const std::invalid_argument& error) {
      bad_.push_back({row, error.what()});
    } catch (const Json::exception& error) {
      bad_.push_back({row, std::string("a value is of another kind than expected: ") + error.what()});
    }
  }

  std::vector<Sample>& samples() { return samples_; }
  std::unique_ptr<Dataset> finish() { return make_dataset(std::move(samples_), std::move(bad_)); }

 private:
  std::string frame_;
  std::vector<Sample> samples_;
  std::vector<BadRow> bad_;
  std::map<std::string, std::size_t> places_;
  std::int64_t num_rows_ = 0;
};

grounding::Region region_of(const std::string& name, const std::array<double, 4>& numbers, grounding::BoxOrder order) {
  return {name, grounding::make_box(numbers, order, grounding::BoxFrame::original())};
}

std::array<double, 4> four_cells(const std::vector<std::string_view>& cells, std::size_t first,
                                 const std::vector<std::string>& columns) {
  std::array<double, 4> numbers{};
  for (std::size_t i = 0; i < 4; ++i) numbers[i] = number_of(cells[first + i], columns[first + i].c_str());
  return numbers;
}

bool all_blank(const std::vector<std::string_view>& cells, std::size_t first) {
  for (std::size_t i = first; i < first + 4; ++i) {
    const std::string text = trimmed(cells[i]);
    if (!text.empty() && text != "nan" && text != "NaN") return false;
  }
  return true;
}

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

// ---- MS-CXR ----

Sample phrase_sample(const std::string& path, const std::string& phrase, const std::string& category) {
  Sample sample;
  sample.image = relative_image(path);
  sample.patient = patient_of(sample.image);
  sample.question = phrase.empty() ? "" : fmt::format("Where does the radiograph show this: \"{}\"?", phrase);
  sample.answer = category;
  sample.id = fmt::format("{}/{}/{}", std::filesystem::path(sample.image).stem().string(), category, phrase);
  sample.fields = {{"phrase", phrase}, {"category", category}};
  return sample;
}

std::unique_ptr<Dataset> open_ms_cxr_json(const Preview& file, const std::string& frame) {
  const Json whole = Json::parse(read_unpacked(file.file), nullptr, false);
  if (!whole.is_object() || !whole.contains("images") || !whole.contains("annotations")) {
    throw_failure("{}: expected an object with images, annotations and categories", file.file.string());
  }
  // What has no id belongs to no annotation, and is not missed.
  const auto by_id = [&](const char* key) {
    std::map<std::string, const Json*> items;
    if (!whole.contains(key)) return items;
    for (const Json& item : whole[key]) {
      const auto id = item.find("id");
      if (id != item.end() && (id->is_string() || id->is_number())) items[text_field(item, "id")] = &item;
    }
    return items;
  };
  const std::map<std::string, const Json*> images = by_id("images"), categories = by_id("categories");
  Gatherer gatherer(frame);
  for (const Json& annotation : whole["annotations"]) {
    gatherer.add("", [&]() -> Finding {
      if (!annotation.is_object()) bad("an annotation should be an object");
      const auto image = images.find(text_field(annotation, "image_id"));
      if (image == images.end()) bad("no image has the id " + text_field(annotation, "image_id"));
      const auto category = categories.find(text_field(annotation, "category_id"));
      if (category == categories.end()) bad("no category has the id " + text_field(annotation, "category_id"));
      std::string phrase;
      for (const std::string& text : texts_field(annotation, "label_text"))
        phrase += (phrase.empty() ? "" : " ") + text;
      const std::string name = text_field(*category->second, "name");
      Sample sample = phrase_sample(text_field(*image->second, {"path", "file_name"}), phrase, name);
      sample.split = text_field(*image->second, "split");
      if (image->second->contains("width") && image->second->contains("height"))
        sample.size = {whole_field(*image->second, "width"), whole_field(*image->second, "height")};
      const auto box = annotation.find("bbox");
      if (box == annotation.end()) bad("the annotation has no 'bbox'");
      return {sample.id, sample, region_of(name, four_numbers(*box), grounding::BoxOrder::xywh)};
    });
  }
  return gatherer.finish();
}

const std::vector<std::string>& ms_cxr_columns() {
  static const std::vector<std::string> kColumns = {
      "path", "label_text", "category_name", "image_width", "image_height", "x", "y", "w", "h"};
  return kColumns;
}

// ---- the shape that all CSV sets share ----

using ReadFinding = Finding (*)(const std::vector<std::string_view>& cells, const std::vector<std::string>& columns);

std::unique_ptr<Dataset> open_csv(const std::vector<Preview>& files, const std::string& frame,
                                  const std::vector<std::string>& columns, ReadFinding read) {
  Gatherer gatherer(frame);
  for (const Preview& file : files) {
    for_each_csv_row(file.file, columns,
                     [&](const RawRow& row) { gatherer.add(row.problem, [&] { return read(row.cells, columns); }); });
  }
  return gatherer.finish();
}

Finding ms_cxr_row(const std::vector<std::string_view>& cells, const std::vector<std::string>& columns) {
  Sample sample = phrase_sample(trimmed(cells[0]), trimmed(cells[1]), trimmed(cells[2]));
  sample.size = {static_cast<std::int64_t>(number_of(cells[3], "image_width")),
                 static_cast<std::int64_t>(number_of(cells[4], "image_height"))};
  if (cells.size() > 9) sample.split = trimmed(cells[9]);
  return {sample.id, sample, region_of(sample.answer, four_cells(cells, 5, columns), grounding::BoxOrder::xywh)};
}

// ---- VinDr-CXR ----

constexpr const char* kNoFinding = "No finding";

Finding vindr_row(const std::vector<std::string_view>& cells, const std::vector<std::string>& columns) {
  Sample sample;
  sample.image = relative_image(cells[0]);
  const std::string name = trimmed(cells[1]);
  const std::string reader = cells.size() > 6 ? trimmed(cells[6]) : std::string();
  sample.id = reader.empty() ? sample.image : sample.image + "/" + reader;
  sample.question = "Which findings does this chest radiograph show, and where are they?";
  sample.answer = name;
  if (!reader.empty()) sample.fields["reader"] = reader;
  if (name == kNoFinding) {
    if (!all_blank(cells, 2)) bad("'No finding' with a box");
    return {sample.id, sample, std::nullopt};
  }
  if (name.empty()) bad("'class_name' is empty");
  return {sample.id, sample, region_of(name, four_cells(cells, 2, columns), grounding::BoxOrder::xyxy)};
}

// ---- RSNA ----

Finding rsna_row(const std::vector<std::string_view>& cells, const std::vector<std::string>& columns) {
  Sample sample;
  sample.image = relative_image(cells[0]);
  sample.id = sample.patient = sample.image;
  sample.size = {1024, 1024};
  sample.type = QuestionType::closed;
  sample.question = "Is there a lung opacity that suggests pneumonia, and where?";
  const std::string target = trimmed(cells[5]);
  if (target == "1") {
    sample.answer = "yes";
    return {sample.id, sample, region_of("lung opacity", four_cells(cells, 1, columns), grounding::BoxOrder::xywh)};
  }
  if (target != "0") bad(fmt::format("'Target' should be 0 or 1, but is '{:.40}'", target));
  if (!all_blank(cells, 1)) bad("'Target' is 0, but there is a box");
  sample.answer = "no";
  return {sample.id, sample, std::nullopt};
}

// ---- NIH ChestX-ray14 ----

Finding nih_row(const std::vector<std::string_view>& cells, const std::vector<std::string>& columns) {
  Sample sample;
  sample.image = relative_image(cells[0]);
  sample.patient = sample.image.substr(0, sample.image.find('_'));
  sample.size = {1024, 1024};
  const std::string name = trimmed(cells[1]);
  if (name.empty()) bad("'Finding Label' is empty");
  sample.id = sample.image + "/" + name;
  sample.question = fmt::format("Where does the radiograph show {}?", lower(name));
  sample.answer = name;
  return {sample.id, sample, region_of(name, four_cells(cells, 2, columns), grounding::BoxOrder::xywh)};
}

void require_csv(const std::vector<Preview>& files, const std::vector<std::string>& columns) {
  for (const Preview& file : files) {
    for (const std::string& column : columns) require_fields(file, FileKind::csv, {std::string_view(column)});
  }
}

const std::vector<std::string>& vindr_columns() {
  static const std::vector<std::string> kColumns = {"image_id", "class_name", "x_min", "y_min", "x_max", "y_max"};
  return kColumns;
}

const std::vector<std::string>& rsna_columns() {
  static const std::vector<std::string> kColumns = {"patientId", "x", "y", "width", "height", "Target"};
  return kColumns;
}

// The header's last name, "Bbox [x,y,w,h]", is four to a CSV reader.
const std::vector<std::string>& nih_columns() {
  static const std::vector<std::string> kColumns = {"Image Index", "Finding Label", "Bbox [x", "y", "w", "h]"};
  return kColumns;
}

bool is_csv_with(const Preview& file, const std::vector<std::string>& columns) {
  return file.kind == FileKind::csv &&
         std::all_of(columns.begin(), columns.end(), [&](const std::string& column) { return file.has(column); });
}

}  // namespace

bool is_ms_cxr(const Preview& file) {
  return is_csv_with(file, ms_cxr_columns()) ||
         (file.kind == FileKind::json_object && file.has_all({"images", "annotations", "categories"}));
}

std::unique_ptr<Dataset> open_ms_cxr(const std::vector<Preview>& files, const std::string& frame) {
  if (files.front().kind == FileKind::json_object) return open_ms_cxr_json(files.front(), frame);
  require_csv(files, ms_cxr_columns());
  std::vector<std::string> columns = ms_cxr_columns();
  if (files.front().has("split")) columns.emplace_back("split");
  return open_csv(files, frame, columns, ms_cxr_row);
}

bool is_vindr(const Preview& file) { return is_csv_with(file, vindr_columns()); }

std::unique_ptr<Dataset> open_vindr(const std::vector<Preview>& files, const std::string& frame) {
  require_csv(files, vindr_columns());
  std::vector<std::string> columns = vindr_columns();
  if (files.front().has("rad_id")) columns.emplace_back("rad_id");
  Gatherer gatherer(frame);
  for (const Preview& file : files) {
    // Readers say 'No finding' once; a test set without readers says it once a picture.
    for_each_csv_row(file.file, columns, [&](const RawRow& row) {
      gatherer.add(row.problem, [&] { return vindr_row(row.cells, columns); });
    });
  }
  for (Sample& sample : gatherer.samples()) {
    std::vector<std::string> names;
    for (const grounding::Region& region : sample.regions) {
      if (std::find(names.begin(), names.end(), region.name) == names.end()) names.push_back(region.name);
    }
    if (!names.empty()) sample.answer = fmt::format("{}", fmt::join(names, ", "));
  }
  return gatherer.finish();
}

bool is_rsna(const Preview& file) { return is_csv_with(file, rsna_columns()); }

std::unique_ptr<Dataset> open_rsna(const std::vector<Preview>& files, const std::string& frame) {
  require_csv(files, rsna_columns());
  return open_csv(files, frame, rsna_columns(), rsna_row);
}

bool is_nih(const Preview& file) { return is_csv_with(file, nih_columns()); }

std::unique_ptr<Dataset> open_nih(const std::vector<Preview>& files, const std::string& frame) {
  require_csv(files, nih_columns());
  return open_csv(files, frame, nih_columns(), nih_row);
}

}  // namespace thinkvg::data
