#pragma once

#include <cstdint>
#include <list>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

namespace thinkvg::generation {

// Who holds which page of a cache. A page is free, held (by one or several), or remembered: held by nobody, but with
// known content under a key, until its room is needed; the one unused for longest goes first. Not thread-safe.
class PagePool {
 public:
  explicit PagePool(std::int64_t num_pages);

  // A page of its own for the caller; nothing where all are held.
  std::optional<std::int64_t> take();
  void hold(std::int64_t page);     // one holder more
  void release(std::int64_t page);  // one holder less
  std::int64_t num_holders(std::int64_t page) const { return pages_[static_cast<std::size_t>(page)].holders; }

  // The content of `page` is complete from now on and known by `key`. Where another page has the key, nothing happens.
  void remember(std::int64_t page, const std::string& key);
  // The page of this key, with one holder more.
  std::optional<std::int64_t> find(const std::string& key);
  // Whether it is known, without holding it.
  bool knows(const std::string& key) const { return known_.contains(key); }

  std::int64_t num_pages() const { return static_cast<std::int64_t>(pages_.size()); }
  std::int64_t num_held() const { return num_pages() - num_available(); }
  std::int64_t num_available() const { return static_cast<std::int64_t>(free_.size() + unused_.size()); }

 private:
  struct Page {
    std::int64_t holders = 0;
    std::string key;                                // empty: content not known
    std::list<std::int64_t>::iterator unused = {};  // where holders is 0 and the key is not empty
  };
  std::vector<Page> pages_;
  std::vector<std::int64_t> free_;
  std::list<std::int64_t> unused_;  // longest unused first
  std::unordered_map<std::string, std::int64_t> known_;
};

}  // namespace thinkvg::generation
