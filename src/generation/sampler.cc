#include "generation/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "thinkvg/core/error.h"
#include "thinkvg/nn/row_sampling.h"

namespace thinkvg::generation {
namespace {

constexpr float kMasked = -std::numeric_limits<float>::infinity();

struct Candidate {
  float logit;
  std::int64_t id;
};

// Likelier first; of equal ones the smaller id.
bool is_before(const Candidate& a, const Candidate& b) { return a.logit != b.logit ? a.logit > b.logit : a.id < b.id; }

// The `count` likeliest tokens, in no order: candidates that beat the worst one so far are gathered and, when twice as
// many as needed are there, cut down to the best by selection.
std::vector<Candidate> likeliest(std::span<const float> logits, std::int64_t count) {
  std::vector<Candidate> kept;
  const auto limit = static_cast<std::size_t>(count);
  kept.reserve(2 * limit);
  float threshold = kMasked;
  const auto cut = [&] {
    std::nth_element(kept.begin(), kept.begin() + (count - 1), kept.end(), is_before);
    kept.resize(limit);
    threshold = kept.back().logit;
  };
  for (std::int64_t id = 0; id < std::ssize(logits); ++id) {
    const float logit = logits[static_cast<std::size_t>(id)];
    if (!(logit > threshold)) continue;  // an equal one with a larger id comes after all that are kept
    kept.push_back({logit, id});
    if (kept.size() == 2 * limit) cut();
  }
  if (kept.size() > limit) cut();
  return kept;
}

// All tokens with a logit of at least `threshold`.
std::vector<Candidate> above(std::span<const float> logits, float threshold) {
  std::vector<Candidate> kept;
  for (std::int64_t id = 0; id < std::ssize(logits); ++id) {
    const float logit = logits[static_cast<std::size_t>(id)];
    if (logit >= threshold && logit > kMasked) kept.push_back({logit, id});
  }
  return kept;
}

// The distribution softmax((logit - largest) / temperature) over some tokens.
struct Scale {
  float largest;
  double inverse_temperature;
  double mass(const Candidate& candidate) const {
    return std::exp((static_cast<double>(candidate.logit) - largest) * inverse_temperature);
  }
};

double mass_of(std::span<const Candidate> candidates, const Scale& scale) {
  return std::accumulate(candidates.begin(), candidates.end(), 0.0,
                         [&](double sum, const Candidate& candidate) { return sum + scale.mass(candidate); });
}

// Keeps the fewest likeliest tokens that together have at least `wanted` of the mass: a selection that halves the part
// in which the last of them lies, by its mass instead of its count.
void keep_mass(std::vector<Candidate>& candidates, double wanted, const Scale& scale) {
  auto begin = candidates.begin(), end = candidates.end();
  double before = 0;
  while (end - begin > 1) {
    const auto middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end, is_before);
    const double upper = mass_of(std::span(begin, middle), scale);
    if (before + upper >= wanted) {
      end = middle;
    } else {
      before += upper;
      begin = middle;
    }
  }
  candidates.erase(end, candidates.end());
}

void set_bit(std::vector<std::uint64_t>& bits, std::int64_t id) {
  const auto word = static_cast<std::size_t>(id / 64);
  if (word >= bits.size()) bits.resize(word + 1);
  bits[word] |= std::uint64_t{1} << (id % 64);
}

bool get_bit(std::span<const std::uint64_t> bits, std::int64_t id) {
  const auto word = static_cast<std::size_t>(id / 64);
  return word < bits.size() && (bits[word] >> (id % 64) & 1) != 0;
}

void allow_only(std::span<float> logits, std::span<const std::uint64_t> allowed) {
  const std::int64_t size = std::ssize(logits);
  for (std::int64_t begin = 0; begin < size; begin += 64) {
    const auto word = static_cast<std::size_t>(begin / 64);
    const std::uint64_t bits = word < allowed.size() ? allowed[word] : 0;
    if (bits == ~std::uint64_t{0}) continue;
    const std::int64_t end = std::min(begin + 64, size);
    for (std::int64_t id = begin; id < end; ++id)
      if ((bits >> (id - begin) & 1) == 0) logits[static_cast<std::size_t>(id)] = kMasked;
  }
}

TopLogprobs top_of(std::vector<Candidate> candidates, double log_total, const Scale& scale) {
  std::sort(candidates.begin(), candidates.end(), is_before);
  TopLogprobs top;
  for (const Candidate& candidate : candidates)
    top.emplace_back(candidate.id, static_cast<float>((static_cast<double>(candidate.logit) - scale.largest) *
                                                          scale.inverse_temperature -
                                                      log_total));
  return top;
}

}  // namespace

Sampler::Sampler(std::shared_ptr<const Settings> settings, std::span<const std::int64_t> prompt, RandomStream random)
    : settings_(std::move(settings)), random_(random) {
  if (settings_->constraint) state_ = settings_->constraint->start();
  for (const std::int64_t id : prompt) note(id);
}

void Sampler::note(std::int64_t id) {
  if (settings_->sampling.repetition_penalty == 1.0 || get_bit(seen_bits_, id)) return;
  set_bit(seen_bits_, id);
  seen_.push_back(id);
}

