// JSON and JSON schemas as graphs.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <optional>
#include <set>

#include "text/grammar_graph.h"
#include "text/unicode.h"
#include "thinkvg/core/error.h"

namespace thinkvg::text {
namespace {

using Node = Graph::Node;

constexpr std::int64_t kMaxDepth = 64;
constexpr int kMaxNesting = 200;
constexpr int kMaxIndent = 32;
constexpr std::int64_t kMaxItems = 10'000;
// Long enough for all doubles that people write; every text of these is a finite one.
constexpr const char* kInteger = R"(-?(0|[1-9][0-9]{0,14}))";
constexpr const char* kNumber = R"(-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,15})?([eE][+-]?[0-9]{1,2})?)";
constexpr int kBoundedDecimals = 5;
constexpr std::int64_t kLargestInteger = 999'999'999'999'999;  // 15 digits

// All dates but the 29th of February.
constexpr const char* kDate =
    R"([0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8])))";
constexpr const char* kTime =
    R"(([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9]))";
const std::pair<const char*, std::string> kFormats[] = {
    {"date", kDate},
    {"time", kTime},
    {"date-time", fmt::format("{}T{}", kDate, kTime)},
    {"uuid", R"([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})"},
    {"email",
     R"([A-Za-z0-9_%+-]{1,32}(\.[A-Za-z0-9_%+-]{1,15}){0,2}@([A-Za-z0-9]([A-Za-z0-9-]{0,30}[A-Za-z0-9])?\.){1,4}[A-Za-z]{2,12})"},
    {"ipv4", R"(((25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9]))"},
};

const std::set<std::string>& annotations() {
  static const std::set<std::string> kAnnotations = {"title",   "description", "default",  "examples", "deprecated",
                                                     "$schema", "$id",         "$comment", "readOnly", "writeOnly",
                                                     "$defs",   "definitions", "$anchor"};
  return kAnnotations;
}

// Which keywords say something about which type.
constexpr std::pair<const char*, const char*> kKeywords[] = {
    {"properties", "object"}, {"required", "object"},         {"additionalProperties", "object"},
    {"items", "array"},       {"prefixItems", "array"},       {"minItems", "array"},
    {"maxItems", "array"},    {"minLength", "string"},        {"maxLength", "string"},
    {"pattern", "string"},    {"format", "string"},           {"minimum", "number"},
    {"maximum", "number"},    {"exclusiveMinimum", "number"}, {"exclusiveMaximum", "number"},
};

// Characters that stand in a JSON string as they are.
const CharSet& plain_chars() {
  static const CharSet kPlain = CharSet({{' ', 0x10FFFF}}).without({{'"', '"'}, {'\\', '\\'}});
  return kPlain;
}

class JsonWriter {
 public:
  JsonWriter(Graph& graph, const JsonGrammarOptions& options) : graph_(graph), options_(options) {
    if (options.max_depth < 1 || options.max_depth > kMaxDepth)
      throw_invalid("max_depth of a JSON grammar must be 1 to {}, but is {}", kMaxDepth, options.max_depth);
    space_ = graph_.rule([&](Node from) {
      const Node to = graph_.node();
      graph_.link(from, to);
      if (!options_.whitespace) return to;
      graph_.bytes(from, ' ', ' ', to);
      Node at = graph_.literal(from, "\n");
      graph_.link(at, to);
      for (int i = 0; i < kMaxIndent; ++i) {
        at = graph_.chars(at, CharSet({{'\t', '\t'}, {' ', ' '}}));
        graph_.link(at, to);
      }
      return to;
    });
    character_ = graph_.rule([&](Node from) {
      const Node to = graph_.node();
      add_char(from, to);
      return to;
    });
    string_ = graph_.rule([&](Node from) {
      const Node inside = graph_.literal(from, "\"");
      add_char(inside, inside);
      return graph_.literal(inside, "\"");
    });
    number_ = graph_.rule([&](Node from) { return add_regex(graph_, from, kNumber); });
  }

