#include "eval/picture_order.h"

#include <algorithm>
#include <cstddef>
#include <string>
#include <unordered_map>
#include <utility>

namespace thinkvg::eval {

std::vector<data::Sample> by_picture(const std::vector<data::Sample>& questions) {
  std::unordered_map<std::string, std::size_t> rank;
  std::vector<std::pair<std::size_t, const data::Sample*>> order;
  for (const data::Sample& question : questions)
    order.emplace_back(rank.emplace(question.image, rank.size()).first->second, &question);
  std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<data::Sample> ordered;
  ordered.reserve(order.size());
  for (const auto& [place, question] : order) ordered.push_back(*question);
  return ordered;
}

}  // namespace thinkvg::eval
