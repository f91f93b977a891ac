#include "thinkvg/image/dicom.h"

#include <gdcmImageApplyLookupTable.h>
#include <gdcmImageReader.h>
#include <gdcmTrace.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>
#include <opencv2/imgproc.hpp>
#include <optional>
#include <sstream>

#include "image/dicom_header.h"
#include "thinkvg/core/error.h"

namespace thinkvg::image {
namespace {

const gdcm::Tag kPhotometricTag(0x0028, 0x0004), kBitsStored(0x0028, 0x0101), kPixelRepresentation(0x0028, 0x0103),
    kWindowCenter(0x0028, 0x1050), kWindowWidth(0x0028, 0x1051), kIntercept(0x0028, 0x1052), kSlope(0x0028, 0x1053),
    kVoiFunction(0x0028, 0x1056), kModalityLut(0x0028, 0x3000), kLutDescriptor(0x0028, 0x3002),
    kLutData(0x0028, 0x3006), kVoiLut(0x0028, 0x3010);

// GDCM writes its complaints to the standard error unless told not to.
void silence_gdcm() {
  static std::once_flag once;
  std::call_once(once, [] {
    gdcm::Trace::DebugOff();
    gdcm::Trace::WarningOff();
    gdcm::Trace::ErrorOff();
  });
}

std::string_view bytes_of(const gdcm::DataSet& data, const gdcm::Tag& tag) {
  if (!data.FindDataElement(tag)) return {};
  const gdcm::ByteValue* value = data.GetDataElement(tag).GetByteValue();
  return value == nullptr ? std::string_view() : std::string_view(value->GetPointer(), value->GetLength());
}

std::string text_of(const gdcm::DataSet& data, const gdcm::Tag& tag) {
  const std::string_view bytes = bytes_of(data, tag);
  const std::size_t end = bytes.find_last_not_of(std::string_view(" \0", 2));
  return std::string(bytes.substr(0, end == std::string_view::npos ? 0 : end + 1));
}

// The numbers of a decimal string ("450\200"); what is not a number ends the list.
std::vector<double> numbers_of(const gdcm::DataSet& data, const gdcm::Tag& tag) {
  std::vector<double> numbers;
  const std::string text = text_of(data, tag);
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\\', begin), text.size());
    std::size_t first = text.find_first_not_of(" +", begin);
    double value = 0;
    if (first == std::string::npos || first >= end) break;
    if (std::from_chars(text.data() + first, text.data() + end, value).ec != std::errc()) break;
    numbers.push_back(value);
    begin = end + 1;
  }
  return numbers;
}

std::int64_t number16(std::string_view bytes, std::size_t index, bool is_signed) {
  std::uint16_t value = 0;
  if (bytes.size() < 2 * index + 2) return 0;
  std::memcpy(&value, bytes.data() + 2 * index, sizeof value);
  return is_signed ? std::int64_t{static_cast<std::int16_t>(value)} : std::int64_t{value};
}

// A lookup table of a Modality or VOI LUT Sequence.
struct Lut {
  std::int64_t first = 0;  // value that takes entry 0; lower ones take it, too
  int bits = 0;
  std::vector<double> entries;

