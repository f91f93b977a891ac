#pragma once

#include <memory>
#include <vector>

#include "thinkvg/data/dataset.h"

namespace thinkvg::data {

// Some samples of a set: everything but which and in what order comes from the source.
class Selection : public Dataset {
 public:
  Selection(std::shared_ptr<const Dataset> source, std::vector<std::int64_t> indices)
      : source_(std::move(source)), indices_(std::move(indices)) {}
  std::int64_t size() const override { return static_cast<std::int64_t>(indices_.size()); }
  Sample get(std::int64_t index) const override { return source_->get(source_index(index)); }
  const std::vector<BadRow>& bad_rows() const override { return source_->bad_rows(); }
  std::string embedded_picture(std::int64_t index) const override {
    return source_->embedded_picture(source_index(index));
  }
  std::optional<SalvagedRow> salvage(std::int64_t bad_index) const override { return source_->salvage(bad_index); }

 private:
  std::int64_t source_index(std::int64_t index) const;

  std::shared_ptr<const Dataset> source_;
  std::vector<std::int64_t> indices_;
};

}  // namespace thinkvg::data
