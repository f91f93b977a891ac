#include "text/pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <new>
#include <utility>

#include "text/unicode.h"
#include "thinkvg/core/error.h"

namespace thinkvg::text {
namespace {

std::string message_of(int error) {
  PCRE2_UCHAR text[256];
  pcre2_get_error_message(error, text, sizeof text);
  return reinterpret_cast<const char*>(text);
}

// Escapes that Oniguruma and PCRE2 read differently.
void check_escapes(const std::string& pattern) {
  for (std::size_t i = 0; i + 1 < pattern.size(); ++i) {
    if (pattern[i] != '\\') continue;
    ++i;
    if (std::string_view("wWbBhHRXGKgk").find(pattern[i]) != std::string_view::npos)
      throw_failure(
          "the pattern {} uses \\{}, which is not supported (expected: literals, classes, \\s \\S \\d \\D, "
          "\\p{{..}}, groups, look-around, repetition)",
          pattern, pattern[i]);
  }
}

// Calls `piece` for each piece that `behavior` makes of `text`, given its matches in order through `next_match`.
template <class NextMatch, class Piece>
void split(std::string_view text, SplitBehavior behavior, bool invert, NextMatch&& next_match, Piece&& piece) {
  if (text.empty()) return;
  // A merged piece waits for what follows.
  std::size_t open_begin = 0, open_end = 0;
  bool open = false, previous = false;
  const auto flush = [&] {
    if (open && open_end > open_begin) piece(text.substr(open_begin, open_end - open_begin));
    open = false;
  };
  const auto part = [&](std::size_t begin, std::size_t end, bool is_match) {
    if (begin == end) return;
    if (invert) is_match = !is_match;
    switch (behavior) {
      case SplitBehavior::kIsolated:
        piece(text.substr(begin, end - begin));
        break;
      case SplitBehavior::kRemoved:
        if (!is_match) piece(text.substr(begin, end - begin));
        break;
      case SplitBehavior::kContiguous:
        if (open && is_match == previous) {
          open_end = end;
        } else {
          flush();
          open = true;
          open_begin = begin;
          open_end = end;
        }
        break;
      case SplitBehavior::kMergedWithPrevious:
        if (open && is_match && !previous) {
          open_end = end;
        } else {
          flush();
          open = true;
          open_begin = begin;
          open_end = end;
        }
        break;
      case SplitBehavior::kMergedWithNext:
        // A match waits for the text behind it; of several in a row only the last one gets it.
        if (open && previous && !is_match) {
          open_end = end;
          flush();
        } else {
          flush();
          open = true;
          open_begin = begin;
          open_end = end;
        }
        break;
    }
    previous = is_match;
  };
  std::size_t at = 0;
  Match match;
  while (next_match(at, match)) {
    part(at, match.begin, false);
    part(match.begin, match.end, true);
    at = match.end;
  }
  part(at, text.size(), false);
  flush();
}

}  // namespace

MatchScratch::MatchScratch()
    : data_(pcre2_match_data_create(1, nullptr)),
      context_(pcre2_match_context_create(nullptr)),
      stack_(pcre2_jit_stack_create(32 << 10, 8 << 20, nullptr)) {
  if (data_ == nullptr || context_ == nullptr || stack_ == nullptr) throw std::bad_alloc();
  pcre2_jit_stack_assign(context_, nullptr, stack_);
}

MatchScratch::~MatchScratch() {
  pcre2_match_data_free(data_);
  pcre2_match_context_free(context_);
  pcre2_jit_stack_free(stack_);
}

void Pattern::Free::operator()(pcre2_code* code) const { pcre2_code_free(code); }

Pattern::Pattern(const std::string& pattern) : source_(pattern) {
  check_escapes(pattern);
  int error = 0;
  PCRE2_SIZE offset = 0;
  code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                            PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &error, &offset, nullptr));
  if (!code_) throw_failure("cannot compile the pattern {}: {} at byte {}", pattern, message_of(error), offset);
  // Without a JIT for this processor the interpreter does the same, slower.
  pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);
}

