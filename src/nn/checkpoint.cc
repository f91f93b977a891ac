#include "thinkvg/nn/checkpoint.h"

#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include "nn/inference.h"
#include "thinkvg/nn/adapter.h"
#include "thinkvg/nn/layers.h"

namespace thinkvg::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

using Repeatable = std::function<at::Tensor(const at::Tensor&)>;

struct Recipe : torch::CustomClassHolder {
  Recipe(Repeatable given_block, ForwardMode given_mode) : block(std::move(given_block)), mode(given_mode) {}
  Repeatable block;
  ForwardMode mode;
};

class CheckpointFunction : public torch::autograd::Function<CheckpointFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const c10::intrusive_ptr<Recipe>& recipe, const at::Tensor& input,
                            at::TensorList parameters) {
    tensor_list saved = {input};
    saved.insert(saved.end(), parameters.begin(), parameters.end());
    context->save_for_backward(std::move(saved));
    context->saved_data["recipe"] = c10::IValue::make_capsule(recipe);
    const RepeatedPass repeated;
    return recipe->block(input);
  }

  static tensor_list backward(AutogradContext* context, const tensor_list& gradients) {
    const tensor_list saved = context->get_saved_variables();
    const auto recipe = c10::static_intrusive_pointer_cast<Recipe>(context->saved_data["recipe"].toCapsule());
    const at::AutoGradMode with_gradient(true);
    const at::Tensor input = saved[0].detach().set_requires_grad(saved[0].requires_grad());
    tensor_list sources;
    std::vector<std::size_t> places;  // in what is returned: recipe, input, parameters
    if (input.requires_grad()) {
      sources.push_back(input);
      places.push_back(1);
    }
    for (std::size_t i = 1; i < saved.size(); ++i) {
      if (!saved[i].requires_grad()) continue;
      sources.push_back(saved[i]);
      places.push_back(i + 1);
    }
    const at::Tensor output = recipe->mode.run([&] { return recipe->block(input); });
    const tensor_list found = torch::autograd::grad({output}, sources, {gradients[0]}, std::nullopt, false,
                                                    /*allow_unused=*/true);
    tensor_list result(saved.size() + 1);
    for (std::size_t i = 0; i < found.size(); ++i) result[places[i]] = found[i];
    return result;
  }
};

}  // namespace

at::Tensor checkpoint(const Repeatable& block, const at::Tensor& input, const std::vector<at::Tensor>& parameters) {
  if (!c10::GradMode::is_enabled()) return block(input);
  const at::TensorList list(parameters);
  return CheckpointFunction::apply(c10::make_intrusive<Recipe>(block, ForwardMode::current()), input, list);
}

std::vector<at::Tensor> trained_tensors(const torch::nn::Module& module) {
  std::vector<at::Tensor> tensors;
  for (const at::Tensor& parameter : module.parameters())
    if (parameter.requires_grad()) tensors.push_back(parameter);
  for (const auto& part : module.modules()) {
    const auto* linear = dynamic_cast<const Linear*>(part.get());
    if (linear == nullptr || !linear->adapter) continue;
    for (const at::Tensor& tensor : {linear->adapter->down, linear->adapter->up})
      if (tensor.requires_grad()) tensors.push_back(tensor);
  }
  return tensors;
}

}  // namespace thinkvg::nn