  Node object(Node from) { return add_any_object(from, options_.max_depth); }

  Node schema(const Json& schema, Node from) {
    root_ = &schema;
    return value(schema, {from, options_.max_depth, 0, "#"});
  }

 private:
  // Where a schema stands: the node before its value, how deep values may still go, how deep the schema is nested, and
  // its place for messages.
  struct Spot {
    Node from;
    std::int64_t depth;
    int nesting;
    std::string path;

    Spot at(Node node) const { return {node, depth, nesting, path}; }
    Spot inside(Node node, const std::string& name) const { return {node, depth, nesting + 1, path + "/" + name}; }
  };

  Node space(Node from) { return graph_.call(from, space_); }
  // Behind ":" and between one-line parts.
  Node one_space(Node from) {
    if (!options_.whitespace) return from;
    return graph_.optional(from, [&](Node at) { return graph_.literal(at, " "); });
  }
  Node comma(Node from) { return space(graph_.literal(from, ",")); }

  // One character of a string, as itself or escaped; surrogates in pairs only, which all readers take.
  void add_char(Node from, Node to) {
    graph_.chars(from, plain_chars(), to);
    const Node escape = graph_.node();
    graph_.bytes(from, '\\', '\\', escape);
    for (const char c : std::string_view("\"\\/bfnrt")) {
      const auto byte = static_cast<std::uint8_t>(c);
      graph_.bytes(escape, byte, byte, to);
    }
    static const CharSet kHex({{'0', '9'}, {'A', 'F'}, {'a', 'f'}});
    static const CharSet kD({{'D', 'D'}, {'d', 'd'}});
    const auto hex = [&](Node at, int count, Node end) {
      for (int i = 1; i < count; ++i) at = graph_.chars(at, kHex);
      graph_.chars(at, kHex, end);
    };
    const Node code = graph_.node();
    graph_.bytes(escape, 'u', 'u', code);
    hex(graph_.chars(code, kHex.without(kD)), 3, to);
    const Node d = graph_.chars(code, kD);
    hex(graph_.chars(d, {{'0', '7'}}), 2, to);
    Node pair = graph_.chars(d, {{'8', '9'}, {'A', 'B'}, {'a', 'b'}});
    const Node second = graph_.node();
    hex(pair, 2, second);
    pair = graph_.chars(add_bytes(second, "\\u"), kD);
    hex(graph_.chars(pair, {{'C', 'F'}, {'c', 'f'}}), 2, to);
  }
  Node add_bytes(Node from, std::string_view text) {
    for (const char c : text) {
      const Node to = graph_.node();
      graph_.bytes(from, static_cast<std::uint8_t>(c), static_cast<std::uint8_t>(c), to);
      from = to;
    }
    return from;
  }

  // Values of any kind that go at most `depth` deep, as a rule.
  Node any(std::int64_t depth) {
    const auto known = any_.find(depth);
    if (known != any_.end()) return known->second;
    const Node made = graph_.rule([&](Node from) {
      const Node to = graph_.node();
      for (const char* word : {"null", "true", "false"}) graph_.link(graph_.literal(from, word), to);
      graph_.link(graph_.call(from, number_), to);
      graph_.link(graph_.call(from, string_), to);
      if (depth > 0) {
        graph_.link(add_any_object(from, depth), to);
        graph_.link(add_any_array(from, depth), to);
      }
      return to;
    });
    any_.emplace(depth, made);
    return made;
  }

  Node add_any_object(Node from, std::int64_t depth) {
    const Node value = any(depth - 1), entry = graph_.node(), done = graph_.node(), close = graph_.node();
    const Node open = space(graph_.literal(from, "{"));
    graph_.link(open, close);
    graph_.link(open, entry);
    graph_.link(graph_.call(one_space(graph_.literal(graph_.call(entry, string_), ":")), value), done);
    graph_.link(comma(done), entry);
    graph_.link(space(done), close);
    return graph_.literal(close, "}");
  }

