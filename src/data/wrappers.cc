#include "thinkvg/data/wrappers.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <numeric>
#include <set>
#include <stdexcept>
#include <unordered_map>

#include "data/selection.h"
#include "thinkvg/core/error.h"
#include "thinkvg/core/random.h"
#include "thinkvg/data/filter.h"

namespace thinkvg::data {
namespace {

void require(const DatasetPtr& source, const char* caller) {
  if (!source) throw_invalid("{} needs a data set", caller);
}

// Who the question is about; a patient that is unknown counts as one per picture.
std::string patient_or_picture(const Sample& sample) {
  return sample.patient.empty() ? "picture " + sample.image : sample.patient;
}

std::vector<std::int64_t> all_indices(const Dataset& dataset) {
  std::vector<std::int64_t> indices(static_cast<std::size_t>(dataset.size()));
  std::iota(indices.begin(), indices.end(), 0);
  return indices;
}

// Indices of the samples whose patients lie (or, with `outside`, do not lie) in a range of the seeded order.
std::vector<std::int64_t> in_patient_range(const Dataset& source, double begin, double end, std::uint64_t seed,
                                           bool outside) {
  // Each patient has a place in an order that seed and name decide; a share is a stretch of that order.
  const std::int64_t size = source.size();
  std::vector<std::string> names(static_cast<std::size_t>(size));
  std::vector<std::pair<std::uint64_t, std::string>> order;
  for (std::int64_t i = 0; i < size; ++i) {
    std::string& name = names[static_cast<std::size_t>(i)];
    name = patient_or_picture(source.get(i));
    order.emplace_back(RandomStream({seed, hash_key("patient fraction"), hash_key(name)}).next_u64(), name);
  }
  std::sort(order.begin(), order.end());
  order.erase(std::unique(order.begin(), order.end()), order.end());
  const auto place = [&](double share) {
    return static_cast<std::size_t>(std::llround(share * static_cast<double>(order.size())));
  };
  std::vector<std::string> chosen;
  for (std::size_t i = place(begin); i < place(end); ++i) chosen.push_back(order[i].second);
  std::sort(chosen.begin(), chosen.end());
  std::vector<std::int64_t> indices;
  for (std::int64_t i = 0; i < size; ++i) {
    if (std::binary_search(chosen.begin(), chosen.end(), names[static_cast<std::size_t>(i)]) != outside)
      indices.push_back(i);
  }
  return indices;
}

class WithThink final : public Selection {
 public:
  WithThink(const DatasetPtr& source, double share, std::uint64_t seed)
      : Selection(source, all_indices(*source)), share_(share), seed_(seed) {}
  Sample get(std::int64_t index) const override {
    Sample sample = Selection::get(index);
    if (RandomStream({seed_, hash_key("think"), hash_key(sample.id)}).uniform() >= share_) sample.think.clear();
    return sample;
  }

 private:
  double share_;
  std::uint64_t seed_;
};

// What the turns of one conversation have in common: the id without the number of the turn, which the reader put behind
// a slash and a mixture's "~2" may follow.
std::string conversation_of(const Sample& sample, const std::string& turn) {
  const std::string mark = "/" + turn;
  const std::size_t at = sample.id.rfind(mark);
  if (at == std::string::npos) return sample.id;
  return sample.id.substr(0, at) + sample.id.substr(at + mark.size()) + "\n" + sample.image;
}

class JoinedTurns final : public Selection {
 public:
  // groups[i]: the source's indices of sample i's turns, in order.
  JoinedTurns(const DatasetPtr& source, std::vector<std::vector<std::int64_t>> groups)
      : Selection(source, first_of(groups)), groups_(std::move(groups)), source_(source) {}
  Sample get(std::int64_t index) const override {
    Sample sample = Selection::get(index);
    const std::vector<std::int64_t>& turns = groups_[static_cast<std::size_t>(index)];
    for (std::size_t k = 1; k < turns.size(); ++k) sample.more_turns.push_back(source_->get(turns[k]));
    return sample;
  }

 private:
  static std::vector<std::int64_t> first_of(const std::vector<std::vector<std::int64_t>>& groups) {
    std::vector<std::int64_t> first;
    for (const auto& group : groups) first.push_back(group.front());
    return first;
  }

