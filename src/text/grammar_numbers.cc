// Boxes and bounded numbers: which digit may follow depends on the number so far.
#include <algorithm>

#include "text/grammar_graph.h"

namespace thinkvg::text {
namespace {

struct Range {
  std::int64_t low, high;
  bool meets(std::int64_t first, std::int64_t last) const { return first <= high && last >= low; }
  bool holds(std::int64_t first, std::int64_t last) const { return low <= first && last <= high; }
};

// The state in parts: 4 bits for the place in the text, 20 bits each for the number so far, x1 and y1. Numbers that no
// longer matter are 0.
class BoxMachine final : public Machine {
 public:
  BoxMachine(std::int64_t width, std::int64_t height) : width_(width), height_(height) {}

  std::uint64_t start() const override { return 0; }
  bool done(std::uint64_t state) const override { return part_of(state) == kDone; }
  std::string_view bytes() const override { return "0123456789[], "; }

  std::optional<std::uint64_t> step(std::uint64_t state, std::uint8_t byte) const override {
    const int part = part_of(state);
    if (part == kDone) return std::nullopt;
    if (part == 0) return byte == '[' ? std::optional(make(1, 0, 0, 0)) : std::nullopt;
    const int number = (part - 1) / 3;
    const std::int64_t value = field(state, 1), x1 = field(state, 2), y1 = field(state, 3);
    const Range range = range_of(number, x1, y1);
    if ((part - 1) % 3 == kSpace) return byte == ' ' ? std::optional(make(part + 1, 0, x1, y1)) : std::nullopt;
    const bool has_digits = (part - 1) % 3 == kDigits;
    if (byte >= '0' && byte <= '9') {
      if (has_digits && value == 0) return std::nullopt;
      const std::int64_t longer = 10 * value + (byte - '0');
      return may_become(longer, range) ? std::optional(make(1 + 3 * number + kDigits, longer, x1, y1)) : std::nullopt;
    }
    if (!has_digits || !range.holds(value, value)) return std::nullopt;
    if (number == 3) return byte == ']' ? std::optional(make(kDone, 0, 0, 0)) : std::nullopt;
    if (byte != ',') return std::nullopt;
    const int next = 1 + 3 * number + kSpace;
    if (number == 0) return make(next, 0, value, 0);
    if (number == 1) return make(next, 0, x1, value);
    return make(next, 0, 0, y1);
  }

 private:
  enum { kNoDigit = 0, kDigits = 1, kSpace = 2, kDone = 15 };  // places of one number, and of the whole
  static int part_of(std::uint64_t state) { return static_cast<int>(state & 15); }
  static std::int64_t field(std::uint64_t state, int i) {
    return static_cast<std::int64_t>(state >> (4 + 20 * (i - 1)) & 0xFFFFF);
  }
  static std::uint64_t make(int part, std::int64_t value, std::int64_t x1, std::int64_t y1) {
    return static_cast<std::uint64_t>(part) | static_cast<std::uint64_t>(value) << 4 |
           static_cast<std::uint64_t>(x1) << 24 | static_cast<std::uint64_t>(y1) << 44;
  }
  Range range_of(int number, std::int64_t x1, std::int64_t y1) const {
    if (number == 0) return {0, width_ - 1};
    if (number == 1) return {0, height_ - 1};
    return number == 2 ? Range{x1 + 1, width_} : Range{y1 + 1, height_};
  }
  // Whether `value`, possibly with more digits, lies in the range.
  static bool may_become(std::int64_t value, const Range& range) {
    for (std::int64_t first = value, last = value; first <= range.high; first *= 10, last = 10 * last + 9) {
      if (range.meets(first, last)) return true;
      if (value == 0) return false;
    }
    return false;
  }

  std::int64_t width_, height_;
};

// The state in parts: 3 bits for the place in the text, 1 for the sign, 4 for the number of digits (before the point,
// then behind it), 56 for the digits so far. As soon as the bounds can no longer be missed, or only by the length, the
// digits are forgotten: in kAnyWhole their place holds a bit for each number of further digits that is fine.
class NumberMachine final : public Machine {
 public:
  NumberMachine(std::int64_t low, std::int64_t high, int decimals)
      : sizes_{{std::max<std::int64_t>(low, 0), high}, {std::max<std::int64_t>(-high, 1), -low}}, decimals_(decimals) {
    for (int i = 0; i < decimals; ++i) unit_ *= 10;
  }

  std::uint64_t start() const override { return make({}); }
  std::string_view bytes() const override { return decimals_ > 0 ? "0123456789-." : "0123456789-"; }