  double operator()(double value) const {
    if (!(value >= static_cast<double>(first))) return entries.front();
    const auto index = static_cast<std::int64_t>(value - static_cast<double>(first));
    return entries[static_cast<std::size_t>(std::min(index, static_cast<std::int64_t>(entries.size()) - 1))];
  }
};

std::vector<Lut> luts_of(const gdcm::DataSet& data, const gdcm::Tag& tag, bool is_signed) {
  std::vector<Lut> luts;
  if (!data.FindDataElement(tag)) return luts;
  const gdcm::SmartPointer<gdcm::SequenceOfItems> items = data.GetDataElement(tag).GetValueAsSQ();
  if (items == nullptr) return luts;
  for (unsigned i = 1; i <= items->GetNumberOfItems(); ++i) {
    const gdcm::DataSet& item = items->GetItem(i).GetNestedDataSet();
    const std::string_view descriptor = bytes_of(item, kLutDescriptor), table = bytes_of(item, kLutData);
    if (descriptor.size() < 6 || table.empty()) continue;
    const gdcm::VR& kind = item.GetDataElement(kLutDescriptor).GetVR();
    Lut lut;
    std::int64_t count = number16(descriptor, 0, false);
    if (count == 0) count = 65536;
    lut.first = number16(descriptor, 1, kind == gdcm::VR::SS || (kind != gdcm::VR::US && is_signed));
    lut.bits = static_cast<int>(number16(descriptor, 2, false));
    // Entries of 8 bits lie in words of their own or two in a word.
    const bool narrow = static_cast<std::int64_t>(table.size()) < 2 * count;
    const std::int64_t stored = narrow ? static_cast<std::int64_t>(table.size()) : count;
    for (std::int64_t n = 0; n < std::min(count, stored); ++n) {
      const auto at = static_cast<std::size_t>(n);
      lut.entries.push_back(narrow ? static_cast<double>(static_cast<std::uint8_t>(table[at]))
                                   : static_cast<double>(number16(table, at, false)));
    }
    luts.push_back(std::move(lut));
  }
  return luts;
}

// One frame's stored numbers and the data set that says what they mean.
struct Stored {
  std::int64_t width = 0, height = 0, channels = 0;
  std::string photometric;
  int bits = 0;
  bool is_signed = false;
  std::vector<std::int32_t> values;  // interleaved
};

class DicomFile {
 public:
  DicomFile(std::string_view encoded, std::string name) : name_(std::move(name)) {
    silence_gdcm();
    CheckedDicom checked = check_dicom(encoded, name_);
    stream_.str(checked.inflated.empty() ? std::string(encoded) : std::move(checked.inflated));
    reader_.SetStream(stream_);
    bool read = false;
    try {
      read = reader_.Read();
    } catch (const std::exception& error) {
      throw_failure("{}: the DICOM file is damaged and cannot be read: {}", name_, error.what());
    }
    if (!read) throw_failure("{}: the DICOM file is damaged, cut off, or holds no picture", name_);
  }

  const gdcm::DataSet& data() const { return reader_.GetFile().GetDataSet(); }

  Stored stored() {
    gdcm::Image& image = reader_.GetImage();
    Stored result;
    result.width = image.GetDimension(0);
    result.height = image.GetDimension(1);
    if (image.GetNumberOfDimensions() > 2 && image.GetDimension(2) > 1) {
      throw_failure("{}: the DICOM file has {} frames; a question is about one picture, so split it first", name_,
                    image.GetDimension(2));
    }
    result.photometric = text_of(data(), kPhotometricTag);
    const bool palette = image.GetPhotometricInterpretation() == gdcm::PhotometricInterpretation::PALETTE_COLOR;
    gdcm::ImageApplyLookupTable colours;
    if (palette) {
      colours.SetInput(image);
      colours.SetRGB8(true);
      if (!colours.Apply()) throw_failure("{}: the DICOM file's palette is damaged", name_);
    }
    const gdcm::Image& shown = palette ? colours.GetOutput() : image;
    const gdcm::PixelFormat& format = shown.GetPixelFormat();
    result.channels = format.GetSamplesPerPixel();
    if (result.channels != 1 && result.channels != 3) {
      throw_failure("{}: DICOM pixels of {} samples are not supported; expected 1 or 3", name_, result.channels);
    }
    if (result.channels == 1 && result.photometric != "MONOCHROME1" && result.photometric != "MONOCHROME2") {
      throw_failure("{}: the DICOM photometric interpretation '{}' is not supported", name_, result.photometric);
    }
    result.bits = palette ? 8 : static_cast<int>(number16(bytes_of(data(), kBitsStored), 0, false));
    const int bytes = format.GetBitsAllocated() / 8;
    if (result.bits < 1 || result.bits > 8 * bytes) result.bits = format.GetBitsStored();
    result.is_signed = !palette && number16(bytes_of(data(), kPixelRepresentation), 0, false) == 1;

    const std::int64_t count = result.width * result.height * result.channels;
    const auto length = static_cast<std::size_t>(shown.GetBufferLength());
    if (length != static_cast<std::size_t>(count * bytes)) {
      throw_failure("{}: DICOM pixels in the layout {} are not supported", name_, result.photometric);
    }
    std::vector<char> buffer(length);
    if (!shown.GetBuffer(buffer.data())) {
      throw_failure("{}: the pixels of the DICOM file ({}) are damaged, cut off, or of an unknown compression", name_,
                    gdcm::TransferSyntax::GetTSString(image.GetTransferSyntax()));
    }
    take_values(buffer, bytes, result);
    if (result.channels == 3) make_rgb(shown, result);
    return result;
  }