  std::vector<std::vector<std::int64_t>> groups_;
  DatasetPtr source_;
};

class Mixture final : public Dataset {
 public:
  Mixture(std::vector<MixturePart> parts, std::int64_t size, std::uint64_t seed) : parts_(std::move(parts)) {
    // Each step goes to the part that is furthest behind its share.
    double total = 0;
    for (const MixturePart& part : parts_) total += part.weight;
    std::vector<std::int64_t> taken(parts_.size(), 0);
    std::vector<std::vector<std::int64_t>> orders(parts_.size());
    for (std::int64_t i = 0; i < size; ++i) {
      std::size_t next = 0;
      double most = -1e300;
      for (std::size_t p = 0; p < parts_.size(); ++p) {
        const double behind = parts_[p].weight / total * static_cast<double>(i + 1) - static_cast<double>(taken[p]);
        if (behind > most + 1e-9) {
          most = behind;
          next = p;
        }
      }
      const std::int64_t part_size = parts_[next].dataset->size();
      const std::int64_t pass = taken[next] / part_size, place = taken[next] % part_size;
      if (place == 0) {
        orders[next] = all_indices(*parts_[next].dataset);
        RandomStream({seed, hash_key("mixture"), hash_key(parts_[next].name), static_cast<std::uint64_t>(pass)})
            .shuffle(orders[next]);
      }
      items_.push_back({static_cast<std::int32_t>(next), static_cast<std::int32_t>(pass),
                        orders[next][static_cast<std::size_t>(place)]});
      ++taken[next];
    }
    for (const MixturePart& part : parts_) {
      for (const BadRow& row : part.dataset->bad_rows()) bad_.push_back({row.row, part.name + ": " + row.reason});
    }
  }

  std::int64_t size() const override { return static_cast<std::int64_t>(items_.size()); }

  Sample get(std::int64_t index) const override {
    const Item& item = at(index);
    const MixturePart& part = parts_[static_cast<std::size_t>(item.part)];
    Sample sample = part.dataset->get(item.index);
    sample.id = part.name + "/" + sample.id;
    if (item.pass > 0) sample.id += fmt::format("~{}", item.pass + 1);
    sample.fields["source"] = part.name;
    return sample;
  }

  const std::vector<BadRow>& bad_rows() const override { return bad_; }

  std::string embedded_picture(std::int64_t index) const override {
    const Item& item = at(index);
    return parts_[static_cast<std::size_t>(item.part)].dataset->embedded_picture(item.index);
  }

 private:
  struct Item {
    std::int32_t part, pass;
    std::int64_t index;
  };
  const Item& at(std::int64_t index) const {
    if (index < 0 || index >= size()) {
      throw std::out_of_range(fmt::format("sample {} of {}: an index is 0 to size - 1", index, size()));
    }
    return items_[static_cast<std::size_t>(index)];
  }

