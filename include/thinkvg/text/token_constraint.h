#pragma once

// Shape letters: V vocabulary.

#include <cstdint>
#include <memory>
#include <span>

namespace thinkvg::text {

// Which tokens may follow while a text is written under a grammar. Compiled once for a tokenizer, shared by any number
// of completions: immutable to its users, all methods may be called from several threads. A completion carries its
// state, a plain number, which is all that has to be copied when it forks.
class TokenConstraint {
 public:
  using State = std::int64_t;
  static constexpr State kDead = -1;

  virtual ~TokenConstraint() = default;
  virtual State start() const = 0;
  // Bit id % 64 of word id / 64 is set where `id` may come next; (V + 63) / 64 words. The ids that end a completion are
  // set where the text is complete. Never empty for a state that next() gave. The words stay valid as long as this
  // object.
  virtual std::span<const std::uint64_t> allowed(State state) const = 0;
  // The state behind `id`; kDead where it was not allowed.
  virtual State next(State state, std::int64_t id) const = 0;
  // Whether the text so far is complete.
  virtual bool accepts(State state) const = 0;
};

}  // namespace thinkvg::text
