#include "image/dicom_header.h"

#include <zlib.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "thinkvg/core/error.h"

namespace thinkvg::image {
namespace {

constexpr std::size_t kStart = 132;  // preamble and "DICM"
constexpr std::uint32_t kUndefined = 0xFFFFFFFF;
constexpr std::uint32_t kItem = 0xFFFEE000, kItemEnd = 0xFFFEE00D, kSequenceEnd = 0xFFFEE0DD;
constexpr std::uint32_t kTransferSyntax = 0x00020010, kRows = 0x00280010, kColumns = 0x00280011, kSamples = 0x00280002,
                        kPhotometric = 0x00280004, kBits = 0x00280100, kPixelData = 0x7FE00010;
constexpr int kDeepest = 32;
// A picture of 16 bits may be a fraction of its file: a limit that only a bomb passes.
constexpr std::size_t kLargestInflated = std::size_t{1} << 31;

constexpr std::array<std::string_view, 13> kLongKinds = {"OB", "OD", "OF", "OL", "OV", "OW", "SQ",
                                                         "SV", "UC", "UN", "UR", "UT", "UV"};
constexpr std::array<std::string_view, 21> kShortKinds = {"AE", "AS", "AT", "CS", "DA", "DS", "DT",
                                                          "FD", "FL", "IS", "LO", "LT", "PN", "SH",
                                                          "SL", "SS", "ST", "TM", "UI", "UL", "US"};

// How elements lie in a part of the file.
struct Encoding {
  bool is_explicit = true;
  bool is_big = false;
};

struct Element {
  std::uint32_t tag = 0;
  std::string_view kind;  // value representation; empty where it is implicit
  std::uint32_t length = 0;
};

class Walker {
 public:
  Walker(std::string_view bytes, std::string_view name) : bytes_(bytes), name_(name) {}

  std::string_view transfer_syntax() const { return transfer_syntax_; }
  std::size_t transfer_syntax_at() const { return transfer_syntax_at_; }
  std::size_t at() const { return at_; }
  grounding::ImageSize size() const { return {columns_, rows_}; }

  // That the pixels are of a kind that is read, and all there: GDCM does not look, or stops. `is_rle`: fragments are
  // RLE ones.
  void check_pixels(bool is_native, bool is_rle) const {
    if (bits_ != 8 && bits_ != 16) {
      throw_failure("picture {} is a DICOM file with pixels of {} allocated bits; expected 8 or 16", name_, bits_);
    }
    const std::int64_t pixels = rows_ * columns_;
    const std::int64_t samples = photometric_ == "YBR_FULL_422" ? 2 : samples_;
    if (is_native) {
      const std::int64_t needed = pixels * samples * (bits_ / 8);
      if (static_cast<std::int64_t>(pixel_bytes_.size()) < needed) {
        throw_failure("picture {} is a DICOM file with {} bytes of pixels, expected {}; it is cut off or damaged",
                      name_, pixel_bytes_.size(), needed);
      }
    }
    if (!is_rle) return;
    // The first fragment is a table of offsets, each other one a frame.
    bool whole = fragments_.size() >= 2;
    for (std::size_t i = 1; i < fragments_.size(); ++i)
      whole = whole && rle_is_whole(fragments_[i], pixels, samples_ * (bits_ / 8));
    if (!whole) throw_failure("picture {} is a DICOM file whose RLE pixels are damaged or cut off", name_);
  }

  // Group 2, always explicit and little endian.
  void walk_meta() {
    at_ = kStart;
    const Encoding encoding;
    while (bytes_.size() - at_ >= 8) {
      const std::size_t begin = at_;
      if (number(2, encoding) != 0x0002) {
        at_ = begin;
        return;
      }
      at_ = begin;
      const Element element = read_element(encoding);
      const std::string_view value = take(element.length);
      if (element.tag == kTransferSyntax) {
        transfer_syntax_ = value.substr(0, value.find_last_not_of(std::string_view(" \0", 2)) + 1);
        transfer_syntax_at_ = at_ - element.length;
      }
    }
  }

  void walk_data(const Encoding& encoding) { walk(encoding, bytes_.size(), 0, false); }

