#include "thinkvg/data/filter.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <functional>
#include <set>
#include <variant>
#include <vector>

#include "thinkvg/core/error.h"

namespace thinkvg::data {
namespace {

using Value = std::variant<std::string, double, bool>;
enum class Type : std::size_t { text, number, truth };

const char* type_name(Type type) {
  constexpr std::array<const char*, 3> kNames = {"a text", "a number", "true or false"};
  return kNames[static_cast<std::size_t>(type)];
}

double count_words(std::string_view text) {
  double words = 0;
  bool inside = false;
  for (const char c : text) {
    const bool space = c == ' ' || c == '\t' || c == '\n' || c == '\r';
    if (!space && !inside) ++words;
    inside = !space;
  }
  return words;
}

double count_boxes(const Sample& sample) {
  std::size_t count = sample.regions.size();
  for (const auto& regions : sample.more_regions) count += regions.size();
  return static_cast<double>(count);
}

std::vector<std::string> names_of_regions(const Sample& sample) {
  std::vector<std::string> names;
  const auto add = [&](const std::vector<grounding::Region>& regions) {
    for (const grounding::Region& region : regions) names.push_back(region.name);
  };
  add(sample.regions);
  for (const auto& regions : sample.more_regions) add(regions);
  return names;
}

std::string joined_regions(const Sample& sample) {
  std::string text;
  for (const std::string& name : names_of_regions(sample)) text += (text.empty() ? "" : ", ") + name;
  return text;
}

double count_region_names(const Sample& sample) {
  const std::vector<std::string> names = names_of_regions(sample);
  return static_cast<double>(std::set<std::string>(names.begin(), names.end()).size());
}

struct Field {
  const char* name;
  Type type;
  Value (*get)(const Sample&);
};

// A new field is a line here.
const std::vector<Field>& known_fields() {
  static const std::vector<Field> kFields = {
      {"id", Type::text, [](const Sample& s) -> Value { return s.id; }},
      {"image", Type::text, [](const Sample& s) -> Value { return s.image; }},
      {"patient", Type::text, [](const Sample& s) -> Value { return s.patient; }},
      {"type", Type::text, [](const Sample& s) -> Value { return question_type_name(s.type); }},
      {"content_type", Type::text, [](const Sample& s) -> Value { return s.content_type; }},
      {"question", Type::text, [](const Sample& s) -> Value { return s.question; }},
      {"think", Type::text, [](const Sample& s) -> Value { return s.think; }},
      {"answer", Type::text, [](const Sample& s) -> Value { return s.answer; }},
      {"split", Type::text, [](const Sample& s) -> Value { return s.split; }},
      {"frame", Type::text, [](const Sample& s) -> Value { return s.frame.name(); }},
      {"regions", Type::text, [](const Sample& s) -> Value { return joined_regions(s); }},
      {"num_boxes", Type::number, [](const Sample& s) -> Value { return count_boxes(s); }},
      {"num_regions", Type::number, [](const Sample& s) -> Value { return count_region_names(s); }},
      {"num_choices", Type::number, [](const Sample& s) -> Value { return static_cast<double>(s.choices.size()); }},
      {"num_images", Type::number,
       [](const Sample& s) -> Value { return static_cast<double>(s.more_images.size() + 1); }},
      {"question_words", Type::number, [](const Sample& s) -> Value { return count_words(s.question); }},
      {"think_words", Type::number, [](const Sample& s) -> Value { return count_words(s.think); }},
      {"answer_words", Type::number, [](const Sample& s) -> Value { return count_words(s.answer); }},
      {"has_think", Type::truth, [](const Sample& s) -> Value { return !s.think.empty(); }},
  };
  return kFields;
}

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

bool contains(std::string_view text, std::string_view part) {
  if (part.empty()) return true;
  const std::boyer_moore_horspool_searcher searcher(
      part.begin(), part.end(), [](char c) { return std::hash<char>{}(lower(c)); },
      [](char a, char b) { return lower(a) == lower(b); });
  return std::search(text.begin(), text.end(), searcher) != text.end();
}

enum class Op {
  value,
  field,
  extra,
  equal,
  unequal,
  less,
  less_equal,
  greater,
  greater_equal,
  holds,
  lacks,
  in,
  both,
  either,
  negation
};

}  // namespace

struct Filter::Node {
  Op op = Op::value;
  Type type = Type::truth;
  Value value;                   // of a constant
  const Field* field = nullptr;  // of a field
  std::string extra;             // name of a fields.NAME
  std::vector<std::unique_ptr<Node>> parts;
  std::size_t place = 0;  // in the expression

