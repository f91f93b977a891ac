#include "thinkvg/core/settings.h"

#include <charconv>
#include <cmath>
#include <limits>
#include <sstream>

#include "thinkvg/core/error.h"

namespace thinkvg::settings_detail {
namespace {

template <class T>
constexpr const char* type_name() {
  if constexpr (std::is_same_v<T, bool>) return "true|false";
  if constexpr (std::is_same_v<T, std::int64_t>) return "integer";
  if constexpr (std::is_same_v<T, double>) return "number";
  if constexpr (std::is_same_v<T, std::string>) return "text";
  if constexpr (std::is_same_v<T, std::vector<std::int64_t>>) return "list of integers";
  if constexpr (std::is_same_v<T, std::vector<std::string>>) return "list of texts";
}

// A visitor whose settings all go through one template method of Derived: on_setting(path, value, help).
template <class Derived>
class PathVisitor : public SettingsVisitor {
 public:
  void setting(std::string_view name, bool& value, std::string_view help) override { forward(name, value, help); }
  void setting(std::string_view name, std::int64_t& value, std::string_view help) override {
    forward(name, value, help);
  }
  void setting(std::string_view name, double& value, std::string_view help) override { forward(name, value, help); }
  void setting(std::string_view name, std::string& value, std::string_view help) override {
    forward(name, value, help);
  }
  void setting(std::string_view name, std::vector<std::int64_t>& value, std::string_view help) override {
    forward(name, value, help);
  }
  void setting(std::string_view name, std::vector<std::string>& value, std::string_view help) override {
    forward(name, value, help);
  }

 protected:
  void begin_section(std::string_view name, std::string_view) override { path_.emplace_back(name); }
  void end_section() override { path_.pop_back(); }

  std::vector<std::string> path_;

 private:
  template <class T>
  void forward(std::string_view name, T& value, std::string_view help) {
    path_.emplace_back(name);
    static_cast<Derived*>(this)->on_setting(value, help);
    path_.pop_back();
  }
};

std::string join(const std::vector<std::string>& path) {
  std::string text;
  for (const std::string& part : path) text += (text.empty() ? "" : ".") + part;
  return text;
}

class Writer final : public PathVisitor<Writer> {
 public:
  Json values = Json::object();

  template <class T>
  void on_setting(T& value, std::string_view) {
    Json* at = &values;
    for (const std::string& part : path_) at = &(*at)[part];
    *at = value;
  }
};

class Lister final : public PathVisitor<Lister> {
 public:
  std::vector<SettingInfo> settings;

  template <class T>
  void on_setting(T& value, std::string_view help) {
    std::string text;
    if constexpr (std::is_same_v<T, std::string>) {
      text = value;
    } else if constexpr (std::is_same_v<T, std::vector<std::string>>) {
      for (const std::string& item : value) text += (text.empty() ? "" : ",") + item;
    } else if constexpr (std::is_same_v<T, std::vector<std::int64_t>>) {
      for (std::int64_t item : value) text += (text.empty() ? "" : ",") + std::to_string(item);
    } else {
      text = Json(value).dump();
    }
    settings.push_back({join(path_), type_name<T>(), text, std::string(help)});
  }
};

class Reader final : public PathVisitor<Reader> {
 public:
  Reader(const Json& values, std::string_view source) : values_(values), source_(source) {}

  template <class T>
  void on_setting(T& value, std::string_view) {
    const Json* at = &values_;
    for (const std::string& part : path_) {
      const auto found = at->find(part);
      if (found == at->end() || found->is_null()) return;
      at = &*found;
    }
    if (!fits<T>(*at))
      throw_invalid("{}: setting '{}' must be {}, but is {}", source_, join(path_), type_name<T>(), at->dump());
    value = at->get<T>();
  }

 private:
  template <class T>
  static bool fits(const Json& json) {
    if constexpr (std::is_same_v<T, bool>) return json.is_boolean();
    if constexpr (std::is_same_v<T, std::int64_t>)
      return json.is_number_integer() && !(json.is_number_unsigned() && json.get<std::uint64_t>() > kLargestInteger);
    if constexpr (std::is_same_v<T, double>) return json.is_number();
    if constexpr (std::is_same_v<T, std::string>) return json.is_string();
    if constexpr (std::is_same_v<T, std::vector<std::int64_t>> || std::is_same_v<T, std::vector<std::string>>) {
      if (!json.is_array()) return false;
      for (const Json& item : json)
        if (!fits<typename T::value_type>(item)) return false;
      return true;
    }
  }

  static constexpr std::uint64_t kLargestInteger = std::numeric_limits<std::int64_t>::max();