 private:
  // Bits beyond the stored ones may hold anything (overlays): they are cleared, or filled with the sign.
  static void take_values(const std::vector<char>& buffer, int bytes, Stored& result) {
    const std::size_t count = buffer.size() / static_cast<std::size_t>(bytes);
    const int shift = 32 - result.bits;
    result.values.resize(count);
    for (std::size_t i = 0; i < count; ++i) {
      std::uint32_t raw = static_cast<std::uint8_t>(buffer[i]);
      if (bytes == 2) {
        std::uint16_t word = 0;
        std::memcpy(&word, buffer.data() + 2 * i, sizeof word);
        raw = word;
      }
      raw <<= shift;
      result.values[i] =
          result.is_signed ? static_cast<std::int32_t>(raw) >> shift : static_cast<std::int32_t>(raw >> shift);
    }
  }

  void make_rgb(const gdcm::Image& shown, Stored& result) const {
    if (shown.GetPlanarConfiguration() == 1) {
      const std::vector<std::int32_t> planes = result.values;
      const std::size_t count = planes.size() / 3;
      for (std::size_t i = 0; i < count; ++i)
        for (std::size_t c = 0; c < 3; ++c) result.values[3 * i + c] = planes[c * count + i];
    }
    const gdcm::PhotometricInterpretation& kind = shown.GetPhotometricInterpretation();
    if (kind == gdcm::PhotometricInterpretation::YBR_FULL || kind == gdcm::PhotometricInterpretation::YBR_FULL_422) {
      if (result.bits != 8) throw_failure("{}: YBR pixels of {} bits are not supported", name_, result.bits);
      for (std::size_t i = 0; i + 2 < result.values.size(); i += 3) {
        const auto y = static_cast<float>(result.values[i]);
        const auto b = static_cast<float>(result.values[i + 1] - 128);
        const auto r = static_cast<float>(result.values[i + 2] - 128);
        const auto rounded = [](float v) {
          return std::clamp(static_cast<std::int32_t>(std::floor(v + 0.5f)), 0, 255);
        };
        result.values[i] = rounded(y + 1.402f * r);
        result.values[i + 1] = rounded(y - 0.114f * 1.772f / 0.587f * b - 0.299f * 1.402f / 0.587f * r);
        result.values[i + 2] = rounded(y + 1.772f * b);
      }
    }
    result.photometric = "RGB";
  }

