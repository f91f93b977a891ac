#include "text/bpe_tokenizer.h"

#include <algorithm>
#include <utility>

#include "text/unicode.h"
#include "thinkvg/core/error.h"

namespace thinkvg::text {
namespace {

constexpr std::string_view kReplacement = "\uFFFD";

// The value of "<0x0A>", or -1.
int byte_of_piece(std::string_view piece) {
  if (piece.size() != 6 || !piece.starts_with("<0x") || piece.back() != '>') return -1;
  int value = 0;
  for (const char c : piece.substr(3, 2)) {
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                             : -1;
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  out.reserve(text.size());
  std::size_t at = 0;
  for (std::size_t found = 0; (found = text.find(from, at)) != std::string_view::npos; at = found + from.size()) {
    out.append(text, at, found - at);
    out += to;
  }
  return out.append(text, at);
}

// Takes leading spaces off the first text that is shown.
class SpaceStripper {
 public:
  explicit SpaceStripper(std::size_t count) : count_(count) {}
  std::string_view operator()(std::string_view text) {
    while (count_ > 0 && !text.empty() && text.front() == ' ') {
      text.remove_prefix(1);
      --count_;
    }
    if (!text.empty()) count_ = 0;
    return text;
  }

 private:
  std::size_t count_;
};

}  // namespace

struct BpeTokenizer::Workspace {
  Pieces pieces;
  BpeModel::Scratch scratch;
  std::vector<AddedTokenFinder::Part> raw_parts, normalized_parts;
  std::string normalized;
};

BpeTokenizer::BpeTokenizer(BpeTokenizerParts parts) : parts_(std::move(parts)) {
  parts_.options.byte_level = parts_.decoder.byte_level;
  if (parts_.options.byte_level) {
    Vocabulary bytes;
    std::string piece;
    for (std::int64_t id = 0; id < parts_.vocabulary.size(); ++id)
      if (parts_.vocabulary.has(id) && from_byte_level(parts_.vocabulary.piece(id), piece)) bytes.add(id, piece);
    model_ = std::make_unique<BpeModel>(bytes, parts_.merges, parts_.options);
  } else {
    model_ = std::make_unique<BpeModel>(parts_.vocabulary, parts_.merges, parts_.options);
  }
  parts_.merges = {};
  std::vector<std::string> contents;  // as decoding sees the added tokens
  Workspace work;
  for (const AddedToken& token : parts_.added) {
    parts_.vocabulary.add(token.id, token.content);
    std::string content = token.content;
    if (token.normalized && !parts_.normalizer.empty()) {
      normalize(token.content, TextPlace::kStart, work);
      content = work.normalized;
    }
    (token.normalized ? normalized_ : raw_).add(token, content);
    contents.push_back(std::move(content));
  }
  decoded_.resize(static_cast<std::size_t>(parts_.vocabulary.size()));
  const auto set = [&](std::int64_t id, std::string_view content) {
    Decoded& entry = decoded_[static_cast<std::size_t>(id)];
    const auto own = [&](std::string_view text) { entry.text = decoded_texts_.add(text); };
    entry.kind = Decoded::Kind::kText;
    entry.text = content;
    std::string bytes;
    if (parts_.decoder.byte_level) {
      if (from_byte_level(content, bytes) && bytes != content)
        own(bytes);
      else if (content.data() != parts_.vocabulary.piece(id).data())
        own(content);
      return;
    }
    if (!parts_.decoder.space.empty() && content.find(parts_.decoder.space) != std::string_view::npos)
      own(replace_all(content, parts_.decoder.space, " "));
    else if (content.data() != parts_.vocabulary.piece(id).data())
      own(content);
    if (parts_.decoder.byte_fallback && byte_of_piece(content) >= 0) {
      entry.kind = Decoded::Kind::kByte;
      entry.byte = static_cast<std::uint8_t>(byte_of_piece(content));
    }
  };
  for (std::int64_t id = 0; id < parts_.vocabulary.size(); ++id)
    if (parts_.vocabulary.has(id)) set(id, parts_.vocabulary.piece(id));
  for (std::size_t i = 0; i < parts_.added.size(); ++i) {
    const AddedToken& token = parts_.added[i];
    if (contents[i] != token.content) set(token.id, contents[i]);
    decoded_[static_cast<std::size_t>(token.id)].special = token.special;
    decoded_[static_cast<std::size_t>(token.id)].added = true;
  }
}

BpeTokenizer::~BpeTokenizer() = default;

std::unique_ptr<BpeTokenizer::Workspace> BpeTokenizer::take_workspace() const {
  {
    const std::lock_guard lock(workspaces_mutex_);
    if (!workspaces_.empty()) {
      auto workspace = std::move(workspaces_.back());
      workspaces_.pop_back();
      return workspace;
    }
  }
  return std::make_unique<Workspace>();
}

void BpeTokenizer::give_back(std::unique_ptr<Workspace> workspace) const {
  const std::lock_guard lock(workspaces_mutex_);
  workspaces_.push_back(std::move(workspace));
}

// The result is in work.normalized.
void BpeTokenizer::normalize(std::string_view text, TextPlace place, Workspace& work) const {
  std::string& out = work.normalized;
  out.assign(text);
  for (const NormalizerStep& step : parts_.normalizer) {
    switch (step.kind) {
      case NormalizerStep::Kind::kNfc:
        out = to_nfc(out);
        break;
      case NormalizerStep::Kind::kPrepend:
        if (!out.empty() && place != TextPlace::kInside) out.insert(0, step.content);
        break;
      case NormalizerStep::Kind::kReplace: {
        if (!step.literal.empty()) {
          out = replace_all(out, step.literal, step.content);
          break;
        }
        std::string subject;
        if (!with_stand_ins(out, subject)) subject = out;
        std::string replaced;
        std::size_t at = 0;
        for (Match match; step.pattern->find(subject, at, work.pieces.match, match); at = match.end) {
          replaced.append(out, at, match.begin - at);
          replaced += step.content;
        }
        out = replaced.append(out, at);
        break;
      }
    }
  }
}

void BpeTokenizer::encode_text(std::string_view text, TextPlace place, Workspace& work,
                               std::vector<std::int64_t>& ids) const {
  if (!parts_.normalizer.empty()) {
    normalize(text, place, work);
    text = work.normalized;
  }
  const auto encode_part = [&](std::string_view part, TextPlace part_place) {
    if (parts_.pre_tokenizer.empty()) {
      model_->encode(part, work.scratch, ids);
      return;
    }
    pre_tokenize(parts_.pre_tokenizer, part, part_place, work.pieces);
    for (const std::string_view piece : work.pieces.pieces) model_->encode(piece, work.scratch, ids);
  };
  if (normalized_.empty()) {
    encode_part(text, place);
    return;
  }
  normalized_.split(text, work.normalized_parts);
  for (const auto& part : work.normalized_parts) {
    if (part.token != nullptr)
      ids.push_back(part.token->id);
    else
      encode_part(text.substr(part.begin, part.end - part.begin), part.begin == 0 ? place : TextPlace::kAfterToken);
  }
}

std::vector<std::int64_t> BpeTokenizer::encode_valid(std::string_view text, TextPlace place) const {
  std::vector<std::int64_t> ids;
  if (text.empty()) return ids;
  ids.reserve(text.size() / 4 + 4);
  auto work = take_workspace();
  if (raw_.empty()) {
    encode_text(text, place, *work, ids);
  } else {
    raw_.split(text, work->raw_parts);
    for (const auto& part : work->raw_parts) {
      if (part.token != nullptr)
        ids.push_back(part.token->id);
      else
        encode_text(text.substr(part.begin, part.end - part.begin), part.begin == 0 ? place : TextPlace::kAfterToken,
                    *work, ids);
    }
  }
  give_back(std::move(work));
  return ids;
}

const BpeTokenizer::Decoded& BpeTokenizer::decoded(std::int64_t id) const {
  static const Decoded kNothing;
  if (id < 0) throw_invalid("cannot decode the negative id {}", id);
  return id < static_cast<std::int64_t>(decoded_.size()) ? decoded_[static_cast<std::size_t>(id)] : kNothing;
}

std::string BpeTokenizer::decode(std::span<const std::int64_t> ids, bool keep_special) const {
  std::string text, run;
  bool first = true;
  const auto end_run = [&] {
    if (is_valid_utf8(run)) {
      text += run;
    } else {
      for (std::size_t i = 0; i < run.size(); ++i) text += kReplacement;
    }
    run.clear();
  };
  for (const std::int64_t id : ids) {
    const Decoded& entry = decoded(id);
    if (entry.kind == Decoded::Kind::kNothing || (entry.special && !keep_special)) continue;
    if (entry.kind == Decoded::Kind::kByte) {
      run += static_cast<char>(entry.byte);
    } else {
      if (!run.empty()) end_run();
      if (first && parts_.decoder.strip_first)
        text += replace_all(entry.text, " ", "");
      else
        text += entry.text;
    }
    first = false;
  }
  if (!run.empty()) end_run();
  if (parts_.decoder.byte_level) return is_valid_utf8(text) ? text : replace_invalid_utf8(text);
  return std::string(SpaceStripper(parts_.decoder.strip_spaces)(text));
}

class BpeDecodeStream final : public StreamingDecoder {
 public:
  BpeDecodeStream(const BpeTokenizer& tokenizer, bool keep_special)
      : tokenizer_(tokenizer),
        decoder_(tokenizer.parts_.decoder),
        keep_special_(keep_special),
        strip_(decoder_.strip_spaces) {}

