#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "thinkvg/core/json.h"

namespace thinkvg {

// Every options struct has one `template`-free member `void visit(SettingsVisitor& v)` that names each field once:
//
//   struct OptimizerOptions {
//     double lr = 1e-5;
//     void visit(SettingsVisitor& v) { v.setting("lr", lr, "Peak learning rate."); }
//   };
//   struct SftOptions {
//     OptimizerOptions optimizer;
//     void visit(SettingsVisitor& v) { v.section("optimizer", optimizer, "How weights are updated."); }
//   };
//
// The same visit reads run files, applies `--optimizer.lr 1e-4`, prints `--help` and writes the resolved config.
class SettingsVisitor {
 public:
  virtual ~SettingsVisitor() = default;
  virtual void setting(std::string_view name, bool& value, std::string_view help) = 0;
  virtual void setting(std::string_view name, std::int64_t& value, std::string_view help) = 0;
  virtual void setting(std::string_view name, double& value, std::string_view help) = 0;
  virtual void setting(std::string_view name, std::string& value, std::string_view help) = 0;
  virtual void setting(std::string_view name, std::vector<std::int64_t>& value, std::string_view help) = 0;
  virtual void setting(std::string_view name, std::vector<std::string>& value, std::string_view help) = 0;

  template <class Options>
  void section(std::string_view name, Options& options, std::string_view help) {
    begin_section(name, help);
    options.visit(*this);
    end_section();
  }

 protected:
  virtual void begin_section(std::string_view name, std::string_view help) = 0;
  virtual void end_section() = 0;
};

// One line of a command's help.
struct SettingInfo {
  std::string name;   // dotted: "optimizer.lr"
  std::string type;   // "true|false", "integer", "number", "text", "list of integers", "list of texts"
  std::string value;  // present value as text
  std::string help;
};

namespace settings_detail {
class AnyOptions {
 public:
  virtual ~AnyOptions() = default;
  virtual void visit(SettingsVisitor& v) = 0;
};
template <class Options>
class OptionsRef final : public AnyOptions {
 public:
  explicit OptionsRef(Options& options) : options_(options) {}
  void visit(SettingsVisitor& v) override { options_.visit(v); }

 private:
  Options& options_;
};
Json write(AnyOptions& options);
void read(AnyOptions& options, const Json& values, std::string_view source);
void assign(AnyOptions& options, std::string_view dotted_name, std::string_view text);
std::vector<SettingInfo> list(AnyOptions& options);
}  // namespace settings_detail

// The options as nested JSON objects, in the order of the visit.
template <class Options>
Json settings_to_json(const Options& options) {
  Options copy = options;
  settings_detail::OptionsRef<Options> ref(copy);
  return settings_detail::write(ref);
}

// Sets the fields that `values` names and leaves the others. An unknown key, or a value of another type, throws
// std::invalid_argument with `source`, the dotted path, and the nearest known name. All or nothing.
template <class Options>
void read_settings(Options& options, const Json& values, std::string_view source) {
  Options copy = options;
  settings_detail::OptionsRef<Options> ref(copy);
  settings_detail::read(ref, values, source);
  options = copy;
}

// Sets one field from the text of a command-line flag; lists are comma separated. Errors as read_settings.
template <class Options>
void assign_setting(Options& options, std::string_view dotted_name, std::string_view text) {
  settings_detail::OptionsRef<Options> ref(options);
  settings_detail::assign(ref, dotted_name, text);
}

// What a user who wrote the unknown setting `name` probably meant: a near spelling of a setting or section, or the only
// setting elsewhere with the same last part ("lr" -> "optimizer.lr"); an empty string where nothing is near.
std::string nearest_setting(const std::string& name, const std::vector<SettingInfo>& settings);

// All settings in the order of the visit.
template <class Options>
std::vector<SettingInfo> list_settings(const Options& options) {
  Options copy = options;
  settings_detail::OptionsRef<Options> ref(copy);
  return settings_detail::list(ref);
}

}  // namespace thinkvg
