#include "nn/inference.h"

#include <c10/core/GradMode.h>

namespace thinkvg::nn {
namespace {

thread_local bool is_repeated = false;

}  // namespace

bool is_inference() { return !is_repeated && !c10::GradMode::is_enabled(); }

RepeatedPass::RepeatedPass() : before_(is_repeated) { is_repeated = true; }
RepeatedPass::~RepeatedPass() { is_repeated = before_; }

}  // namespace thinkvg::nn
