// The definitions behind the extern templates of the precompiled headers.
#include <nlohmann/json.hpp>
#include <string>

template class nlohmann::basic_json<nlohmann::ordered_map>;
template class nlohmann::detail::serializer<nlohmann::ordered_json>;
template class nlohmann::detail::json_sax_dom_parser<nlohmann::ordered_json>;
template class nlohmann::detail::json_sax_dom_callback_parser<nlohmann::ordered_json>;
template class nlohmann::detail::lexer<nlohmann::ordered_json, nlohmann::detail::iterator_input_adapter<const char*>>;
template class nlohmann::detail::lexer<nlohmann::ordered_json,
                                       nlohmann::detail::iterator_input_adapter<std::string::const_iterator>>;
template class nlohmann::detail::parser<nlohmann::ordered_json, nlohmann::detail::iterator_input_adapter<const char*>>;
template class nlohmann::detail::parser<nlohmann::ordered_json,
                                        nlohmann::detail::iterator_input_adapter<std::string::const_iterator>>;
