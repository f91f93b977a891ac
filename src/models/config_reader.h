#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "thinkvg/core/error.h"
#include "thinkvg/core/json.h"
#include "thinkvg/nn/layers.h"

namespace thinkvg::models {

// Typed access to one object of config.json, with errors (std::invalid_argument) that name the key.
class ConfigReader {
 public:
  ConfigReader(const Json& object, std::string path) : object_(object), path_(std::move(path)) {
    if (!object_.is_object()) throw_invalid("config.json: {} must be an object", path_.empty() ? "the content" : path_);
  }

  bool has(const char* key) const { return object_.contains(key) && !object_.at(key).is_null(); }
  const Json& at(const char* key) const { return object_.at(key); }
  std::string name(const char* key) const { return path_.empty() ? key : path_ + "." + key; }

  std::int64_t integer(const char* key, std::int64_t fallback) const {
    return has(key) ? convert<std::int64_t>(key, object_.at(key).is_number_integer(), "an integer") : fallback;
  }
  std::int64_t positive(const char* key, std::int64_t fallback) const {
    return require_positive(key, integer(key, fallback));
  }
  std::int64_t positive(const char* key) const {
    if (!has(key)) throw_invalid("config.json: {} is missing; expected a positive integer", name(key));
    return positive(key, 0);
  }
  double number(const char* key, double fallback) const {
    return has(key) ? convert<double>(key, object_.at(key).is_number(), "a number") : fallback;
  }
  bool flag(const char* key, bool fallback) const {
    return has(key) ? convert<bool>(key, object_.at(key).is_boolean(), "true or false") : fallback;
  }
  std::string text(const char* key, const std::string& fallback) const {
    return has(key) ? convert<std::string>(key, object_.at(key).is_string(), "a text") : fallback;
  }
  std::vector<std::int64_t> integers(const char* key, std::vector<std::int64_t> fallback) const {
    if (!has(key)) return fallback;
    const Json& value = object_.at(key);
    if (value.is_number_integer()) return {value.get<std::int64_t>()};
    const bool fits = value.is_array() && std::all_of(value.begin(), value.end(),
                                                      [](const Json& item) { return item.is_number_integer(); });
    return convert<std::vector<std::int64_t>>(key, fits, "an integer or a list of integers");
  }
  nn::Activation activation(const char* key, const std::string& fallback) const {
    const auto found = nn::find_activation(text(key, fallback));
    if (!found) {
      throw_invalid("config.json: {} is '{}'; supported are silu, gelu, gelu_pytorch_tanh, quick_gelu, linear",
                    name(key), text(key, fallback));
    }
    return *found;
  }
  // An error unless the text is the one that is supported.
  void require(const char* key, const std::string& wanted) const {
    if (text(key, wanted) != wanted) {
      throw_invalid("config.json: {} is '{}', only '{}' is supported", name(key), text(key, ""), wanted);
    }
  }

 private:
  template <class Value>
  Value convert(const char* key, bool fits, const char* kind) const {
    if (!fits) throw_invalid("config.json: {} is {}, expected {}", name(key), object_.at(key).dump(), kind);
    return object_.at(key).get<Value>();
  }
  std::int64_t require_positive(const char* key, std::int64_t value) const {
    if (value <= 0) throw_invalid("config.json: {} is {}, expected a positive integer", name(key), value);
    return value;
  }

  const Json& object_;
  std::string path_;
};

}  // namespace thinkvg::models
