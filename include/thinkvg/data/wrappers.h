#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "thinkvg/data/dataset.h"

// Data sets made out of data sets. Each choice depends only on the set, the seed and its own arguments.
namespace thinkvg::data {

using DatasetPtr = std::shared_ptr<const Dataset>;

// The samples that match the expression, which thinkvg/data/filter.h describes.
DatasetPtr filter(DatasetPtr source, const std::string& expression);

// The patients of [begin, end) of the order that the seed gives, 0 <= begin <= end <= 1: ranges that meet make patient
// splits without a patient in two of them, such as 0 to 0.8, 0.8 to 0.9, 0.9 to 1. patient_fraction(f) is 0 to f.
DatasetPtr patient_range(DatasetPtr source, double begin, double end, std::uint64_t seed);

// At most so many questions each, chosen by seed; 0: no cap. The order of the source stays.
struct Caps {
  std::int64_t per_type = 0;
  std::int64_t per_picture = 0;
  std::int64_t per_patient = 0;
};
DatasetPtr cap(DatasetPtr source, const Caps& caps, std::uint64_t seed);

// Think / no-think targets out of the same data: a share of the samples, chosen by seed and id, keeps its reasoning;
// the others have none. Smaller shares lie inside larger ones.
DatasetPtr with_think(DatasetPtr source, double share, std::uint64_t seed);

// Conversations in one piece: the turns of a row of a set of conversations, which are samples of their own there
// (Sample::fields has "turn"), become one sample with the later turns in Sample::more_turns. It stands in the place of
// its first turn. A turn whose predecessor is not in the source begins a sample of its own, as do all other samples.
DatasetPtr join_turns(DatasetPtr source);

// Several sets in one, interleaved so that any beginning has nearly the given shares. A part that ends before the
// others begins again, in another seeded order; ids of later passes end in "~2", "~3". Ids begin with the part's name,
// which is also the field "source".
struct MixturePart {
  DatasetPtr dataset;
  std::string name;
  double weight = 1;
};
// `size` 0: until the part that lasts longest has been shown once. Throws std::invalid_argument for weights that are
// not positive, repeated names and empty parts.
DatasetPtr mixture(std::vector<MixturePart> parts, std::int64_t size, std::uint64_t seed);

}  // namespace thinkvg::data
