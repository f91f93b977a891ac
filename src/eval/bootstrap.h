#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

// Resampling of clusters (pictures): sums of columns over groups of questions, and the same sums in each resample.
namespace thinkvg::eval {

// A table [groups, columns] of sums for each cluster; most clusters have few of the groups.
class ClusterSums {
 public:
  explicit ClusterSums(std::size_t num_columns) : num_columns_(num_columns) {}

  std::size_t num_columns() const { return num_columns_; }
  std::size_t num_groups() const { return group_names_.size(); }
  std::size_t num_clusters() const { return clusters_.size(); }
  const std::vector<std::string>& group_names() const { return group_names_; }

  // The group of that name, made where it is new.
  std::size_t group(const std::string& name);
  // Adds the columns of one question to the groups it is in.
  void add(const std::string& cluster, const std::vector<std::size_t>& groups, const std::vector<double>& columns);

  struct Part {
    std::size_t group;
    std::vector<double> sums;
  };
  // In the order of the clusters' names, so that the order of the questions does not matter to the resamples.
  std::vector<const std::vector<Part>*> ordered() const;

 private:
  std::size_t num_columns_;
  std::vector<std::string> group_names_;
  std::map<std::string, std::size_t> group_index_;
  std::map<std::string, std::vector<Part>> clusters_;
};

// The sums over all clusters, and over each resample of them.
class ResampledSums {
 public:
  // Draws as many clusters as there are, with replacement, `resamples` times; resample r depends on (seed, r) and the
  // clusters' names alone.
  ResampledSums(const ClusterSums& clusters, std::int64_t resamples, std::int64_t seed);

  std::size_t resamples() const { return resamples_; }
  // Over all clusters.
  double sum(std::size_t group, std::size_t column) const { return sums_[group * num_columns_ + column]; }
  // How many clusters have a part in that sum.
  std::int64_t num_clusters(std::size_t group, std::size_t column) const {
    return counts_[group * num_columns_ + column];
  }
  // In each resample; resamples() numbers.
  const double* resampled(std::size_t group, std::size_t column) const {
    return &resampled_[(group * num_columns_ + column) * padded_];
  }

 private:
  std::size_t num_columns_, resamples_, padded_;
  std::vector<double> sums_, resampled_;
  std::vector<std::int64_t> counts_;
};

}  // namespace thinkvg::eval
