// Large templates of nlohmann/json and fmt that nearly every source uses. Declared extern in the precompiled headers,
// they are compiled once (json in src/core/compiled_templates.cc, fmt in its own library) instead of in every source.
// Without precompiled headers every source compiles its own, to the same effect.
#pragma once

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <string>

namespace thinkvg::compiled {
using JsonText = nlohmann::detail::iterator_input_adapter<const char*>;
using JsonString = nlohmann::detail::iterator_input_adapter<std::string::const_iterator>;
}  // namespace thinkvg::compiled

extern template class nlohmann::basic_json<nlohmann::ordered_map>;
extern template class nlohmann::detail::serializer<nlohmann::ordered_json>;
extern template class nlohmann::detail::json_sax_dom_parser<nlohmann::ordered_json>;
extern template class nlohmann::detail::json_sax_dom_callback_parser<nlohmann::ordered_json>;
extern template class nlohmann::detail::lexer<nlohmann::ordered_json, thinkvg::compiled::JsonText>;
extern template class nlohmann::detail::lexer<nlohmann::ordered_json, thinkvg::compiled::JsonString>;
extern template class nlohmann::detail::parser<nlohmann::ordered_json, thinkvg::compiled::JsonText>;
extern template class nlohmann::detail::parser<nlohmann::ordered_json, thinkvg::compiled::JsonString>;

extern template void fmt::detail::vformat_to<char>(fmt::detail::buffer<char>&, fmt::string_view, fmt::format_args,
                                                   fmt::detail::locale_ref);