  std::vector<MixturePart> parts_;
  std::vector<Item> items_;
  std::vector<BadRow> bad_;
};

}  // namespace

std::unique_ptr<Dataset> patient_fraction(std::shared_ptr<const Dataset> source, double fraction, std::uint64_t seed,
                                          bool complement) {
  require(source, "patient_fraction");
  if (!(fraction >= 0 && fraction <= 1)) throw_invalid("a fraction of patients is between 0 and 1, not {}", fraction);
  std::vector<std::int64_t> indices = in_patient_range(*source, 0, fraction, seed, complement);
  return std::make_unique<Selection>(std::move(source), std::move(indices));
}

DatasetPtr patient_range(DatasetPtr source, double begin, double end, std::uint64_t seed) {
  require(source, "patient_range");
  if (!(begin >= 0 && begin <= end && end <= 1)) {
    throw_invalid("a range of patients is two shares, 0 <= begin <= end <= 1, not {} to {}", begin, end);
  }
  std::vector<std::int64_t> indices = in_patient_range(*source, begin, end, seed, false);
  return std::make_shared<Selection>(std::move(source), std::move(indices));
}

DatasetPtr filter(DatasetPtr source, const std::string& expression) {
  require(source, "filter");
  const Filter condition(expression);
  std::vector<std::int64_t> indices;
  for (std::int64_t i = 0; i < source->size(); ++i) {
    if (condition.matches(source->get(i))) indices.push_back(i);
  }
  return std::make_shared<Selection>(std::move(source), std::move(indices));
}

DatasetPtr cap(DatasetPtr source, const Caps& caps, std::uint64_t seed) {
  require(source, "cap");
  for (const std::int64_t value : {caps.per_type, caps.per_picture, caps.per_patient}) {
    if (value < 0) throw_invalid("a cap is a number of questions, 0 for none, not {}", value);
  }
  // All choose in the same seeded order of ids: the question that comes first in it is kept.
  struct Entry {
    std::uint64_t key;
    std::int64_t index;
    QuestionType type;
    std::string picture, patient;
  };
  std::vector<Entry> entries;
  for (std::int64_t i = 0; i < source->size(); ++i) {
    const Sample sample = source->get(i);
    entries.push_back({RandomStream({seed, hash_key("cap"), hash_key(sample.id)}).next_u64(), i, sample.type,
                       sample.image, patient_or_picture(sample)});
  }
  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return std::pair(a.key, a.index) < std::pair(b.key, b.index); });
  std::map<QuestionType, std::int64_t> types;
  std::map<std::string, std::int64_t> pictures, patients;
  std::vector<std::int64_t> indices;
  for (const Entry& entry : entries) {
    const auto full = [](std::int64_t count, std::int64_t limit) { return limit > 0 && count >= limit; };
    if (full(pictures[entry.picture], caps.per_picture) || full(patients[entry.patient], caps.per_patient) ||
        full(types[entry.type], caps.per_type))
      continue;
    ++pictures[entry.picture];
    ++patients[entry.patient];
    ++types[entry.type];
    indices.push_back(entry.index);
  }
  std::sort(indices.begin(), indices.end());
  return std::make_shared<Selection>(std::move(source), std::move(indices));
}

DatasetPtr with_think(DatasetPtr source, double share, std::uint64_t seed) {
  require(source, "with_think");
  if (!(share >= 0 && share <= 1)) throw_invalid("a share of samples is between 0 and 1, not {}", share);
  return std::make_shared<WithThink>(source, share, seed);
}

DatasetPtr join_turns(DatasetPtr source) {
  require(source, "join_turns");
  struct Open {
    std::size_t group;
    std::int64_t next_turn;
  };
  std::unordered_map<std::string, Open> open;
  std::vector<std::vector<std::int64_t>> groups;
  for (std::int64_t i = 0; i < source->size(); ++i) {
    const Sample sample = source->get(i);
    const auto turn = sample.fields.find("turn");
    std::int64_t number = 0;
    const bool counts =
        turn != sample.fields.end() &&
        std::from_chars(turn->second.data(), turn->second.data() + turn->second.size(), number).ec == std::errc();
    if (!counts) {
      groups.push_back({i});
      continue;
    }
    const std::string conversation = conversation_of(sample, turn->second);
    const auto found = open.find(conversation);
    if (found != open.end() && found->second.next_turn == number) {
      groups[found->second.group].push_back(i);
      ++found->second.next_turn;
    } else {
      open[conversation] = {groups.size(), number + 1};
      groups.push_back({i});
    }
  }
  if (std::ssize(groups) == source->size()) return source;
  return std::make_shared<JoinedTurns>(source, std::move(groups));
}

DatasetPtr mixture(std::vector<MixturePart> parts, std::int64_t size, std::uint64_t seed) {
  if (parts.empty()) throw_invalid("a mixture needs data sets");
  std::set<std::string> names;
  double total = 0;
  for (const MixturePart& part : parts) {
    require(part.dataset, "a mixture's part");
    if (!(part.weight > 0) || !std::isfinite(part.weight))
      throw_invalid("the weight of '{}' should be above 0, but is {}", part.name, part.weight);
    if (part.dataset->size() == 0) throw_invalid("'{}' has no samples to mix", part.name);
    if (!names.insert(part.name).second) throw_invalid("two parts of a mixture are named '{}'", part.name);
    total += part.weight;
  }
  if (size < 0) throw_invalid("the size of a mixture is 0 or more, not {}", size);
  if (size == 0) {
    double longest = 0;
    for (const MixturePart& part : parts)
      longest = std::max(longest, static_cast<double>(part.dataset->size()) * total / part.weight);
    size = static_cast<std::int64_t>(std::llround(longest));
  }
  return std::make_shared<Mixture>(std::move(parts), size, seed);
}

}  // namespace thinkvg::data