  Node add_any_array(Node from, std::int64_t depth) {
    const Node value = any(depth - 1), entry = graph_.node(), close = graph_.node();
    const Node open = space(graph_.literal(from, "["));
    graph_.link(open, close);
    graph_.link(open, entry);
    const Node done = graph_.call(entry, value);
    graph_.link(comma(done), entry);
    graph_.link(space(done), close);
    return graph_.literal(close, "]");
  }

  [[noreturn]] static void fail(const std::string& path, const std::string& problem) {
    throw_invalid("the JSON schema at {}: {}", path, problem);
  }

  static std::int64_t count_at(const Json& schema, const char* key, std::int64_t missing, const std::string& path) {
    if (!schema.contains(key)) return missing;
    const Json& value = schema.at(key);
    if (!value.is_number_integer() || value.get<std::int64_t>() < 0)
      fail(path, fmt::format("{} should be a count, but is {}", key, value.dump()));
    return value.get<std::int64_t>();
  }

  Node value(const Json& schema, const Spot& spot) {
    if (spot.nesting > kMaxNesting) fail(spot.path, fmt::format("nested deeper than {}", kMaxNesting));
    if (schema.is_boolean()) {
      if (schema.get<bool>()) return graph_.call(spot.from, any(spot.depth));
      return graph_.node();  // nothing leads there
    }
    if (!schema.is_object()) fail(spot.path, "expected an object, true or false, but it is " + schema.dump());
    check_keywords(schema, spot.path);
    for (const char* key : {"$ref", "anyOf", "allOf"}) {
      if (!schema.contains(key)) continue;
      for (const auto& [other, ignored] : schema.items())
        if (other != key && !annotations().contains(other))
          fail(spot.path, fmt::format("'{}' beside {} is not supported", other, key));
    }
    if (schema.contains("$ref")) return reference(schema.at("$ref"), spot);
    if (schema.contains("anyOf")) return any_of(schema.at("anyOf"), spot);
    if (schema.contains("allOf")) {
      const Json& members = schema.at("allOf");
      if (!members.is_array() || members.size() != 1) fail(spot.path, "allOf is only supported with one member");
      return value(members.front(), spot.inside(spot.from, "allOf/0"));
    }
    if (schema.contains("const") || schema.contains("enum")) return one_of_values(schema, spot);
    const Node to = graph_.node();
    const std::vector<std::string> types = types_of(schema, spot.path);
    if (types.empty()) return graph_.call(spot.from, any(spot.depth));
    for (const std::string& type : types) graph_.link(typed(schema, type, spot), to);
    return to;
  }

  static void check_keywords(const Json& schema, const std::string& path) {
    static const std::set<std::string> kOthers = {"type", "enum", "const", "$ref", "anyOf", "allOf"};
    for (const auto& [key, ignored] : schema.items()) {
      const std::string& name = key;
      const bool known =
          annotations().contains(name) || kOthers.contains(name) ||
          std::any_of(std::begin(kKeywords), std::end(kKeywords), [&](const auto& item) { return name == item.first; });
      if (known) continue;
      if (name == "oneOf") fail(path, "the keyword 'oneOf' is not supported; use anyOf");
      fail(path, fmt::format("the keyword '{}' is not supported", name));
    }
  }

  // Without `type`: those that the other keywords speak of (a subset of what the schema allows); none: any value.
  static std::vector<std::string> types_of(const Json& schema, const std::string& path) {
    static const std::vector<std::string> kTypes = {"null",   "boolean", "integer", "number",
                                                    "string", "array",   "object"};
    std::vector<std::string> types;
    const auto add = [&](const Json& name) {
      if (!name.is_string() || std::find(kTypes.begin(), kTypes.end(), name.get<std::string>()) == kTypes.end())
        fail(path, fmt::format("{} is no type; there are {}", name.dump(), fmt::join(kTypes, ", ")));
      types.push_back(name.get<std::string>());
    };
    if (schema.contains("type")) {
      const Json& type = schema.at("type");
      if (type.is_array())
        for (const Json& name : type) add(name);
      else
        add(type);
      if (types.empty()) fail(path, "the list of types is empty");
      return types;
    }
    for (const auto& [keyword, type] : kKeywords)
      if (schema.contains(keyword) && std::find(types.begin(), types.end(), type) == types.end())
        types.emplace_back(type);
    return types;
  }

