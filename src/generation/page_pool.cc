#include "generation/page_pool.h"

#include <numeric>

#include "thinkvg/core/error.h"

namespace thinkvg::generation {

PagePool::PagePool(std::int64_t num_pages)
    : pages_(static_cast<std::size_t>(num_pages)), free_(static_cast<std::size_t>(num_pages)) {
  std::iota(free_.rbegin(), free_.rend(), 0);
}

std::optional<std::int64_t> PagePool::take() {
  std::int64_t page = -1;
  if (!free_.empty()) {
    page = free_.back();
    free_.pop_back();
  } else if (!unused_.empty()) {
    page = unused_.front();
    unused_.pop_front();
    Page& old = pages_[static_cast<std::size_t>(page)];
    known_.erase(old.key);
    old.key.clear();
  } else {
    return std::nullopt;
  }
  pages_[static_cast<std::size_t>(page)].holders = 1;
  return page;
}

void PagePool::hold(std::int64_t page) {
  Page& held = pages_[static_cast<std::size_t>(page)];
  if (held.holders == 0) unused_.erase(held.unused);
  ++held.holders;
}

void PagePool::release(std::int64_t page) {
  Page& held = pages_.at(static_cast<std::size_t>(page));
  if (held.holders == 0) throw_invalid("page {} is released, but nobody holds it", page);
  if (--held.holders > 0) return;
  if (held.key.empty())
    free_.push_back(page);
  else
    held.unused = unused_.insert(unused_.end(), page);
}

void PagePool::remember(std::int64_t page, const std::string& key) {
  Page& held = pages_[static_cast<std::size_t>(page)];
  if (!held.key.empty() || !known_.emplace(key, page).second) return;
  held.key = key;
}

std::optional<std::int64_t> PagePool::find(const std::string& key) {
  const auto found = known_.find(key);
  if (found == known_.end()) return std::nullopt;
  hold(found->second);
  return found->second;
}

}  // namespace thinkvg::generation