 private:
  // A count of segments, then where each begins; in each segment runs of bytes that fill the picture (PS3.5, G).
  static bool rle_is_whole(std::string_view fragment, std::int64_t pixels, std::int64_t num_segments) {
    constexpr std::size_t kHeader = 64;
    const auto word = [&](std::size_t i) {
      std::size_t value = 0;
      for (std::size_t b = 4; b-- > 0;) value = value << 8 | static_cast<std::uint8_t>(fragment[4 * i + b]);
      return value;
    };
    if (fragment.size() < kHeader || num_segments < 1 || num_segments > 15 ||
        word(0) != static_cast<std::size_t>(num_segments))
      return false;
    for (std::size_t i = 1; i <= word(0); ++i) {
      const std::size_t end = i < word(0) ? word(i + 1) : fragment.size();
      if (word(i) < kHeader || word(i) >= end || end > fragment.size()) return false;
      std::int64_t filled = 0;
      for (std::size_t at = word(i); at < end && filled < pixels;) {
        const auto count = static_cast<std::int8_t>(fragment[at]);
        if (count == -128) {
          ++at;
        } else {
          filled += 1 + (count >= 0 ? count : -count);
          at += count >= 0 ? std::size_t(count) + 2 : 2;
        }
        if (at > end) return false;
      }
      if (filled != pixels) return false;
    }
    return true;
  }

  [[noreturn]] void cut() const {
    throw_failure("picture {} is a DICOM file that ends too early ({} bytes); the file is cut off, fetch it again",
                  name_, bytes_.size());
  }
  [[noreturn]] void damaged(const char* what) const {
    throw_failure("picture {} is a damaged DICOM file: {} at byte {}", name_, what, at_);
  }

  std::string_view take(std::size_t count) {
    if (count > bytes_.size() - at_) cut();
    const std::string_view part = bytes_.substr(at_, count);
    at_ += count;
    return part;
  }

  std::uint32_t number(std::size_t count, const Encoding& encoding) {
    const std::string_view part = take(count);
    std::uint32_t value = 0;
    for (std::size_t i = 0; i < count; ++i)
      value = value << 8 | static_cast<std::uint8_t>(part[encoding.is_big ? i : count - 1 - i]);
    return value;
  }

  Element read_element(const Encoding& encoding) {
    Element element;
    element.tag = number(2, encoding) << 16;
    element.tag |= number(2, encoding);
    // Items and their ends have no value representation.
    if (!encoding.is_explicit || element.tag >> 16 == 0xFFFE) {
      element.length = number(4, encoding);
      return element;
    }
    element.kind = take(2);
    const auto is = [&](std::string_view kind) { return kind == element.kind; };
    if (std::any_of(kLongKinds.begin(), kLongKinds.end(), is)) {
      take(2);
      element.length = number(4, encoding);
    } else if (std::any_of(kShortKinds.begin(), kShortKinds.end(), is)) {
      element.length = number(2, encoding);
    } else {
      damaged("an unknown value representation");
    }
    return element;
  }

  // The elements up to byte `end`, or up to the end mark of an item of undefined length.
  void walk(const Encoding& encoding, std::size_t end, int depth, bool until_mark) {
    if (depth > kDeepest) damaged("sequences inside each other without an end");
    while (at_ < end) {
      // Some writers fill the file up with zeros.
      if (depth == 0 && bytes_.find_first_not_of('\0', at_) == std::string_view::npos) {
        at_ = end;
        return;
      }
      const Element element = read_element(encoding);
      if (element.tag == kItemEnd && until_mark) return;
      if (element.tag >> 16 == 0xFFFE) damaged("an item outside a sequence");
      walk_value(element, encoding, end, depth);
      if (at_ > end) damaged("an element that is longer than what holds it");
    }
    if (until_mark) cut();
  }

  void walk_value(const Element& element, const Encoding& encoding, std::size_t end, int depth) {
    if (element.length == kUndefined) {
      if (element.tag == kPixelData)
        walk_fragments(encoding);
      else if (element.kind.empty() || element.kind == "SQ" || element.kind == "UN")
        walk_items({encoding.is_explicit && element.kind != "UN", encoding.is_big}, bytes_.size(), depth, true);
      else
        damaged("a length is missing");
      return;
    }
    if (element.length > bytes_.size() - at_) cut();
    if (at_ + element.length > end) damaged("an element that is longer than what holds it");
    const std::size_t begin = at_, value_end = at_ + element.length;
    if (element.kind == "SQ" || (element.kind.empty() && starts_with_item(encoding, element.length))) {
      walk_items(encoding, value_end, depth, false);
      if (at_ != value_end) damaged("a sequence that is longer than its items");
    } else if (depth == 0) {
      note_value(element, encoding);
    }
    at_ = begin;
    take(element.length);
  }

  void note_value(const Element& element, const Encoding& encoding) {
    const std::string_view value = bytes_.substr(at_, element.length);
    if (element.tag == kPixelData) pixel_bytes_ = value;
    if (element.tag == kPhotometric)
      photometric_ = value.substr(0, value.find_last_not_of(std::string_view(" \0", 2)) + 1);
    if (element.length < 2) return;
    if (element.tag == kRows) rows_ = number(2, encoding);
    if (element.tag == kColumns) columns_ = number(2, encoding);
    if (element.tag == kSamples) samples_ = number(2, encoding);
    if (element.tag == kBits) bits_ = number(2, encoding);
  }

