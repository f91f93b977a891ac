#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace thinkvg::eval {

// The text of the first tokens of a response.
using PrefixText = std::function<std::string(std::size_t num_tokens)>;

// Probability of the tokens that make the answer (the text between <answer> and </answer>, or the whole text where
// there are no such tags), given what stands before them: exp of the sum of their log-probabilities. Nothing for an
// empty answer. Needs about 2 log2(tokens) calls of `prefix`.
std::optional<double> answer_confidence(const PrefixText& prefix, std::span<const float> logprobs);

}  // namespace thinkvg::eval
