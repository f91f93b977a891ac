#include "thinkvg/train/out_of_memory.h"

#include <c10/util/Exception.h>
#include <spdlog/fmt/ranges.h>

#include <new>

#include "thinkvg/core/error.h"

namespace thinkvg::train {
namespace {

[[noreturn]] void explain(const MemoryLevers& levers, const std::string& reason) {
  throw_failure(
      "out of memory{}. What lowers the need, the best first:\n  {}\n'thinkvg check' shows a plan before a run",
      reason.empty() ? "" : " (" + reason + ")", fmt::join(memory_advice(levers), "\n  "));
}

// The first sentence of LibTorch's message.
std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

}  // namespace

void explaining_memory(const MemoryLevers& levers, const std::function<void()>& body) {
  try {
    body();
  } catch (const c10::OutOfMemoryError& error) {
    explain(levers, first_line(error.what_without_backtrace()));
  } catch (const c10::Error& error) {
    // What the CPU's allocator says; it has no type of its own.
    const std::string text = error.what_without_backtrace();
    const std::size_t at = text.find("DefaultCPUAllocator: ");
    if (at == std::string::npos) throw;
    explain(levers, first_line(text.substr(at + 21)));
  } catch (const std::bad_alloc&) {
    explain(levers, "");
  }
}

MemoryLevers memory_levers(const SftOptions& options) {
  MemoryLevers levers;
  levers.adapters = options.tuning.lora.rank > 0;
  levers.bfloat16 = options.tuning.dtype == "bfloat16";
  levers.checkpointing = options.tuning.gradient_checkpointing;
  levers.async_save = options.run.async_save;
  levers.micro_batch_tokens = options.run.micro_batch_tokens;
  return levers;
}

}  // namespace thinkvg::train