  Value evaluate(const Sample& sample) const {
    const auto at = [&](std::size_t i) { return parts[i]->evaluate(sample); };
    switch (op) {
      case Op::value:
        return value;
      case Op::field:
        return field->get(sample);
      case Op::extra: {
        const auto found = sample.fields.find(extra);
        return found == sample.fields.end() ? std::string() : found->second;
      }
      case Op::equal:
        return at(0) == at(1);
      case Op::unequal:
        return at(0) != at(1);
      case Op::less:
        return at(0) < at(1);
      case Op::less_equal:
        return at(0) <= at(1);
      case Op::greater:
        return at(0) > at(1);
      case Op::greater_equal:
        return at(0) >= at(1);
      case Op::holds:
        return contains(std::get<std::string>(at(0)), std::get<std::string>(at(1)));
      case Op::lacks:
        return !contains(std::get<std::string>(at(0)), std::get<std::string>(at(1)));
      case Op::in: {
        const Value left = at(0);
        for (std::size_t i = 1; i < parts.size(); ++i) {
          if (left == at(i)) return true;
        }
        return false;
      }
      case Op::both:
        return std::get<bool>(at(0)) && std::get<bool>(at(1));
      case Op::either:
        return std::get<bool>(at(0)) || std::get<bool>(at(1));
      case Op::negation:
        return !std::get<bool>(at(0));
    }
    return false;
  }
};

namespace {

using Node = Filter::Node;
using NodePtr = std::unique_ptr<Node>;

struct Token {
  enum class Kind { name, text, number, symbol, end };
  Kind kind = Kind::end;
  std::string text;  // of a text: without quotes and escapes
  double number = 0;
  std::size_t place = 0;
};

constexpr int kMaxDepth = 200;  // of brackets and "not"

class Parser {
 public:
  explicit Parser(std::string_view source) : source_(source) { advance(); }

  NodePtr parse() {
    NodePtr root = parse_or();
    if (token_.kind != Token::Kind::end) fail("expected 'and', 'or' or the end", token_.place);
    require(*root, Type::truth, "a condition");
    return root;
  }

 private:
  [[noreturn]] void fail(const std::string& what, std::size_t place) const {
    const std::string found = place >= source_.size() ? "the end" : fmt::format("'{}'", source_.substr(place, 20));
    throw_invalid("filter '{}', character {}: {}, but found {}", source_, place + 1, what, found);
  }
  [[noreturn]] void fail_type(const std::string& what, std::size_t place) const {
    throw_invalid("filter '{}', character {}: {}", source_, place + 1, what);
  }

  void require(const Node& node, Type type, const std::string& what) const {
    if (node.type == type) return;
    fail_type(fmt::format("expected {}, but this is {}", what, type_name(node.type)), node.place);
  }