  std::string name_;
  std::istringstream stream_;
  gdcm::ImageReader reader_;
};

struct Range {
  double lowest, highest;
};

// What becomes of a stored number of a grey picture; the same for all pixels.
class Transform {
 public:
  Transform(const gdcm::DataSet& data, const Stored& stored, DicomStage stage, std::int64_t window,
            const std::string& name) {
    if (stage == DicomStage::stored) return;
    const std::vector<Lut> modality = luts_of(data, kModalityLut, stored.is_signed);
    const std::vector<double> slope = numbers_of(data, kSlope), intercept = numbers_of(data, kIntercept);
    const double top = std::ldexp(1.0, stored.is_signed ? stored.bits - 1 : stored.bits);
    Range range{stored.is_signed ? -top : 0.0, top - 1};
    if (!modality.empty()) {
      modality_ = modality.front();
      range = {0.0, std::ldexp(1.0, modality_->bits) - 1};
    }
    if (!slope.empty() && !intercept.empty()) {
      if (!modality_) rescale_ = {slope.front(), intercept.front()};
      range = {range.lowest * slope.front() + intercept.front(), range.highest * slope.front() + intercept.front()};
    }
    if (stage != DicomStage::voi) return;

    const std::vector<Lut> voi = luts_of(data, kVoiLut, stored.is_signed);
    const std::vector<double> centers = numbers_of(data, kWindowCenter), widths = numbers_of(data, kWindowWidth);
    const std::size_t count = voi.empty() ? std::min(centers.size(), widths.size()) : voi.size();
    if (count == 0) return;
    if (window < 0 || window >= static_cast<std::int64_t>(count)) {
      throw_invalid("{}: dicom_window is {}, but the file has {} (the first is 0)", name, window, count);
    }
    const auto index = static_cast<std::size_t>(window);
    if (!voi.empty()) {
      voi_ = voi[index];
      output_ = Range{0.0, std::ldexp(1.0, voi_->bits) - 1};
      return;
    }
    std::string function = text_of(data, kVoiFunction);
    std::transform(function.begin(), function.end(), function.begin(),
                   [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
    function_ = function.empty() || function == "LINEAR" ? Function::linear
                : function == "LINEAR_EXACT"             ? Function::linear_exact
                : function == "SIGMOID"                  ? Function::sigmoid
                                                         : throw_failure_function(name, function);
    center_ = centers[index];
    width_ = widths[index];
    if (!(width_ > 0) || (function_ == Function::linear && width_ < 1)) {
      throw_failure("{}: the DICOM VOI window is {} wide; expected at least 1", name, width_);
    }
    if (function_ == Function::linear) {
      center_ -= 0.5;
      width_ -= 1;
    }
    output_ = range;
  }

  double operator()(double value) const {
    if (modality_)
      value = (*modality_)(value);
    else if (rescale_)
      value = value * rescale_->first + rescale_->second;
    if (voi_) return (*voi_)(value);
    if (!output_) return value;
    const auto [lowest, highest] = *output_;
    if (function_ == Function::sigmoid)
      return (highest - lowest) / (1 + std::exp(-4 * (value - center_) / width_)) + lowest;
    if (value <= center_ - width_ / 2) return lowest;
    if (value > center_ + width_ / 2) return highest;
    return ((value - center_) / width_ + 0.5) * (highest - lowest) + lowest;
  }

  // What the last step's values range over; empty where that is up to the picture.
  const std::optional<Range>& output() const { return output_; }

 private:
  enum class Function { linear, linear_exact, sigmoid };

  [[noreturn]] static Function throw_failure_function(const std::string& name, const std::string& function) {
    throw_failure("{}: the DICOM VOI LUT function '{}' is unknown; expected LINEAR, LINEAR_EXACT or SIGMOID", name,
                  function);
  }

  std::optional<Lut> modality_, voi_;
  std::optional<std::pair<double, double>> rescale_;
  std::optional<Range> output_;
  Function function_ = Function::linear;
  double center_ = 0, width_ = 1;
};

// The transform of each number between the least and the largest of the picture, computed once.
struct Table {
  std::int32_t first = 0;
  std::vector<double> entries;
  Range range{};

  double operator[](std::int32_t value) const { return entries[static_cast<std::size_t>(value - first)]; }
};

Table make_table(const Stored& stored, const Transform& transform) {
  const auto [least, largest] = std::minmax_element(stored.values.begin(), stored.values.end());
  Table table;
  table.first = *least;
  std::vector<bool> present(static_cast<std::size_t>(*largest - *least) + 1);
  for (const std::int32_t value : stored.values) present[static_cast<std::size_t>(value - table.first)] = true;
  Range found{std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity()};
  for (std::int32_t value = *least; value <= *largest; ++value) {
    table.entries.push_back(transform(value));
    if (!present[static_cast<std::size_t>(value - table.first)]) continue;
    found.lowest = std::min(found.lowest, table.entries.back());
    found.highest = std::max(found.highest, table.entries.back());
  }
  table.range = transform.output().value_or(found);
  return table;
}

Raster colour_raster(const Stored& stored, const std::string& name) {
  if (stored.bits != 8) {
    throw_failure("{}: DICOM colour of {} bits is not supported; expected 8", name, stored.bits);
  }
  Raster raster{stored.width, stored.height, 3, {}};
  raster.pixels.resize(stored.values.size());
  const std::int64_t count = stored.width * stored.height;
  for (std::int64_t c = 0; c < 3; ++c)
    for (std::int64_t i = 0; i < count; ++i)
      raster.plane(c)[i] = static_cast<std::uint8_t>(stored.values[static_cast<std::size_t>(3 * i + c)]);
  return raster;
}

}  // namespace

DicomValues read_dicom_values(std::string_view encoded, const std::string& name, DicomStage stage,
                              const ReadOptions& options) {
  DicomFile file(encoded, name);
  const Stored stored = file.stored();
  DicomValues result{stored.width, stored.height, stored.channels, stored.photometric, 0, 0, {}};
  result.values.reserve(stored.values.size());
  const bool grey = stored.channels == 1;
  const Transform transform(file.data(), stored, grey ? stage : DicomStage::stored, options.dicom_window, name);
  const Table table = make_table(stored, transform);
  for (const std::int32_t value : stored.values) result.values.push_back(table[value]);
  result.lowest = table.range.lowest;
  result.highest = table.range.highest;
  return result;
}

Raster decode_dicom(std::string_view encoded, const std::string& name, const ReadOptions& options) {
  options.check();
  DicomFile file(encoded, name);
  const Stored stored = file.stored();
  if (stored.channels == 3) return colour_raster(stored, name);
  const bool as_mimic = options.dicom == "mimic_cxr_jpg";
  const DicomStage stage = as_mimic                   ? DicomStage::stored
                           : options.dicom == "range" ? DicomStage::modality
                                                      : DicomStage::voi;
  const Table table = make_table(stored, Transform(file.data(), stored, stage, options.dicom_window, name));
  // A rescale slope below 0 turns the range around; the shades turn with it, as they do in pydicom's output.
  const double lowest = std::min(table.range.lowest, table.range.highest);
  const double span = std::max(table.range.lowest, table.range.highest) - lowest;
  std::vector<std::uint8_t> shades;
  for (const double value : table.entries) {
    const double share = span > 0 ? 255 * ((value - lowest) / span) : 0;
    const auto shade =
        static_cast<std::uint8_t>(std::clamp(as_mimic ? std::floor(share) : std::round(share), 0.0, 255.0));
    shades.push_back(stored.photometric == "MONOCHROME1" ? static_cast<std::uint8_t>(255 - shade) : shade);
  }
  Raster raster{stored.width, stored.height, 1, {}};
  raster.pixels.reserve(stored.values.size());
  for (const std::int32_t value : stored.values)
    raster.pixels.push_back(shades[static_cast<std::size_t>(value - table.first)]);
  if (as_mimic) {
    const cv::Mat view(static_cast<int>(raster.height), static_cast<int>(raster.width), CV_8U, raster.pixels.data());
    cv::equalizeHist(view, view);
  }
  return raster;
}

}  // namespace thinkvg::image