void Sampler::mask(std::span<float> logits) const {
  const auto size = std::ssize(logits);
  if (const auto penalty = static_cast<float>(settings_->sampling.repetition_penalty); penalty != 1.0f)
    for (const std::int64_t id : seen_) {
      if (id >= size) continue;
      float& logit = logits[static_cast<std::size_t>(id)];
      logit = logit > 0 ? logit / penalty : logit * penalty;
    }
  if (settings_->constraint) allow_only(logits, settings_->constraint->allowed(state_));
  for (const std::int64_t id : settings_->banned)
    if (id >= 0 && id < size) logits[static_cast<std::size_t>(id)] = kMasked;
}

std::optional<SampledToken> Sampler::draw(std::span<float> logits) {
  const SamplingOptions& sampling = settings_->sampling;
  mask(logits);
  float largest = nn::largest_logit(logits);
  if (num_drawn_ < sampling.min_new_tokens) {
    // A constraint whose text is complete may leave nothing but the end; then it ends early.
    std::vector<float> before;
    for (const std::int64_t id : settings_->end_ids) {
      if (id >= std::ssize(logits)) continue;
      before.push_back(logits[static_cast<std::size_t>(id)]);
      logits[static_cast<std::size_t>(id)] = kMasked;
    }
    const float other = nn::largest_logit(logits);
    if (other == kMasked && largest != kMasked) {
      std::size_t i = 0;
      for (const std::int64_t id : settings_->end_ids)
        if (id < std::ssize(logits)) logits[static_cast<std::size_t>(id)] = before[i++];
    } else {
      largest = other;
    }
  }
  // NaN logits leave nothing to draw either.
  if (!(largest > kMasked) || std::isinf(largest)) return std::nullopt;

  const bool greedy = sampling.temperature == 0;
  const double temperature = greedy ? 1.0 : sampling.temperature;
  const Scale scale{largest, 1.0 / temperature};
  const std::int64_t vocabulary = std::ssize(logits);
  const bool use_top_k = sampling.top_k > 0 && sampling.top_k < vocabulary;
  SampledToken token;
  if (greedy || (!use_top_k && sampling.top_p >= 1 && sampling.min_p == 0)) {
    if (greedy) {
      token.id = std::find(logits.begin(), logits.end(), largest) - logits.begin();
    } else {
      const nn::RowMass mass(logits, largest, static_cast<float>(scale.inverse_temperature));
      token.id = mass.find(random_.uniform() * mass.total());
    }
    token.logprob = nn::row_logprob(logits, token.id, temperature);
    if (settings_->num_top > 0) {
      const double log_total =
          (static_cast<double>(logits[static_cast<std::size_t>(token.id)]) - largest) * scale.inverse_temperature -
          token.logprob;
      token.top = top_of(likeliest(logits, std::min(settings_->num_top, vocabulary)), log_total, scale);
    }
  } else {
    std::vector<Candidate> candidates;
    if (use_top_k) {
      candidates = likeliest(logits, sampling.top_k);
    } else {
      // Tokens of less than (1 - top_p) / V of the mass have together less than 1 - top_p: none of them is needed.
      double least = sampling.min_p;
      if (sampling.top_p < 1) {
        const nn::RowMass mass(logits, largest, static_cast<float>(scale.inverse_temperature));
        least = std::max(least, (1 - sampling.top_p) * 0.5 / static_cast<double>(vocabulary) * mass.total());
      }
      const double threshold = largest + std::log(least) * temperature;
      candidates = above(
          logits, std::isfinite(threshold) ? static_cast<float>(threshold - 1e-5 * std::abs(threshold)) : kMasked);
    }
    if (sampling.top_p < 1) {
      double total = mass_of(candidates, scale);
      if (!use_top_k) total = nn::RowMass(logits, largest, static_cast<float>(scale.inverse_temperature)).total();
      keep_mass(candidates, sampling.top_p * total, scale);
    }
    if (sampling.min_p > 0)
      std::erase_if(candidates, [&](const Candidate& candidate) { return scale.mass(candidate) < sampling.min_p; });
    std::sort(candidates.begin(), candidates.end(), [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
    const double total = mass_of(candidates, scale);
    const double target = random_.uniform() * total;
    double sum = 0;
    const Candidate* chosen = &candidates.back();
    for (const Candidate& candidate : candidates) {
      sum += scale.mass(candidate);
      if (sum > target) {
        chosen = &candidate;
        break;
      }
    }
    token.id = chosen->id;
    token.logprob = static_cast<float>((static_cast<double>(chosen->logit) - largest) * scale.inverse_temperature -
                                       std::log(total));
    if (settings_->num_top > 0) {
      if (std::ssize(candidates) > settings_->num_top) {
        std::nth_element(candidates.begin(), candidates.begin() + settings_->num_top, candidates.end(), is_before);
        candidates.resize(static_cast<std::size_t>(settings_->num_top));
      }
      token.top = top_of(std::move(candidates), std::log(total), scale);
    }
  }
  ++num_drawn_;
  note(token.id);
  if (settings_->constraint) state_ = settings_->constraint->next(state_, token.id);
  return token;
}

}  // namespace thinkvg::generation