  bool done(std::uint64_t state) const override {
    const State s = read(state);
    switch (s.place) {
      case kWhole:
        return range(s).holds(s.value * unit_, s.value * unit_);
      case kAnyWhole:
        return (s.value & 1) != 0;
      case kFraction:
        return s.digits > 0 && range(s).holds(s.value * rest(s), s.value * rest(s));
      case kAnyFraction:
        return s.digits > 0;
      default:
        return false;
    }
  }

  std::optional<std::uint64_t> step(std::uint64_t state, std::uint8_t byte) const override {
    State s = read(state);
    if (byte == '-') {
      if (s.place != kStart || sizes_[1].low > sizes_[1].high) return std::nullopt;
      s.place = kSign;
      s.negative = true;
      return make(s);
    }
    if (byte == '.') {
      if (decimals_ == 0) return std::nullopt;
      if (s.place == kAnyWhole && (s.value & 1) != 0) return make({kAnyFraction, s.negative, 0, 0});
      if (s.place != kWhole) return std::nullopt;
      s.place = kFraction;
      s.digits = 0;
      return settle_fraction(s);
    }
    if (byte < '0' || byte > '9') return std::nullopt;
    const std::int64_t digit = byte - '0';
    switch (s.place) {
      case kStart:
      case kSign:
        s.place = kWhole;
        s.value = digit;
        s.digits = 1;
        return settle_whole(s);
      case kWhole:
        if (s.value == 0 || s.digits == kMaxDigits - decimals_) return std::nullopt;
        s.value = 10 * s.value + digit;
        ++s.digits;
        return settle_whole(s);
      case kAnyWhole:
        if (s.value >> 1 == 0) return std::nullopt;
        s.value >>= 1;
        return make(s);
      case kFraction:
        if (s.digits == decimals_) return std::nullopt;
        s.value = 10 * s.value + digit;
        ++s.digits;
        return settle_fraction(s);
      case kAnyFraction:
        if (s.digits == decimals_) return std::nullopt;
        ++s.digits;
        return make(s);
    }
    return std::nullopt;
  }

 private:
  static constexpr int kMaxDigits = 15;
  enum Place { kStart, kSign, kWhole, kAnyWhole, kFraction, kAnyFraction };
  struct State {
    Place place = kStart;
    bool negative = false;
    int digits = 0;
    std::int64_t value = 0;
  };
  static State read(std::uint64_t state) {
    return {static_cast<Place>(state & 7), (state >> 3 & 1) != 0, static_cast<int>(state >> 4 & 15),
            static_cast<std::int64_t>(state >> 8)};
  }
  static std::uint64_t make(const State& s) {
    return static_cast<std::uint64_t>(s.place) | static_cast<std::uint64_t>(s.negative) << 3 |
           static_cast<std::uint64_t>(s.digits) << 4 | static_cast<std::uint64_t>(s.value) << 8;
  }
  const Range& range(const State& s) const { return sizes_[s.negative ? 1 : 0]; }
  // What the last digit of a fraction is worth, in units.
  std::int64_t rest(const State& s) const {
    std::int64_t worth = 1;
    for (int i = s.digits; i < decimals_; ++i) worth *= 10;
    return worth;
  }

  std::optional<std::uint64_t> settle_whole(State s) const {
    const int more = s.value == 0 ? 0 : kMaxDigits - decimals_ - s.digits;  // no digit behind a leading 0
    std::int64_t first = s.value, last = s.value, fine = 0;
    bool certain = true;
    for (int k = 0; k <= more; ++k, first *= 10, last = 10 * last + 9) {
      const std::int64_t low = first * unit_, high = last * unit_ + unit_ - 1;
      if (range(s).holds(low, high))
        fine |= std::int64_t{1} << k;
      else if (range(s).meets(low, high))
        certain = false;
    }
    if (!certain) return make(s);
    if (fine == 0) return std::nullopt;
    return make({kAnyWhole, s.negative, 0, fine});
  }

  std::optional<std::uint64_t> settle_fraction(const State& s) const {
    const std::int64_t low = s.value * rest(s), high = low + rest(s) - 1;
    if (range(s).holds(low, high)) return make({kAnyFraction, s.negative, s.digits, 0});
    return range(s).meets(low, high) ? std::optional(make(s)) : std::nullopt;
  }

  Range sizes_[2];  // of numbers without and with a sign
  int decimals_;
  std::int64_t unit_ = 1;
};

}  // namespace

std::shared_ptr<const Machine> box_machine(std::int64_t width, std::int64_t height) {
  return std::make_shared<BoxMachine>(width, height);
}

std::shared_ptr<const Machine> number_machine(std::int64_t low, std::int64_t high, int decimals) {
  return std::make_shared<NumberMachine>(low, high, decimals);
}

}  // namespace thinkvg::text
