#pragma once

#include <c10/core/Device.h>

namespace thinkvg::test {

// A second device for machines without one: LibTorch's PrivateUse1, whose operators run on the CPU. It is as strict as
// a GPU: an operator that is given tensors of both devices throws std::runtime_error naming it (numbers without
// dimensions may be on the CPU), and code that reads a tensor's memory by itself ends at an address that no memory has.
// Registered when the program starts.
at::Device checking_device();
inline constexpr const char* kCheckingDevice = "checking";  // its name in settings

// How many operators have run there.
long num_device_operators();

}  // namespace thinkvg::test
