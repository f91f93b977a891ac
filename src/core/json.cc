#include "thinkvg/core/json.h"

#include <yaml-cpp/yaml.h>

#include <charconv>
#include <cmath>
#include <set>

#include "thinkvg/core/error.h"
#include "thinkvg/core/files.h"

namespace thinkvg {
namespace {

Json scalar_to_json(const YAML::Node& node) {
  const std::string& text = node.Scalar();
  if (node.Tag() == "!" || node.Tag() == "tag:yaml.org,2002:str") return text;  // quoted, or said to be text
  static const std::set<std::string> kNull = {"", "~", "null", "Null", "NULL"};
  static const std::set<std::string> kTrue = {"true", "True", "TRUE"};
  static const std::set<std::string> kFalse = {"false", "False", "FALSE"};
  if (kNull.count(text)) return nullptr;
  if (kTrue.count(text)) return true;
  if (kFalse.count(text)) return false;
  const char* begin = text.data() + (text[0] == '+' ? 1 : 0);
  const char* end = text.data() + text.size();
  std::int64_t integer = 0;
  if (auto [stop, error] = std::from_chars(begin, end, integer); error == std::errc() && stop == end) return integer;
  double number = 0;
  const bool numeric = text.find_first_of("0123456789") != std::string::npos;
  if (auto [stop, error] = std::from_chars(begin, end, number); numeric && error == std::errc() && stop == end)
    return number;
  return text;
}

Json to_json(const YAML::Node& node) {
  switch (node.Type()) {
    case YAML::NodeType::Scalar:
      return scalar_to_json(node);
    case YAML::NodeType::Sequence: {
      Json list = Json::array();
      for (const YAML::Node& item : node) list.push_back(to_json(item));
      return list;
    }
    case YAML::NodeType::Map: {
      Json object = Json::object();
      for (const auto& item : node) {
        const std::string key = item.first.as<std::string>();
        if (object.contains(key))
          throw YAML::ParserException(item.first.Mark(), fmt::format("the key '{}' stands twice", key));
        object[key] = to_json(item.second);
      }
      return object;
    }
    default:
      return nullptr;
  }
}

void emit(YAML::Emitter& out, const Json& value) {
  if (value.is_object()) {
    out << YAML::BeginMap;
    for (const auto& [key, item] : value.items()) {
      out << YAML::Key << key << YAML::Value;
      emit(out, item);
    }
    out << YAML::EndMap;
  } else if (value.is_array()) {
    out << YAML::Flow << YAML::BeginSeq;
    for (const Json& item : value) emit(out, item);
    out << YAML::EndSeq;
  } else if (value.is_string()) {
    const std::string text = value.get<std::string>();
    YAML::Node plain;
    plain = text;
    if (scalar_to_json(plain) == value && text.find_first_of("#:{}[],&*!|>'\"%@`\n\\") == std::string::npos) {
      out << text;
    } else {
      out << YAML::DoubleQuoted << text;
    }
  } else if (value.is_null()) {
    out << YAML::Null;
  } else {
    out << value.dump();
  }
}

}  // namespace

Json read_json_file(const std::filesystem::path& file) {
  const std::string text = read_file(file);
  try {
    return Json::parse(text);
  } catch (const Json::parse_error& error) {
    throw_failure("{} is not JSON: {}", file.string(), error.what());
  }
}

Json read_yaml_file(const std::filesystem::path& file) {
  const std::string text = read_file(file);
  try {
    return to_json(YAML::Load(text));
  } catch (const YAML::Exception& error) {
    throw_failure("{}, line {}: not YAML: {}", file.string(), error.mark.line + 1, error.msg);
  }
}

std::string to_yaml(const Json& value) {
  YAML::Emitter out;
  emit(out, value);
  return std::string(out.c_str()) + "\n";
}

}  // namespace thinkvg