  bool starts_with_item(const Encoding& encoding, std::uint32_t length) {
    if (length < 8) return false;
    const std::size_t begin = at_;
    std::uint32_t tag = number(2, encoding) << 16;
    tag |= number(2, encoding);
    at_ = begin;
    return tag == kItem;
  }

  void walk_items(const Encoding& encoding, std::size_t end, int depth, bool until_mark) {
    while (at_ < end) {
      const Element item = read_element(encoding);
      if (item.tag == kSequenceEnd && until_mark) return;
      if (item.tag != kItem) damaged("something else than an item in a sequence");
      if (item.length == kUndefined) {
        walk(encoding, end, depth + 1, true);
      } else {
        if (item.length > bytes_.size() - at_) cut();
        walk(encoding, at_ + item.length, depth + 1, false);
      }
    }
    if (until_mark) cut();
  }

  void walk_fragments(const Encoding& encoding) {
    while (true) {
      const Element item = read_element(encoding);
      if (item.tag == kSequenceEnd) return;
      if (item.tag != kItem || item.length == kUndefined) damaged("something else than a fragment of the pixels");
      fragments_.push_back(take(item.length));
    }
  }

  std::string_view bytes_, name_;
  std::size_t at_ = 0;
  std::string_view transfer_syntax_;
  std::size_t transfer_syntax_at_ = 0;
  std::int64_t rows_ = 0, columns_ = 0, samples_ = 1, bits_ = 16;
  std::string_view photometric_, pixel_bytes_;
  std::vector<std::string_view> fragments_;
};

std::string inflate_all(std::string_view deflated, std::string_view name) {
  z_stream stream{};
  if (inflateInit2(&stream, -MAX_WBITS) != Z_OK) throw std::bad_alloc();
  std::string inflated;
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(deflated.data()));
  stream.avail_in = static_cast<uInt>(deflated.size());
  int state = Z_OK;
  while (state == Z_OK && inflated.size() < kLargestInflated) {
    const std::size_t done = inflated.size();
    const std::size_t room = std::max<std::size_t>(done, 1 << 16);
    inflated.resize(done + room);
    stream.next_out = reinterpret_cast<Bytef*>(inflated.data() + done);
    stream.avail_out = static_cast<uInt>(room);
    state = inflate(&stream, Z_NO_FLUSH);
    inflated.resize(done + room - std::min<std::size_t>(room, stream.avail_out));
  }
  inflateEnd(&stream);
  if (state != Z_STREAM_END) {
    throw_failure("picture {} is a deflated DICOM file that is cut off or damaged; fetch it again", name);
  }
  return inflated;
}

}  // namespace

bool is_dicom(std::string_view head) { return head.size() >= kStart && head.substr(kStart - 4, 4) == "DICM"; }

CheckedDicom check_dicom(std::string_view encoded, std::string_view name) {
  constexpr std::string_view kImplicit = "1.2.840.10008.1.2", kBig = "1.2.840.10008.1.2.2",
                             kDeflated = "1.2.840.10008.1.2.1.99", kExplicit = "1.2.840.10008.1.2.1",
                             kRle = "1.2.840.10008.1.2.5";
  Walker walker(encoded, name);
  walker.walk_meta();
  if (walker.transfer_syntax().empty()) {
    throw_failure("picture {} is a DICOM file that does not name its transfer syntax; the file is damaged", name);
  }
  CheckedDicom checked;
  if (walker.transfer_syntax() == kDeflated) {
    checked.inflated = std::string(encoded.substr(0, walker.at())) + inflate_all(encoded.substr(walker.at()), name);
    // The shorter name is filled up with zeros, as names of odd length are.
    const std::string plain = std::string(kExplicit) + std::string(kDeflated.size() - kExplicit.size(), '\0');
    checked.inflated.replace(walker.transfer_syntax_at(), plain.size(), plain);
    checked.size = check_dicom(checked.inflated, name).size;
    return checked;
  }
  walker.walk_data({walker.transfer_syntax() != kImplicit, walker.transfer_syntax() == kBig});
  checked.size = walker.size();
  if (checked.size.width < 1 || checked.size.height < 1) {
    throw_failure("picture {} is a DICOM file without Rows and Columns; it holds no picture", name);
  }
  const std::string_view syntax = walker.transfer_syntax();
  walker.check_pixels(syntax == kImplicit || syntax == kExplicit || syntax == kBig, syntax == kRle);
  return checked;
}

}  // namespace thinkvg::image