  Node typed(const Json& schema, const std::string& type, const Spot& spot) {
    if (type == "null") return graph_.literal(spot.from, "null");
    if (type == "boolean") {
      const Node to = graph_.node();
      for (const char* word : {"true", "false"}) graph_.link(graph_.literal(spot.from, word), to);
      return to;
    }
    if (type == "integer" || type == "number") return number(schema, type == "integer", spot);
    if (type == "string") return string(schema, spot);
    return type == "array" ? array(schema, spot) : object(schema, spot);
  }

  static bool fits_type(const Json& value, const std::string& type) {
    if (type == "null") return value.is_null();
    if (type == "boolean") return value.is_boolean();
    if (type == "integer")
      return value.is_number_integer() || (value.is_number() && std::trunc(value.get<double>()) == value.get<double>());
    if (type == "number") return value.is_number();
    if (type == "string") return value.is_string();
    return type == "array" ? value.is_array() : value.is_object();
  }

  Node one_of_values(const Json& schema, const Spot& spot) {
    for (const auto& [keyword, ignored] : kKeywords)
      if (schema.contains(keyword)) fail(spot.path, fmt::format("'{}' beside enum or const is not supported", keyword));
    std::vector<Json> values;
    if (schema.contains("enum")) {
      if (!schema.at("enum").is_array()) fail(spot.path, "enum should be a list");
      for (const Json& value : schema.at("enum")) values.push_back(value);
    } else {
      values.push_back(schema.at("const"));
    }
    if (schema.contains("enum") && schema.contains("const"))
      std::erase_if(values, [&](const Json& value) { return value != schema.at("const"); });
    if (schema.contains("type")) {
      const std::vector<std::string> types = types_of(schema, spot.path);
      std::erase_if(values, [&](const Json& value) {
        return std::none_of(types.begin(), types.end(),
                            [&](const std::string& type) { return fits_type(value, type); });
      });
    }
    if (values.empty()) fail(spot.path, "no value is left by enum, const and type");
    const Node to = graph_.node();
    for (const Json& value : values) graph_.link(constant(value, spot.from), to);
    return to;
  }

  // As the rest of the text is spaced.
  Node constant(const Json& value, Node from) {
    if (!value.is_structured() || value.empty()) return graph_.literal(from, value.dump());
    from = graph_.literal(from, value.is_array() ? "[" : "{");
    from = space(from);
    bool first = true;
    for (const auto& [key, member] : value.items()) {
      if (!first) from = comma(from);
      first = false;
      if (value.is_object()) from = one_space(graph_.literal(from, Json(key).dump() + ":"));
      from = constant(member, from);
    }
    return graph_.literal(space(from), value.is_array() ? "]" : "}");
  }

  Node any_of(const Json& members, const Spot& spot) {
    if (!members.is_array() || members.empty()) fail(spot.path, "anyOf should be a list of schemas");
    const Node to = graph_.node();
    for (std::size_t i = 0; i < members.size(); ++i)
      graph_.link(value(members[i], spot.inside(spot.from, fmt::format("anyOf/{}", i))), to);
    return to;
  }