  std::string add(std::int64_t id) override {
    const auto& entry = tokenizer_.decoded(id);
    if (entry.kind == BpeTokenizer::Decoded::Kind::kNothing || (entry.special && !keep_special_)) return {};
    std::string text;
    if (decoder_.byte_level) {
      pending_ += entry.text;
      text = take(pending_.size() - unfinished_bytes(pending_));
    } else if (entry.kind == BpeTokenizer::Decoded::Kind::kByte) {
      pending_ += static_cast<char>(entry.byte);
      text = take(pending_.size() - unfinished_bytes(pending_));
    } else {
      text = take(pending_.size());
      if (first_ && decoder_.strip_first)
        text += replace_all(entry.text, " ", "");
      else
        text += entry.text;
    }
    first_ = false;
    return std::string(strip_(text));
  }

  std::string finish() override {
    std::string text(strip_(take(pending_.size())));
    first_ = true;
    strip_ = SpaceStripper(decoder_.strip_spaces);
    return text;
  }

 private:
  std::string take(std::size_t size) {
    const std::string_view bytes = std::string_view(pending_).substr(0, size);
    std::string text;
    if (decoder_.byte_level || is_valid_utf8(bytes)) {
      text = replace_invalid_utf8(bytes);
    } else {
      for (std::size_t at = 0; at < bytes.size();) {
        const Character character = character_at(bytes, at);
        const std::string_view part = bytes.substr(at, character.size);
        if (is_valid_utf8(part)) {
          text += part;
        } else {
          for (std::size_t i = 0; i < part.size(); ++i) text += kReplacement;
        }
        at += character.size;
      }
    }
    pending_.erase(0, size);
    return text;
  }

