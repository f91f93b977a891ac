#pragma once

#include <cstdint>
#include <string>

namespace thinkvg::dist {

std::string host_name();
// This machine's numeric address on the way to `host`: what others on that network reach it by. Throws
// std::runtime_error where the name is not known or there is no way.
std::string address_towards(const std::string& host, std::int64_t port);
bool is_loopback(const std::string& address);

}  // namespace thinkvg::dist