Pattern Pattern::literal(const std::string& text) {
  std::string escaped;
  for (const char c : text) {
    if (std::string_view("\\^$.[]|()?*+{}-#").find(c) != std::string_view::npos) escaped += '\\';
    escaped += c;
  }
  return Pattern(escaped);
}

bool Pattern::find(std::string_view subject, std::size_t from, MatchScratch& scratch, Match& match) const {
  while (from <= subject.size()) {
    const int found = pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(subject.data()), subject.size(), from,
                                  PCRE2_NO_UTF_CHECK, scratch.data_, scratch.context_);
    if (found == PCRE2_ERROR_NOMATCH) return false;
    if (found < 0) throw_failure("cannot match the pattern {}: {}", source_, message_of(found));
    const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(scratch.data_);
    if (bounds[1] > bounds[0]) {
      match = {bounds[0], bounds[1]};
      return true;
    }
    // An empty match splits nothing: on behind it.
    if (bounds[1] >= subject.size()) return false;
    from = bounds[1] + character_at(subject, bounds[1]).size;
  }
  return false;
}

void pre_tokenize(const std::vector<PreTokenizerStep>& steps, std::string_view text, TextPlace place, Pieces& work) {
  work.pieces.clear();
  if (text.empty()) return;
  work.pieces.push_back(text);
  if (work.buffers.size() < steps.size()) work.buffers.resize(steps.size());
  for (std::size_t s = 0; s < steps.size(); ++s) {
    const PreTokenizerStep& step = steps[s];
    auto& next = work.next;
    next.clear();
    const auto keep = [&](std::string_view piece) { next.push_back(piece); };
    bool first = true;
    switch (step.kind) {
      case PreTokenizerStep::Kind::kSplit:
        for (const std::string_view piece : work.pieces) {
          const std::string_view subject = with_stand_ins(piece, work.stand_ins) ? work.stand_ins : piece;
          split(
              piece, step.behavior, step.invert,
              [&](std::size_t from, Match& match) { return step.pattern->find(subject, from, work.match, match); },
              keep);
        }
        break;
      case PreTokenizerStep::Kind::kDigits:
        for (const std::string_view piece : work.pieces) {
          const auto next_number = [&](std::size_t from, Match& match) {
            for (std::size_t at = from; at < piece.size();) {
              const Character character = character_at(piece, at);
              if (is_numeric(character.value)) {
                match = {at, at + character.size};
                return true;
              }
              at += character.size;
            }
            return false;
          };
          split(piece, step.behavior, false, next_number, keep);
        }
        break;
      case PreTokenizerStep::Kind::kPrefixSpace:
      case PreTokenizerStep::Kind::kMetaspace: {
        const bool metaspace = step.kind == PreTokenizerStep::Kind::kMetaspace;
        const std::string space = metaspace ? step.replacement : std::string(" ");
        std::string& buffer = work.buffers[s];
        buffer.clear();
        std::vector<Match> bounds;
        for (const std::string_view piece : work.pieces) {
          const std::size_t begin = buffer.size();
          const bool has_one = piece.starts_with(space) || piece.starts_with(' ');
          const bool follows = first && place == TextPlace::kInside;
          const bool wanted = step.prepend == PrependScheme::kAlways
                                  ? !follows
                                  : step.prepend == PrependScheme::kFirst && first && place == TextPlace::kStart;
          if (wanted && !has_one) buffer += space;
          if (metaspace) {
            for (const char c : piece) {
              if (c == ' ')
                buffer += space;
              else
                buffer += c;
            }
          } else {
            buffer += piece;
          }
          bounds.push_back({begin, buffer.size()});
          first = false;
        }
        for (const Match& bound : bounds) {
          const std::string_view piece = std::string_view(buffer).substr(bound.begin, bound.end - bound.begin);
          if (!metaspace || !step.split) {
            keep(piece);
            continue;
          }
          const auto next_space = [&](std::size_t from, Match& match) {
            const std::size_t at = piece.find(space, from);
            match = {at, at + space.size()};
            return at != std::string_view::npos;
          };
          split(piece, SplitBehavior::kMergedWithNext, false, next_space, keep);
        }
        break;
      }
    }
    std::swap(work.pieces, work.next);
  }
}

}  // namespace thinkvg::text