  const Json& values_;
  std::string source_;
};

[[noreturn]] void throw_unknown(std::string_view source, const std::string& name,
                                const std::vector<SettingInfo>& known) {
  const std::string near = nearest_setting(name, known);
  if (near.empty()) throw_invalid("{}: unknown setting '{}'", source, name);
  throw_invalid("{}: unknown setting '{}'; did you mean '{}'?", source, name, near);
}

// A section's path may be given by the section's own name, as on the command line: `data: FILE` is data.path.
void expand_paths(Json& values, const std::string& prefix, const std::vector<SettingInfo>& known) {
  if (!values.is_object()) return;
  for (auto& [key, value] : values.items()) {
    const std::string name = prefix.empty() ? key : prefix + "." + key;
    const auto names = [&](const std::string& wanted) {
      return std::any_of(known.begin(), known.end(), [&](const SettingInfo& info) { return info.name == wanted; });
    };
    if (value.is_string() && !names(name) && names(name + ".path")) value = Json{{"path", value}};
    expand_paths(value, name, known);
  }
}

void check_keys(const Json& values, const std::string& prefix, const std::vector<SettingInfo>& known,
                std::string_view source) {
  if (!values.is_object())
    throw_invalid("{}: {} must be a mapping of settings, but is {}", source,
                  prefix.empty() ? "the file" : "'" + prefix + "'", values.dump());
  for (const auto& [key, value] : values.items()) {
    const std::string name = prefix.empty() ? key : prefix + "." + key;
    bool is_setting = false, is_section = false;
    for (const SettingInfo& info : known) {
      is_setting |= info.name == name;
      is_section |= info.name.starts_with(name + ".");
    }
    if ((is_setting || is_section) && key.find('.') != std::string::npos)
      throw_invalid("{}: '{}' must be nested here: write '{}:' and its settings indented below it", source, name,
                    key.substr(0, key.find('.')));
    if (is_section) {
      if (!value.is_null()) check_keys(value, name, known, source);
    } else if (!is_setting) {
      throw_unknown(source, name, known);
    }
  }
}

class Assigner final : public PathVisitor<Assigner> {
 public:
  Assigner(std::string_view name, std::string_view text) : name_(name), text_(text) {}
  bool found = false;

  template <class T>
  void on_setting(T& value, std::string_view) {
    if (join(path_) != name_) return;
    found = true;
    if constexpr (std::is_same_v<T, std::string>) {
      value = text_;
    } else if constexpr (std::is_same_v<T, std::vector<std::string>> || std::is_same_v<T, std::vector<std::int64_t>>) {
      T items;
      std::stringstream stream(text_);
      for (std::string item; std::getline(stream, item, ',');) {
        if constexpr (std::is_same_v<T, std::vector<std::string>>)
          items.push_back(item);
        else
          items.push_back(number<std::int64_t>(item, type_name<T>()));
      }
      value = items;
    } else if constexpr (std::is_same_v<T, bool>) {
      if (text_ != "true" && text_ != "false") fail(type_name<T>());
      value = text_ == "true";
    } else {
      value = number<T>(text_, type_name<T>());
    }
  }

 private:
  template <class T>
  T number(const std::string& text, const char* type) const {
    T value{};
    const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || stop != text.data() + text.size()) fail(type);
    if constexpr (std::is_same_v<T, double>) {
      if (!std::isfinite(value)) fail(type);
    }
    return value;
  }
  [[noreturn]] void fail(const char* type) const { throw_invalid("--{} must be {}, but is '{}'", name_, type, text_); }

  std::string name_;
  std::string text_;
};

}  // namespace

Json write(AnyOptions& options) {
  Writer writer;
  options.visit(writer);
  return writer.values;
}

void read(AnyOptions& options, const Json& given, std::string_view source) {
  if (given.is_null()) return;  // an empty file
  Json values = given;
  expand_paths(values, "", list(options));
  check_keys(values, "", list(options), source);
  Reader reader(values, source);
  options.visit(reader);
}

void assign(AnyOptions& options, std::string_view dotted_name, std::string_view text) {
  Assigner assigner(dotted_name, text);
  options.visit(assigner);
  if (!assigner.found) throw_unknown("command line", std::string(dotted_name), list(options));
}

std::vector<SettingInfo> list(AnyOptions& options) {
  Lister lister;
  options.visit(lister);
  return lister.settings;
}

}  // namespace thinkvg::settings_detail

namespace thinkvg {

std::string nearest_setting(const std::string& name, const std::vector<SettingInfo>& settings) {
  std::vector<std::string> names;
  for (const SettingInfo& info : settings) {
    for (std::size_t dot = info.name.find('.'); dot != std::string::npos; dot = info.name.find('.', dot + 1))
      names.push_back(info.name.substr(0, dot));
    names.push_back(info.name);
  }
  if (std::string near = nearest_name(name, names); !near.empty()) return near;
  const auto last_part = [](const std::string& dotted) { return dotted.substr(dotted.rfind('.') + 1); };
  std::string found;
  for (const SettingInfo& info : settings) {
    if (last_part(info.name) != last_part(name)) continue;
    if (!found.empty()) return "";
    found = info.name;
  }
  return found;
}

}  // namespace thinkvg