  static bool is_name(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
  static bool is_digit(char c) { return c >= '0' && c <= '9'; }

  void advance() {
    while (position_ < source_.size() && (source_[position_] == ' ' || source_[position_] == '\t' ||
                                          source_[position_] == '\n' || source_[position_] == '\r'))
      ++position_;
    token_ = {};
    token_.place = position_;
    if (position_ == source_.size()) return;
    const char c = source_[position_];
    if (is_name(c)) {
      const std::size_t begin = position_;
      while (position_ < source_.size() && (is_name(source_[position_]) || is_digit(source_[position_]) ||
                                            source_[position_] == '.' || source_[position_] == '-'))
        ++position_;
      token_.kind = Token::Kind::name;
      token_.text = source_.substr(begin, position_ - begin);
    } else if (is_digit(c) || c == '-' || c == '.') {
      token_.kind = Token::Kind::number;
      const auto [end, error] =
          std::from_chars(source_.data() + position_, source_.data() + source_.size(), token_.number);
      if (error != std::errc()) fail("expected a number", position_);
      position_ = static_cast<std::size_t>(end - source_.data());
    } else if (c == '"' || c == '\'') {
      read_text(c);
    } else {
      token_.kind = Token::Kind::symbol;
      for (const std::string_view symbol : {"==", "!=", "<=", ">=", "!~", "<", ">", "~", "(", ")", ","}) {
        if (source_.substr(position_).starts_with(symbol)) {
          token_.text = symbol;
          position_ += symbol.size();
          return;
        }
      }
      if (c == '=') fail("expected '==' (equality is written with two signs)", position_);
      fail("expected a field, a value or an operator", position_);
    }
  }

  void read_text(char quote) {
    token_.kind = Token::Kind::text;
    const std::size_t begin = position_++;
    for (; position_ < source_.size() && source_[position_] != quote; ++position_) {
      char c = source_[position_];
      if (c == '\\' && position_ + 1 < source_.size()) {
        c = source_[++position_];
        c = c == 'n' ? '\n' : c == 't' ? '\t' : c;
      }
      token_.text += c;
    }
    if (position_ == source_.size())
      fail_type(fmt::format("the text that begins here lacks its closing {}", quote), begin);
    ++position_;
  }

  bool take(Token::Kind kind, std::string_view text) {
    if (token_.kind != kind || token_.text != text) return false;
    advance();
    return true;
  }
  bool take_word(std::string_view word) { return take(Token::Kind::name, word); }
  bool take_symbol(std::string_view symbol) { return take(Token::Kind::symbol, symbol); }

  NodePtr make(Op op, std::size_t place, NodePtr left, NodePtr right = nullptr) {
    auto node = std::make_unique<Node>();
    node->op = op;
    node->place = place;
    node->parts.push_back(std::move(left));
    if (right) node->parts.push_back(std::move(right));
    return node;
  }

  NodePtr parse_or() {
    NodePtr left = parse_and();
    while (token_.kind == Token::Kind::name && token_.text == "or") {
      require(*left, Type::truth, "a condition before 'or'");
      const std::size_t place = token_.place;
      advance();
      NodePtr right = parse_and();
      require(*right, Type::truth, "a condition behind 'or'");
      left = make(Op::either, place, std::move(left), std::move(right));
    }
    return left;
  }

  NodePtr parse_and() {
    NodePtr left = parse_not();
    while (token_.kind == Token::Kind::name && token_.text == "and") {
      require(*left, Type::truth, "a condition before 'and'");
      const std::size_t place = token_.place;
      advance();
      NodePtr right = parse_not();
      require(*right, Type::truth, "a condition behind 'and'");
      left = make(Op::both, place, std::move(left), std::move(right));
    }
    return left;
  }

  NodePtr parse_not() {
    const std::size_t place = token_.place;
    if (!take_word("not")) return parse_comparison();
    if (++depth_ > kMaxDepth) fail_type("the condition is nested too deeply", place);
    NodePtr inner = parse_not();
    --depth_;
    require(*inner, Type::truth, "a condition behind 'not'");
    return make(Op::negation, place, std::move(inner));
  }

  NodePtr parse_comparison() {
    NodePtr left = parse_value();
    const std::size_t place = token_.place;
    if (take_word("in")) {
      if (!take_symbol("(")) fail("expected '(' behind 'in'", token_.place);
      NodePtr node = make(Op::in, place, std::move(left));
      do {
        NodePtr item = parse_value();
        match_types(*node->parts[0], *item);
        node->parts.push_back(std::move(item));
      } while (take_symbol(","));
      if (!take_symbol(")")) fail("expected ',' or ')'", token_.place);
      return node;
    }
    struct Comparison {
      const char* symbol;
      Op op;
    };
    constexpr std::array<Comparison, 8> kComparisons = {{{"==", Op::equal},
                                                         {"!=", Op::unequal},
                                                         {"<", Op::less},
                                                         {"<=", Op::less_equal},
                                                         {">", Op::greater},
                                                         {">=", Op::greater_equal},
                                                         {"~", Op::holds},
                                                         {"!~", Op::lacks}}};
    for (const Comparison& comparison : kComparisons) {
      if (!take_symbol(comparison.symbol)) continue;
      NodePtr right = parse_value();
      match_types(*left, *right);
      const bool ordered = comparison.op == Op::less || comparison.op == Op::less_equal ||
                           comparison.op == Op::greater || comparison.op == Op::greater_equal;
      const bool of_texts = comparison.op == Op::holds || comparison.op == Op::lacks;
      if (ordered) require(*left, Type::number, fmt::format("numbers around '{}'", comparison.symbol));
      if (of_texts) require(*left, Type::text, fmt::format("texts around '{}'", comparison.symbol));
      return make(comparison.op, place, std::move(left), std::move(right));
    }
    return left;
  }

  // Both sides of one kind; the short names of question types become the long ones.
  void match_types(Node& left, Node& right) const {
    if (left.type != right.type) {
      fail_type(fmt::format("{} is compared with {}", type_name(left.type), type_name(right.type)), right.place);
    }
    const auto is_type = [](const Node& node) {
      return node.op == Op::field && std::string_view(node.field->name) == "type";
    };
    for (const auto& [field, constant] : {std::pair{&left, &right}, std::pair{&right, &left}}) {
      if (!is_type(*field) || constant->op != Op::value) continue;
      try {
        constant->value = question_type_name(parse_question_type(std::get<std::string>(constant->value)));
      } catch (const std::invalid_argument& error) {
        fail_type(error.what(), constant->place);
      }
    }
  }

  NodePtr parse_value() {
    auto node = std::make_unique<Node>();
    node->place = token_.place;
    if (take_symbol("(")) {
      if (++depth_ > kMaxDepth) fail_type("the condition is nested too deeply", node->place);
      NodePtr inner = parse_or();
      --depth_;
      if (!take_symbol(")")) fail("expected ')'", token_.place);
      return inner;
    }
    switch (token_.kind) {
      case Token::Kind::text:
        node->type = Type::text;
        node->value = token_.text;
        break;
      case Token::Kind::number:
        node->type = Type::number;
        node->value = token_.number;
        break;
      case Token::Kind::name:
        set_name(*node);
        break;
      default:
        fail("expected a field or a value", token_.place);
    }
    advance();
    return node;
  }

  void set_name(Node& node) const {
    const std::string& name = token_.text;
    if (name == "true" || name == "false") {
      node.value = name == "true";
      return;
    }
    if (name.starts_with("fields.") && name.size() > 7) {
      node.op = Op::extra;
      node.type = Type::text;
      node.extra = name.substr(7);
      return;
    }
    std::vector<std::string> names;
    for (const Field& field : known_fields()) {
      names.emplace_back(field.name);
      if (name != field.name) continue;
      node.op = Op::field;
      node.type = field.type;
      node.field = &field;
      return;
    }
    const std::string near = nearest_name(name, names);
    fail_type(fmt::format("unknown field '{}'{}; known are: {}, and fields.NAME for what else the set says", name,
                          near.empty() ? "" : fmt::format(", did you mean '{}'?", near), fmt::join(names, ", ")),
              token_.place);
  }

  std::string_view source_;
  std::size_t position_ = 0;
  Token token_;
  int depth_ = 0;
};

}  // namespace

Filter::Filter(std::string_view expression) : root_(Parser(expression).parse()) {}
Filter::~Filter() = default;
Filter::Filter(Filter&&) noexcept = default;

bool Filter::matches(const Sample& sample) const { return std::get<bool>(root_->evaluate(sample)); }

}  // namespace thinkvg::data