  const BpeTokenizer& tokenizer_;
  const DecoderSteps& decoder_;
  bool keep_special_;
  bool first_ = true;
  SpaceStripper strip_;
  std::string pending_;
};

std::unique_ptr<StreamingDecoder> BpeTokenizer::decode_stream(bool keep_special) const {
  return std::make_unique<BpeDecodeStream>(*this, keep_special);
}

std::optional<std::int64_t> BpeTokenizer::find(std::string_view piece) const {
  const std::int64_t id = parts_.vocabulary.id_of(piece);
  return id < 0 ? std::nullopt : std::optional(id);
}

std::string BpeTokenizer::piece(std::int64_t id) const {
  return parts_.vocabulary.has(id) ? std::string(parts_.vocabulary.piece(id)) : std::string();
}

std::string BpeTokenizer::bytes(std::int64_t id, TextPlace place) const {
  const Decoded& entry = decoded(id);
  std::string text;
  if (entry.kind == Decoded::Kind::kByte)
    text = static_cast<char>(entry.byte);
  else if (place == TextPlace::kStart && parts_.decoder.strip_first)
    text = replace_all(entry.text, " ", "");
  else
    text = entry.text;
  if (place != TextPlace::kStart || parts_.decoder.byte_level) return text;
  return std::string(SpaceStripper(parts_.decoder.strip_spaces)(text));
}

bool BpeTokenizer::is_special(std::int64_t id) const { return id >= 0 && decoded(id).special; }

bool BpeTokenizer::is_added(std::int64_t id) const { return id >= 0 && decoded(id).added; }

std::optional<std::int64_t> BpeTokenizer::named_token(std::string_view name) const {
  const auto found = parts_.named_tokens.find(std::string(name));
  return found == parts_.named_tokens.end() ? std::nullopt : find(found->second);
}

}  // namespace thinkvg::text
