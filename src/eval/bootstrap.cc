#include "eval/bootstrap.h"

#include <algorithm>

#include "eval/cpu/resample_kernel.h"
#include "thinkvg/core/parallel.h"
#include "thinkvg/core/random.h"

namespace thinkvg::eval {

std::size_t ClusterSums::group(const std::string& name) {
  const auto [place, is_new] = group_index_.emplace(name, group_names_.size());
  if (is_new) group_names_.push_back(name);
  return place->second;
}

void ClusterSums::add(const std::string& cluster, const std::vector<std::size_t>& groups,
                      const std::vector<double>& columns) {
  std::vector<Part>& parts = clusters_[cluster];
  for (const std::size_t group : groups) {
    auto part = std::find_if(parts.begin(), parts.end(), [&](const Part& known) { return known.group == group; });
    if (part == parts.end()) part = parts.insert(parts.end(), {group, std::vector<double>(num_columns_, 0.0)});
    for (std::size_t column = 0; column < num_columns_; ++column) part->sums[column] += columns[column];
  }
}

std::vector<const std::vector<ClusterSums::Part>*> ClusterSums::ordered() const {
  std::vector<const std::vector<Part>*> out;
  out.reserve(clusters_.size());
  for (const auto& [name, parts] : clusters_) out.push_back(&parts);
  return out;
}

ResampledSums::ResampledSums(const ClusterSums& clusters, std::int64_t resamples, std::int64_t seed)
    : num_columns_(clusters.num_columns()),
      resamples_(static_cast<std::size_t>(resamples)),
      padded_((resamples_ + kResampleBlock - 1) / kResampleBlock * kResampleBlock),
      sums_(clusters.num_groups() * num_columns_, 0.0),
      resampled_(clusters.num_groups() * num_columns_ * padded_, 0.0),
      counts_(clusters.num_groups() * num_columns_, 0) {
  const auto parts_of = clusters.ordered();
  if (parts_of.empty()) return;
  for (const auto* parts : parts_of) {
    for (const ClusterSums::Part& part : *parts) {
      for (std::size_t column = 0; column < num_columns_; ++column) {
        sums_[part.group * num_columns_ + column] += part.sums[column];
        counts_[part.group * num_columns_ + column] += part.sums[column] != 0 ? 1 : 0;
      }
    }
  }
  // What each cluster adds to which cells of the table; most cells of a cluster are 0.
  struct Addend {
    std::size_t cell;
    double value;
  };
  const std::size_t count = parts_of.size();
  std::vector<Addend> addends;
  std::vector<std::size_t> ends;
  for (const auto* parts : parts_of) {
    for (const ClusterSums::Part& part : *parts) {
      for (std::size_t column = 0; column < num_columns_; ++column) {
        if (part.sums[column] != 0) addends.push_back({part.group * num_columns_ + column, part.sums[column]});
      }
    }
    ends.push_back(addends.size());
  }
  parallel_for(padded_ / kResampleBlock, [&](std::size_t block) {
    // How often each cluster is in each resample of the block.
    std::vector<double> weights(count * kResampleBlock, 0.0);
    for (std::size_t r = 0; r < kResampleBlock; ++r) {
      const std::size_t resample = block * kResampleBlock + r;
      if (resample >= resamples_) break;
      RandomStream random({hash_key("bootstrap by image"), static_cast<std::uint64_t>(seed), resample});
      for (std::size_t i = 0; i < count; ++i) weights[random.below(count) * kResampleBlock + r] += 1;
    }
    // A table of its own, since cells a whole row of resamples apart would all fall on the same lines of the cache.
    std::vector<double> table(sums_.size() * kResampleBlock, 0.0);
    for (std::size_t i = 0, at = 0; i < count; ++i) {
      for (; at < ends[i]; ++at) {
        add_weighted(&table[addends[at].cell * kResampleBlock], &weights[i * kResampleBlock], addends[at].value);
      }
    }
    for (std::size_t cell = 0; cell < sums_.size(); ++cell) {
      std::copy_n(&table[cell * kResampleBlock], kResampleBlock, &resampled_[cell * padded_ + block * kResampleBlock]);
    }
  });
}

}  // namespace thinkvg::eval