  // Followed once more for each depth that is left; where none is, nothing fits.
  Node reference(const Json& reference, const Spot& spot) {
    const std::string target = reference.is_string() ? reference.get<std::string>() : "";
    if (!target.starts_with("#"))
      fail(spot.path,
           fmt::format("$ref {} is not supported; only places of the same document (#/..)", reference.dump()));
    const Json* schema = nullptr;
    try {
      schema = &root_->at(Json::json_pointer(target.substr(1)));
    } catch (const nlohmann::json::exception&) {
      fail(spot.path, fmt::format("there is no {}", target));
    }
    if (spot.depth == 0) return graph_.node();
    const auto key = std::make_pair(target, spot.depth - 1);
    auto known = references_.find(key);
    if (known == references_.end()) {
      const Node made = graph_.rule([&](Node from) {
        return value(*schema, {from, spot.depth - 1, spot.nesting + 1, target});
      });
      known = references_.emplace(key, made).first;
    }
    return graph_.call(spot.from, known->second);
  }

  // A bound in units of 10^-decimals; below: rounded down, else up.
  static std::int64_t bound(const Json& value, int decimals, bool below, const std::string& path) {
    if (!value.is_number()) fail(path, "a bound should be a number, but is " + value.dump());
    const double unit = std::pow(10.0, decimals);
    const double scaled = value.get<double>() * unit, near = std::round(scaled);
    // Decimal fractions are seldom doubles: what is as near as a double can be is meant to be a unit.
    const bool exact = std::abs(scaled - near) <= 1e-12 * std::max(1.0, std::abs(scaled));
    const double whole = exact ? near : below ? std::floor(scaled) : std::ceil(scaled);
    if (!(std::abs(whole) <= static_cast<double>(kLargestInteger)))
      return whole > 0 ? kLargestInteger : -kLargestInteger;
    return static_cast<std::int64_t>(whole);
  }

  Node number(const Json& schema, bool integer, const Spot& spot) {
    const int decimals = integer ? 0 : kBoundedDecimals;
    std::int64_t low = -kLargestInteger, high = kLargestInteger;
    bool bounded = false;
    const auto exclusive = [&](const char* key, bool below) {
      const std::int64_t at = bound(schema.at(key), decimals, below, spot.path);
      const std::int64_t other = bound(schema.at(key), decimals, !below, spot.path);
      return at == other ? at + (below ? -1 : 1) : at;
    };
    if (schema.contains("minimum")) low = std::max(low, bound(schema.at("minimum"), decimals, false, spot.path));
    if (schema.contains("exclusiveMinimum")) low = std::max(low, exclusive("exclusiveMinimum", false));
    if (schema.contains("maximum")) high = std::min(high, bound(schema.at("maximum"), decimals, true, spot.path));
    if (schema.contains("exclusiveMaximum")) high = std::min(high, exclusive("exclusiveMaximum", true));
    for (const char* key : {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
      bounded = bounded || schema.contains(key);
    if (!bounded) return integer ? add_regex(graph_, spot.from, kInteger) : graph_.call(spot.from, number_);
    if (low > high) fail(spot.path, "no number lies within the bounds");
    return graph_.machine(spot.from, number_machine(low, high, decimals));
  }

  Node string(const Json& schema, const Spot& spot) {
    const std::int64_t min = count_at(schema, "minLength", 0, spot.path);
    const std::int64_t max = count_at(schema, "maxLength", -1, spot.path);
    const bool lengths = min > 0 || max >= 0;
    if ((schema.contains("pattern") ? 1 : 0) + (schema.contains("format") ? 1 : 0) + (lengths ? 1 : 0) > 1)
      fail(spot.path, "only one of pattern, format and minLength with maxLength is supported at a time");
    if (max >= 0 && max < min) fail(spot.path, "maxLength is below minLength");
    Node at = graph_.literal(spot.from, "\"");
    if (schema.contains("pattern") || schema.contains("format")) {
      const Json& text = schema.at(schema.contains("pattern") ? "pattern" : "format");
      if (!text.is_string()) fail(spot.path, "pattern and format should be texts");
      try {
        at = schema.contains("pattern")
                 ? add_regex(graph_, at, text.get<std::string>(), CharForm::kJson)
                 : add_regex(graph_, at, "^(" + format_pattern(text.get<std::string>(), spot.path) + ")$",
                             CharForm::kJson);
      } catch (const std::invalid_argument& error) {
        fail(spot.path, error.what());
      }
    } else if (!lengths) {
      return graph_.call(spot.from, string_);
    } else {
      for (std::int64_t i = 0; i < min; ++i) at = graph_.call(at, character_);
      const Node end = graph_.node();
      graph_.link(at, end);
      if (max < 0) graph_.link(graph_.call(end, character_), end);
      for (std::int64_t i = min; i < max; ++i) {
        at = graph_.call(at, character_);
        graph_.link(at, end);
      }
      at = end;
    }
    return graph_.literal(at, "\"");
  }

  static std::string format_pattern(const std::string& name, const std::string& path) {
    std::vector<std::string> known;
    for (const auto& [format, pattern] : kFormats) {
      if (name == format) return pattern;
      known.emplace_back(format);
    }
    fail(path, fmt::format("the format '{}' is not supported; there are {}", name, fmt::join(known, ", ")));
  }

  Node array(const Json& schema, const Spot& spot) {
    if (spot.depth == 0) return graph_.node();
    const std::int64_t min = count_at(schema, "minItems", 0, spot.path);
    const std::int64_t max = count_at(schema, "maxItems", -1, spot.path);
    if (max >= 0 && max < min) fail(spot.path, "maxItems is below minItems");
    if (std::max(min, max) > kMaxItems) fail(spot.path, fmt::format("counts of items may go up to {}", kMaxItems));
    const Spot inner{spot.from, spot.depth - 1, spot.nesting, spot.path};
    std::vector<Node> firsts;  // rules of the first items
    if (schema.contains("prefixItems")) {
      if (!schema.at("prefixItems").is_array()) fail(spot.path, "prefixItems should be a list");
      for (const Json& item : schema.at("prefixItems")) {
        const std::string name = fmt::format("prefixItems/{}", firsts.size());
        firsts.push_back(graph_.rule([&](Node from) { return value(item, inner.inside(from, name)); }));
      }
    }
    const Json& items = schema.contains("items") ? schema.at("items") : Json(true);
    const bool more = items != Json(false);
    const Node other =
        more ? graph_.rule([&](Node from) { return value(items, inner.inside(from, "items")); }) : Node{-1};

    Node at = space(graph_.literal(spot.from, "["));
    const Node close = graph_.node(), spaced = graph_.node();
    if (min == 0) graph_.link(at, close);
    const auto item = [&](std::int64_t i) {
      const auto k = static_cast<std::size_t>(i);
      const Node before = i == 0 ? at : comma(at);
      return graph_.call(before, k < firsts.size() ? firsts[k] : other);
    };
    // One by one as far as the items differ or their count is bounded, then round and round.
    const auto different = static_cast<std::int64_t>(firsts.size());
    std::int64_t until = max >= 0 ? max : std::max({min, different, std::int64_t{1}});
    if (!more) until = std::min(until, different);
    for (std::int64_t i = 0; i < until; ++i) {
      at = item(i);
      if (i + 1 >= min) graph_.link(at, spaced);
    }
    if (max < 0 && more) graph_.link(graph_.call(comma(at), other), at);
    graph_.link(space(spaced), close);
    return graph_.literal(close, "]");
  }

  Node object(const Json& schema, const Spot& spot) {
    if (spot.depth == 0) return graph_.node();
    const Json properties = schema.value("properties", Json::object());
    if (!properties.is_object()) fail(spot.path, "properties should be an object");
    const Json required = schema.value("required", Json::array());
    std::set<std::string> needed;
    if (!required.is_array()) fail(spot.path, "required should be a list of names");
    for (const Json& name : required) {
      if (!name.is_string()) fail(spot.path, "required should be a list of names");
      needed.insert(name.get<std::string>());
    }
    const Json additional = schema.value("additionalProperties", Json(properties.empty() && needed.empty()));
    std::vector<std::pair<std::string, const Json*>> members;
    for (const auto& [name, member] : properties.items()) members.emplace_back(name, &member);
    const Json& unnamed = schema.contains("additionalProperties") ? schema.at("additionalProperties") : kAnything;
    for (const std::string& name : needed)
      if (!properties.contains(name)) members.emplace_back(name, &unnamed);

    const Spot inner{spot.from, spot.depth - 1, spot.nesting, spot.path};
    const Node close = graph_.node();
    Node none = space(graph_.literal(spot.from, "{")), some = graph_.node();  // whether there was a member before
    for (const auto& [name, member] : members) {
      const Node take = graph_.node(), next_none = graph_.node();
      graph_.link(none, take);
      graph_.link(comma(some), take);
      const Node before = one_space(graph_.literal(take, Json(name).dump() + ":"));
      const Node next_some = value(*member, inner.inside(before, "properties/" + name));
      const Node both = graph_.node();
      graph_.link(next_some, both);
      if (!needed.contains(name)) {
        graph_.link(none, next_none);
        graph_.link(some, both);
      }
      none = next_none;
      some = both;
    }
    if (additional != Json(false)) {
      const Node value_rule =
          graph_.rule([&](Node from) { return value(additional, inner.inside(from, "additionalProperties")); });
      const Node key = graph_.node();
      graph_.link(none, key);
      graph_.link(comma(some), key);
      const Node before = one_space(graph_.literal(other_key(key, members), ":"));
      graph_.link(graph_.call(before, value_rule), some);
    }
    graph_.link(none, close);
    graph_.link(space(some), close);
    return graph_.literal(close, "}");
  }

  // A key that is none of the members' names. Without escapes, so that it cannot be one of them in another spelling.
  Node other_key(Node from, const std::vector<std::pair<std::string, const Json*>>& members) {
    if (members.empty()) return graph_.call(from, string_);
    std::vector<std::u32string> names;
    for (const auto& [name, ignored] : members) {
      std::u32string& characters = names.emplace_back();
      for (std::size_t at = 0; at < name.size();) {
        const Character character = character_at(name, at);
        characters += character.value;
        at += character.size;
      }
    }
    const Node end = graph_.node(), free = graph_.node();
    graph_.chars(free, plain_chars(), free);
    graph_.link(free, end);
    add_other(add_bytes(from, "\""), names, 0, {free, end});
    return add_bytes(end, "\"");
  }

  struct OtherKey {
    Node free, end;  // behind a first character that none of the names has there, and behind the key
  };
  // `names`: those that agree with the key so far.
  void add_other(Node at, const std::vector<std::u32string>& names, std::size_t depth, const OtherKey& to) {
    std::map<char32_t, std::vector<std::u32string>> by_next;
    bool is_name = false;
    for (const std::u32string& name : names) {
      if (name.size() == depth)
        is_name = true;
      else
        by_next[name[depth]].push_back(name);
    }
    if (!is_name) graph_.link(at, to.end);
    CharSet taken;
    for (const auto& [character, ignored] : by_next) taken.add(character, character);
    graph_.chars(at, plain_chars().without(taken), to.free);
    for (const auto& [character, rest] : by_next)
      if (plain_chars().contains(character)) add_other(graph_.chars(at, CharSet::one(character)), rest, depth + 1, to);
  }

  inline static const Json kAnything = true;

  Graph& graph_;
  JsonGrammarOptions options_;
  const Json* root_ = nullptr;
  Node space_ = -1, character_ = -1, string_ = -1, number_ = -1;
  std::map<std::int64_t, Node> any_;  // by depth
  std::map<std::pair<std::string, std::int64_t>, Node> references_;
};

}  // namespace

Graph::Node add_json_object(Graph& graph, Graph::Node from, const JsonGrammarOptions& options) {
  return JsonWriter(graph, options).object(from);
}

Graph::Node add_json_schema(Graph& graph, Graph::Node from, const Json& schema, const JsonGrammarOptions& options) {
  return JsonWriter(graph, options).schema(schema, from);
}

}  // namespace thinkvg::text
